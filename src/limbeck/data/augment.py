"""Replayable augmentation: a pure function of (pixels, seed, sample id, view), whatever the batch, order or workers.

Shapes: B = samples of a batch, H, W, C = rows, columns, channels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting
from limbeck.data.colour import jitter
from limbeck.data.draws import Draws, Floats
from limbeck.data.geometry import around, blank, box_within, cut, rotate, span
from limbeck.data.mix import Mixing
from limbeck.data.pixels import Affine, convert, per_value, put

__all__ = ["Augment", "augment"]

# The streams that have a number: crop row, crop column, flip; after them cutout row, cutout column.
MOVES, ALL = 3, 5

HIGHEST = {
    "crop": math.inf,
    "cutout": math.inf,
    "mixup": math.inf,
    "cutmix": math.inf,
    "rotate": 180,
    "brightness": 1,
    "contrast": 1,
    "saturation": 1,
    "hue": 0.5,
    "grey": 1,
    "erase": 1,
}


@setting
class Augment:
    """What may be done to an image, once for each view of it, in the order of `docs/augmentation.md`.

    `crop`: pixels of zero padding (the mean, after normalisation) before a random crop back to size. `flip`: mirror
    left and right, one time in two. `cutout`: side in pixels of a square that is set to zero (DeVries & Taylor 2017).
    `rotate`: degrees, uniform to both sides. `brightness`, `contrast`, `saturation`: x means a factor from 1 - x to
    1 + x. `hue`: x means a shift from -x to x, in turns of the colour circle. `grey`: probability of losing all
    colour. `erase`: probability of a zero box of random size and shape (Zhong et al. 2020).
    `mixup` (Zhang et al. 2018), `cutmix` (Yun et al. 2019): Beta parameters of a sample's own share. The rest comes
    from a partner, whom (seed, view, id) choose from all samples of the data: from the data, not from the batch.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        for name, top in HIGHEST.items():
            value = getattr(self, name)
            if not 0 <= value <= top or value == math.inf:  # NaN fails every comparison
                mend = "give zero or more" if top == math.inf else f"give 0 to {top}"
                raise ConfigError(problem("augment", f"{name} is {value}", mend))
        if self.mixup and self.cutmix:
            raise ConfigError(problem("augment", "mixup and cutmix are both on", "set one of them to 0"))

    @property
    def moves(self) -> bool:
        """Whether it changes a sample on its own, so that views differ."""
        return bool(self.crop or self.flip or self.cutout or self.rotate or self.erase or self.recolours)

    @property
    def recolours(self) -> bool:
        """Whether it changes colours, for which pixels must lie from 0 to 1 (or be bytes)."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue or self.grey)

    @property
    def mixes(self) -> bool:
        """Whether it mixes samples: then a view can be stored and replayed, for exactly the same set of ids."""
        return bool(self.mixup or self.cutmix)

    @property
    def mixing(self) -> Mixing | None:
        """How it mixes."""
        if not self.mixes:
            return None
        return Mixing("cutmix", self.cutmix) if self.cutmix else Mixing("mixup", self.mixup)


def augment(
    images_BHWC: Tensor, ids_B: Tensor, how: Augment | None, *, seed: int, view: int, step: Affine | None
) -> Tensor:
    """All that is done to a sample alone, for whole batches: uint8 or float in, float32 [B, C, H, W] channels-last out.

    Colours are changed first, on raw pixels; then flip, crop, `step`, rotation, erasing, cutout. Where crop and
    rotation look beyond the image, and where a box is blanked out, the result is 0: the mean of normalised data.
    `step` belongs to the type of the images. Only random draws come from the CPU.
    """
    images_BHWC = images_BHWC.detach()
    if how is None or not how.moves:
        return convert(_own(images_BHWC), step).permute(0, 3, 1, 2)
    h, w = images_BHWC.shape[1:3]
    draws = Draws(ids_B, seed=seed, view=view)
    # Fewer streams leave the others as they are.
    draw_SB = draws.counted(ALL if how.cutout else MOVES)
    recoloured = jitter(images_BHWC, draws, how) if how.recolours else None
    if how.crop or how.flip:
        out_BHWC = _crop_flip(images_BHWC if recoloured is None else recoloured, draw_SB, how, step)
    else:
        out_BHWC = convert(_own(images_BHWC) if recoloured is None else recoloured, step)
    if how.rotate:
        out_BHWC = rotate(out_BHWC, how.rotate * (2 * draws.named("rotate") - 1))
    if how.erase:
        blank(out_BHWC, *box_within(draws, how.erase, h, w))
    if how.cutout:
        top_B, left_B = around(draw_SB[3], how.cutout, h), around(draw_SB[4], how.cutout, w)
        blank(out_BHWC, span(h, top_B, top_B + how.cutout), span(w, left_B, left_B + how.cutout))
    return out_BHWC.permute(0, 3, 1, 2)


def _crop_flip(images_BHWC: Tensor, draw_SB: Floats, how: Augment, step: Affine | None) -> Tensor:
    b, h, w, c = images_BHWC.shape
    # Small vectors stay in numpy, whose calls cost a third of torch's.
    down_B, right_B = (draw_SB[:2] * (2 * how.crop + 1)).astype(np.int64) - how.crop
    mirrored = np.flatnonzero(draw_SB[2] < 0.5) if how.flip else np.empty(0, dtype=np.int64)
    cut_BHWC = cut(images_BHWC, down_B, right_B, mirrored, how.crop)
    if not how.crop:
        return convert(cut_BHWC, step)
    row_BH, column_BW = np.arange(h) + down_B[:, None], np.arange(w) + right_B[:, None]
    keep = per_value((column_BW >= 0) & (column_BW < w), c, images_BHWC.device)
    out_BHWC = convert(cut_BHWC, step, keep)
    beyond = put(np.flatnonzero((row_BH < 0) | (row_BH >= h)), images_BHWC.device)
    out_BHWC.view(b * h, w * c).index_fill_(0, beyond, 0.0)
    return out_BHWC


def _own(images_BHWC: Tensor) -> Tensor:
    """Memory that may be written to: bytes are copied by their conversion, floats here."""
    return images_BHWC.clone() if images_BHWC.dtype == torch.float32 else images_BHWC
