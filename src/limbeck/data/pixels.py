"""From raw pixels to what a model takes, in two passes over memory.

Shapes: B = samples of a batch, H, W, C = rows, columns, channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.core.errors import DataError, problem
from limbeck.core.normalize import Normalize
from limbeck.data.draws import Flags

__all__ = ["Affine", "affine", "convert", "per_value", "put"]


class Affine(NamedTuple):
    """`x * scale + shift` per channel, on raw pixel values."""

    scale: Tensor
    shift: Tensor


def affine(normalize: Normalize | None, *, dtype: torch.dtype, channels: int) -> Affine | None:
    """The step from raw pixels to model input: bytes are divided by 255, then normalised. None: nothing to do.

    Raises:
        DataError: the normalisation has another number of channels.
    """
    if normalize is not None and len(normalize.mean) not in (1, channels):
        wrong = f"images have {channels} channels, the normalisation has {len(normalize.mean)}"
        raise DataError(problem("normalize", wrong, "give one mean and one std a channel"))
    unit = 255.0 if dtype == torch.uint8 else 1.0
    if normalize is None:
        return Affine(torch.full((channels,), 1 / unit), torch.zeros(channels)) if unit > 1 else None
    scale, shift = normalize.affine()
    return Affine((scale / unit).expand(channels), shift.expand(channels))


def convert(images_BHWC: Tensor, step: Affine | None, keep: Tensor | None = None) -> Tensor:
    """Float32, scaled and shifted, in place where the images are float32 already.

    `keep` [B, 1, W * C] blanks columns out in the same two passes over memory.
    """
    b, h, w, c = images_BHWC.shape
    out = images_BHWC.float()
    # Long inner axes: broadcasting along three channels alone would be ten times as slow.
    lines, tiles = (out.view(b, h * w * c), h * w) if keep is None else (out.view(b, h, w * c), w)
    if step is None:
        return out if keep is None else lines.mul_(keep).view(b, h, w, c)
    scale, shift = step.scale.repeat(tiles), step.shift.repeat(tiles)
    if out.device.type != "cpu":
        scale, shift = scale.to(out.device), shift.to(out.device)
    if keep is not None:
        scale, shift = scale * keep, shift * keep
    # Multiplied, then added: a fused step would round differently in the last few values of a block.
    return lines.mul_(scale).add_(shift).view(b, h, w, c)


def per_value(keep_BW: Flags, channels: int, device: torch.device) -> Tensor:
    """Float [B, 1, W * C]: 1 where the column is kept."""
    return put(keep_BW.astype(np.float32).repeat(channels, 1), device).unsqueeze(1)


def put(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A numpy array as a tensor where the images are: what is drawn is all that moves."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)
