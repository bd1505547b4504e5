"""Replayable augmentation: a pure function of (pixels, seed, sample id, view), whatever the batch, order or workers.

Shapes: B = samples of a batch, H, W, C = rows, columns, channels, S = streams of random numbers, K = classes.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, DataError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.seeds import derive
from limbeck.core.setting import setting

__all__ = ["Affine", "Augment", "Mix", "affine", "augment", "draw_mix", "mix_images", "mix_labels", "uniform"]

STREAMS = 5  # crop row, crop column, flip, cutout row, cutout column
GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64 - 1

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]


@setting
class Augment:
    """What may be done to an image, once for each view of it.

    `crop`: pixels of zero padding (the mean, after normalisation) before a random crop back to size. `flip`: mirror
    left and right, one time in two. `cutout`: side in pixels of a square that is set to zero (DeVries & Taylor 2017).
    `mixup` (Zhang et al. 2018), `cutmix` (Yun et al. 2019): Beta parameters of the share that a partner in the same
    batch gets; those two depend on the batch as well as on the sample.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        for name in ("crop", "cutout", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ConfigError(problem("augment", f"{name} is {getattr(self, name)}", "give zero or more"))
        if self.mixup and self.cutmix:
            raise ConfigError(problem("augment", "mixup and cutmix are both on", "set one of them to 0"))

    @property
    def moves(self) -> bool:
        """Whether it changes a sample on its own, so that views differ."""
        return bool(self.crop or self.flip or self.cutout)

    @property
    def mixes(self) -> bool:
        """Whether it mixes samples of a batch: such batches cannot be replayed from stored targets."""
        return bool(self.mixup or self.cutmix)


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


def uniform(ids_B: Tensor, *, seed: int, view: int, streams: int) -> Tensor:
    """Independent uniform numbers in [0, 1), float64 [S, B], from a counter: splitmix64 over (seed, view, id, stream).

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    key = _mix_word(_mix_word(seed + GOLDEN) ^ (view + 1) * GOLDEN)
    # numpy, because its 64-bit words are unsigned (the shifts below must bring in zeros) and its calls are cheap.
    word_B = _mix_words(ids_B.numpy().astype(np.uint64) * np.uint64(GOLDEN) ^ np.uint64(key))
    step_S = np.arange(1, streams + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    word_SB = _mix_words(word_B + step_S[:, None])
    return torch.from_numpy((word_SB >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def augment(
    images_BHWC: Tensor, ids_B: Tensor, how: Augment | None, *, seed: int, view: int, step: Affine | None
) -> Tensor:
    """Cut, flip, convert and blank out whole batches: uint8 or float in, float32 [B, C, H, W] out (channels last).

    Where the crop leaves the image, and inside the cutout, the result is 0: the mean of normalised data.
    """
    b, h, w, c = images_BHWC.shape
    if how is None or not how.moves:
        return _convert(images_BHWC, step).permute(0, 3, 1, 2)
    # Small vectors stay in numpy, whose calls cost a third of torch's; fewer streams leave the others as they are.
    draw_SB = uniform(ids_B, seed=seed, view=view, streams=STREAMS if how.cutout else STREAMS - 2).numpy()
    down_B, right_B = (draw_SB[:2] * (2 * how.crop + 1)).astype(np.int64) - how.crop
    mirrored = np.flatnonzero(draw_SB[2] < 0.5) if how.flip else np.empty(0, dtype=np.int64)
    cut_BHWC = _cut(images_BHWC, down_B, right_B, mirrored, how.crop)
    if how.crop:
        row_BH, column_BW = np.arange(h) + down_B[:, None], np.arange(w) + right_B[:, None]
        out_BHWC = _convert(cut_BHWC, step, _per_value((column_BW >= 0) & (column_BW < w), c))
        beyond = np.flatnonzero((row_BH < 0) | (row_BH >= h))
        out_BHWC.view(b * h, w * c).index_fill_(0, torch.from_numpy(beyond), 0.0)
    else:
        out_BHWC = _convert(cut_BHWC, step)
    if how.cutout:
        row_BH, column_BW = _span(h, draw_SB[3], how.cutout), _span(w, draw_SB[4], how.cutout)
        _blank(out_BHWC, row_BH, _per_value(~column_BW, c))
    return out_BHWC.permute(0, 3, 1, 2)


class Mix(NamedTuple):
    """How a batch is mixed: `share` of the sample itself, the rest of its partner; `box` for cutmix, else None."""

    partner: Tensor
    share: float
    box: tuple[int, int, int, int] | None


def draw_mix(ids_B: Tensor, how: Augment, *, seed: int, view: int, height: int, width: int) -> Mix:
    """Partners and share of one batch: a pure function of (seed, view, the set of ids), in any order of them."""
    order_B = ids_B.argsort()
    digest = hashlib.sha256(ids_B[order_B].numpy().tobytes()).hexdigest()
    rng = np.random.default_rng(derive(seed, "mix", view, digest))
    partner_B = torch.empty_like(order_B)
    partner_B[order_B] = order_B[torch.from_numpy(rng.permutation(len(order_B)))]
    share = float(rng.beta(how.mixup or how.cutmix, how.mixup or how.cutmix))
    if not how.cutmix:
        return Mix(partner_B, share, None)
    side = (1 - share) ** 0.5
    top, bottom = _clip(int(rng.integers(height)), int(height * side), height)
    left, right = _clip(int(rng.integers(width)), int(width * side), width)
    return Mix(partner_B, 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def mix_images(images_BCHW: Tensor, mix: Mix) -> Tensor:
    """Each image blended with its partner, or with its partner's box pasted in."""
    # index_select on rows-first memory copies whole images.
    other_BCHW = images_BCHW.permute(0, 2, 3, 1).index_select(0, mix.partner).permute(0, 3, 1, 2)
    if mix.box is None:
        return torch.lerp(other_BCHW, images_BCHW, mix.share)
    top, bottom, left, right = mix.box
    mixed = images_BCHW.clone()
    mixed[:, :, top:bottom, left:right] = other_BCHW[:, :, top:bottom, left:right]
    return mixed


def mix_labels(y: Tensor, mix: Mix, classes: int) -> Tensor:
    """Soft labels float32 [B, K] of a mixed batch. A sample without a label (-1) keeps none: its row is zero.

    A labelled sample whose partner has no label keeps its own share alone, so its row sums to that share.
    """
    if y.is_floating_point():
        return y * mix.share + y[mix.partner] * (1 - mix.share)
    known_B = (y >= 0).unsqueeze(1)
    soft_BK = torch.nn.functional.one_hot(y.clamp_min(0), classes).float() * known_B
    return (soft_BK * mix.share + soft_BK[mix.partner] * (1 - mix.share)) * known_B


def _cut(images_BHWC: Tensor, down_B: Ints, right_B: Ints, mirrored: Ints, reach: int) -> Tensor:
    """Each image (or its mirror image) read from a shifted start: one block copy an image, by index_select.

    A shift of the start moves rows and columns at once; values that come from beyond an edge are a neighbour's,
    and the caller blanks them out. Several times as fast as indexing pixels, and exact.
    """
    b, h, w, c = images_BHWC.shape
    size, guard, count = h * w * c, reach * (w + 1) * c, len(mirrored)
    flat = images_BHWC.new_empty((b + count) * size + 2 * guard)
    flat[:guard] = 0
    flat[len(flat) - guard :] = 0
    stock = flat[guard : len(flat) - guard].view(b + count, h, w, c)
    stock[:b] = images_BHWC
    slot_B = np.arange(b)
    if count:
        # flip is vectorised for channels-last images seen as N,C,H,W, and not for N,H,W,C.
        chosen = images_BHWC.index_select(0, torch.from_numpy(mirrored))
        stock[b:] = chosen.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)
        slot_B[mirrored] = np.arange(b, b + count)
    start_B = torch.from_numpy(slot_B * size + down_B * (w * c) + right_B * c + guard)
    windows = flat.as_strided((len(flat) - size + 1, size), (1, 1))
    return windows.index_select(0, start_B).view(b, h, w, c)


