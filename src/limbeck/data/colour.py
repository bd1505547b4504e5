"""Colour jitter for whole batches, on raw pixels, one colour plane after the other.

Shapes: B = samples of a batch, H, W, C = rows, columns, channels, P = pixels of an image.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.data.draws import Draws
from limbeck.data.pixels import put

__all__ = ["Jitter", "jitter"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's mode L
FINE = 2.0**20


class Jitter(Protocol):
    """How far each property of the colours may go."""

    @property
    def brightness(self) -> float:
        """Factor from 1 - x to 1 + x."""
        ...

    @property
    def contrast(self) -> float:
        """Factor from 1 - x to 1 + x."""
        ...

    @property
    def saturation(self) -> float:
        """Factor from 1 - x to 1 + x."""
        ...

    @property
    def hue(self) -> float:
        """Shift from -x to x, in turns of the colour circle."""
        ...

    @property
    def grey(self) -> float:
        """Probability."""
        ...


def jitter(images_BHWC: Tensor, draws: Draws, how: Jitter) -> Tensor:
    """Brightness, contrast, saturation, hue, grey, in this order; clipped after each. Float32, in the images' units.

    Black is 0 and white is 255 for bytes, 1 for floats. One channel has neither saturation nor hue; the fourth is
    opacity, and stays as it is.
    """
    b, h, w, c = images_BHWC.shape
    top = 255.0 if images_BHWC.dtype == torch.uint8 else 1.0
    planes_CBP = images_BHWC.new_empty((c, b, h * w), dtype=torch.float32)
    planes_CBP.copy_(images_BHWC.reshape(b, h * w, c).permute(2, 0, 1))
    colours = planes_CBP[: min(c, 3)]
    if how.brightness:
        colours.mul_(_factor(draws, "brightness", how.brightness, colours)).clamp_(0, top)
    if how.contrast:
        _blend(colours, _mean(_luma(colours), top), _factor(draws, "contrast", how.contrast, colours), top)
    if len(colours) == 3:
        if how.saturation:
            _blend(colours, _luma(colours), _factor(draws, "saturation", how.saturation, colours), top)
        if how.hue:
            _turn(colours, _factor(draws, "hue", how.hue, colours) - 1)
        if how.grey:
            chosen = put(np.flatnonzero(draws.named("grey") < how.grey), colours.device)
            plain_BP = _luma(colours.index_select(1, chosen))
            colours.index_copy_(1, chosen, plain_BP.expand(3, -1, -1))
    return planes_CBP.permute(1, 2, 0).contiguous().view(b, h, w, c)


def _factor(draws: Draws, name: str, reach: float, like: Tensor) -> Tensor:
    """Uniform from 1 - reach to 1 + reach, [B, 1]."""
    return put((1 + reach * (2 * draws.named(name) - 1)).astype(np.float32), like.device).unsqueeze(1)


def _luma(colours: Tensor) -> Tensor:
    """The grey value of each pixel, [B, P]."""
    if len(colours) == 1:
        return colours[0].clone()
    # Products, then sums: each its own step, so that no value is rounded otherwise than its neighbours.
    luma_BP = colours[0] * LUMA[0]
    for plane, weight in zip(colours[1:], LUMA[1:], strict=True):
        luma_BP += plane * weight
    return luma_BP


def _mean(luma_BP: Tensor, top: float) -> Tensor:
    """The mean of each image, [B, 1], in steps of 2**-20: whole numbers have one sum in any order of adding."""
    sum_B1 = (luma_BP * (FINE / top)).round_().sum(1, keepdim=True, dtype=torch.float64)
    return (sum_B1 * (top / FINE / luma_BP.shape[1])).float()


def _blend(colours: Tensor, towards: Tensor, factor_B1: Tensor, top: float) -> None:
    """`factor` of the colours and `1 - factor` of `towards`, in place."""
    colours.mul_(factor_B1).add_(towards * (1 - factor_B1)).clamp_(0, top)


def _turn(colours: Tensor, turns_B1: Tensor) -> None:
    """Hue shifted in HSV, in place; value and saturation stay.

    Source: Smith 1978, "Color gamut transform pairs"; back to RGB in the closed form with one clamp a channel.
    """
    red, green, blue = colours
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    over = 1 / chroma.clamp_min(1e-30)  # without chroma, the differences below are 0
    at_red, at_green = (green - blue) * over, (blue - red) * over + 2
    sixth = torch.where(value == red, at_red, torch.where(value == green, at_green, (red - green) * over + 4))
    sixth += turns_B1 * 6
    for plane, offset in zip((red, green, blue), (5, 3, 1), strict=True):
        place = sixth + offset
        place -= (place * (1 / 6)).floor_() * 6
        plane.copy_(value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1))
