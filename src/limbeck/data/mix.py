"""Mixup and cutmix by key: partner, share and box of a sample depend on (seed, view, id) and the set of ids alone.

Shapes: N = samples of a source, B = samples of a batch, H, W, C = rows, columns, channels, K = classes.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.data.draws import Draws, Floats, Ints
from limbeck.data.geometry import around, span
from limbeck.data.pixels import put

__all__ = ["Box", "Mix", "Mixing", "beta_quantile", "digest_ids", "draw_mix", "mix_images", "mix_labels", "partners"]

NODES = 2**14


class Mixing(NamedTuple):
    """What is mixed in, and the Beta parameter of the shares."""

    kind: Literal["mixup", "cutmix"]
    parameter: float


class Box(NamedTuple):
    """Where each image's partner shows: from top and left, up to bottom and right, without these; int64 [B] each."""

    top: Ints
    bottom: Ints
    left: Ints
    right: Ints


class Mix(NamedTuple):
    """How samples are mixed: `share` float64 [B] of each sample's own, the rest its partner's; `box` for cutmix."""

    share: Floats
    box: Box | None


def partners(ids_N: Tensor, *, seed: int, view: int) -> Tensor:
    """The position of each sample's partner, int64 [N]: the next id round a ring that (seed, view) shuffles.

    A permutation of the set of ids, uniform over the others; a sample is its own partner only where it is alone.
    """
    ids, first, rank_N = np.unique(ids_N.cpu().numpy(), return_index=True, return_inverse=True)
    ring = np.argsort(Draws(torch.from_numpy(ids), seed=seed, view=view).words("partner"))
    following = np.empty_like(ring)
    following[ring] = np.roll(ring, -1)
    return torch.from_numpy(first[following[rank_N.reshape(-1)]])


def digest_ids(ids_N: Tensor) -> str:
    """sha256 of the set of ids, in any order."""
    return hashlib.sha256(np.unique(ids_N.cpu().numpy()).astype("<i8").tobytes()).hexdigest()


def draw_mix(ids_B: Tensor, how: Mixing, *, seed: int, view: int, height: int, width: int) -> Mix:
    """Share, and box for cutmix, of each sample: a pure function of (seed, view, id)."""
    draws = Draws(ids_B, seed=seed, view=view)
    share_B = beta_quantile(draws.named(f"{how.kind} share"), how.parameter)
    if how.kind == "mixup":
        return Mix(share_B, None)
    side_B = np.sqrt(1 - share_B)
    rows = _clipped(draws.named("cutmix row"), (height * side_B).astype(np.int64), height)
    columns = _clipped(draws.named("cutmix column"), (width * side_B).astype(np.int64), width)
    box = Box(*rows, *columns)
    return Mix(1 - (box.bottom - box.top) * (box.right - box.left) / (height * width), box)


def mix_images(own_BCHW: Tensor, other_BCHW: Tensor, mix: Mix) -> Tensor:
    """Each image blended with its partner, or with its partner's box pasted in; channels-last memory."""
    b, c, h, w = own_BCHW.shape
    own, other = (part.permute(0, 2, 3, 1).reshape(b, h, w * c) for part in (own_BCHW, other_BCHW))
    if mix.box is None:
        share = put(mix.share, own.device).to(own.dtype).view(b, 1, 1)
        # Two products and a sum, never one fused step, whose rounding depends on the place in memory.
        mixed = (own * share).add_(other * (1 - share))
    else:
        rows_BH = put(span(h, mix.box.top, mix.box.bottom), own.device)
        columns_BW = put(span(w, mix.box.left, mix.box.right).repeat(c, 1), own.device)
        mixed = torch.where(rows_BH.unsqueeze(2) & columns_BW.unsqueeze(1), other, own)
    return mixed.view(b, h, w, c).permute(0, 3, 1, 2)


def mix_labels(own: Tensor, other: Tensor, mix: Mix, classes: int) -> Tensor:
    """Soft labels float32 [B, K] of mixed samples. A sample without a label (-1) keeps none: its row is zero.

    A labelled sample whose partner has no label keeps its own share alone, so its row sums to that share.
    """
    share = put(mix.share, own.device).float().unsqueeze(1)
    if own.is_floating_point():
        return own * share + other * (1 - share)
    own_BK, other_BK = _soft(own, classes), _soft(other, classes)
    return (own_BK * share + other_BK * (1 - share)) * (own >= 0).unsqueeze(1)


def beta_quantile(u: Floats, parameter: float) -> Floats:
    """From uniform numbers inside (0, 1) to shares: the quantiles of Beta(parameter, parameter), within 1e-6."""
    cumulative, logit = _beta_table(parameter)
    found: Floats = 1 / (1 + np.exp(-np.interp(u, cumulative, logit)))
    return found


@lru_cache(maxsize=32)
def _beta_table(parameter: float) -> tuple[Floats, Floats]:
    """The distribution function at evenly spaced logits, by Simpson's rule.

    As a function of the logit t the density is (s(t) s(-t)) ** parameter: smooth and bounded for every parameter,
    where the density over [0, 1] has poles. Beyond |t| = 45 the share is 0 or 1 to within 1e-19.
    """
    reach = min(45.0, 40 / parameter**0.5)
    t = np.linspace(-reach, reach, 2 * NODES + 1)
    density = np.exp(-parameter * (np.abs(t) + 2 * np.log1p(np.exp(-np.abs(t)))) + parameter * 2 * np.log(2.0))
    piece = (density[:-1:2] + 4 * density[1::2] + density[2::2]) * (reach / NODES / 3)
    tail = density[0] / parameter  # in the tails the density falls as exp(-parameter * |t|)
    cumulative = tail + np.concatenate([[0.0], np.cumsum(piece)])
    return cumulative / (cumulative[-1] + tail), t[::2].copy()


def _clipped(draw_B: Floats, side_B: Ints, size: int) -> tuple[Ints, Ints]:
    first_B = around(draw_B, side_B, size)
    return np.maximum(first_B, 0), np.minimum(first_B + side_B, size)


def _soft(y_B: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(y_B.clamp_min(0), classes).float() * (y_B >= 0).unsqueeze(1)