def _convert(images_BHWC: Tensor, step: Affine | None, keep: Tensor | None = None) -> Tensor:
    """Float32, scaled and shifted; `keep` [B, 1, W * C] blanks columns out in the same two passes over memory."""
    b, h, w, c = images_BHWC.shape
    out = images_BHWC.float()
    out = out.clone() if out is images_BHWC else out
    # Long inner axes: broadcasting along three channels alone would be ten times as slow.
    lines, tiles = (out.view(b, h * w * c), h * w) if keep is None else (out.view(b, h, w * c), w)
    if step is None:
        return out if keep is None else lines.mul_(keep).view(b, h, w, c)
    scale, shift = step.scale.repeat(tiles), step.shift.repeat(tiles)
    if keep is not None:
        scale, shift = scale * keep, shift * keep
    # Multiplied, then added: a fused step would round differently in the last few values of a block.
    return lines.mul_(scale).add_(shift).view(b, h, w, c)


def _per_value(keep_BW: Flags, channels: int) -> Tensor:
    """Float [B, 1, W * C]: 1 where the column is kept."""
    return torch.from_numpy(keep_BW.astype(np.float32).repeat(channels, 1)).unsqueeze(1)


def _blank(out_BHWC: Tensor, rows_BH: Flags, keep: Tensor) -> None:
    """Zero, in place, what `keep` [B, 1, W * C] drops from the chosen rows; other rows are not touched."""
    b, h, w, c = out_BHWC.shape
    chosen = torch.from_numpy(np.flatnonzero(rows_BH))
    lines = out_BHWC.view(b * h, w * c)
    kept = keep.view(b, w * c).index_select(0, chosen // h)
    lines.index_copy_(0, chosen, lines.index_select(0, chosen).mul_(kept))


def _span(size: int, draw_B: Floats, side: int) -> Flags:
    """The places of a span of `side` round a drawn centre, clipped at the edges; bool [B, size]."""
    first_B = (draw_B * size).astype(np.int64) - side // 2
    place = np.arange(size) - first_B[:, None]
    return (place >= 0) & (place < side)


def _clip(centre: int, side: int, size: int) -> tuple[int, int]:
    return max(centre - side // 2, 0), min(centre - side // 2 + side, size)


def _mix_word(word: int) -> int:
    word &= WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


def _mix_words(word: Words) -> Words:
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)
