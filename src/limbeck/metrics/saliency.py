"""Whether two models look at the same places: attribution maps against each other.

Maps are signed: what speaks for the answer is above zero, what speaks against it below. Absolute values would make any
two networks alike, random ones included, because both are larger where the input is; signs are what training decides
(Adebayo et al. 2018, "Sanity checks for saliency maps", section 4.1: rank correlations "with" and "without" absolute
values). For the same reason, positions where both maps are exactly zero are left out of ranks and overlap: where the
input is at its baseline, such as the border of a scan, every network says zero.

Shapes: N = samples, the axes behind it are positions, P = positions in a row.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, DataError, ShapeError, problem

__all__ = ["comparable", "cosine", "rank_correlation", "top_overlap"]


def comparable(a: Tensor, b: Tensor) -> Tensor:
    """Which samples have a rank correlation [N]: both maps vary over the positions that either of them uses.

    All-zero and constant maps rank nothing. They are left out of averages, and counted, by who asks here.

    Raises:
        DataError: there is no sample or no position, or a map is not finite.
        ShapeError: the maps differ in shape.
    """
    a_NP, b_NP = _rows(a, b)
    pairs = [_used(x_P, y_P) for x_P, y_P in zip(a_NP, b_NP, strict=True)]
    return torch.tensor([_varies(x_P) and _varies(y_P) for x_P, y_P in pairs])


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation over a sample's positions, from -1 to 1 [N], float64; NaN where not `comparable`.

    Equal values share their mean rank. Maps that know nothing of each other give 0 on average.

    Raises:
        DataError: there is no sample or no position, or a map is not finite.
        ShapeError: the maps differ in shape.
    """
    values = []
    for x_P, y_P in zip(*_rows(a, b), strict=True):
        ranks = [_ranks(v_P) for v_P in _used(x_P, y_P)]
        values.append(_cosine(*(rank_P - rank_P.mean() for rank_P in ranks)) if len(ranks[0]) else math.nan)
    return torch.tensor(values, dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between the maps of a sample, from -1 to 1 [N], float64; NaN where a map is zero throughout.

    Maps that know nothing of each other, and have no sign in common, give 0 on average.

    Raises:
        DataError: there is no sample or no position, or a map is not finite.
        ShapeError: the maps differ in shape.
    """
    return torch.tensor([_cosine(x_P, y_P) for x_P, y_P in zip(*_rows(a, b), strict=True)], dtype=torch.float64)


def top_overlap(a: Tensor, b: Tensor, *, share: float = 0.1) -> Tensor:
    """Share of the strongest positions that both maps have in common, from 0 to 1 [N], float64.

    The strongest are those with the largest values, which speak most for the answer: `share` of the positions that
    either map uses, rounded up. Positions tied for the last places hold equal parts of them. Maps that know nothing of
    each other have `share` in common (and more when both are larger where the input is). NaN where a map is zero
    throughout.

    Raises:
        ConfigError: the share is not above 0 and at most 1.
        DataError: there is no sample or no position, or a map is not finite.
        ShapeError: the maps differ in shape.
    """
    if not 0 < share <= 1:
        raise ConfigError(problem("overlap", f"share is {share}", "give a share above 0 and of at most 1"))
    values = []
    for x_P, y_P in zip(*_rows(a, b), strict=True):
        if not (x_P.any() and y_P.any()):
            values.append(math.nan)
            continue
        x_U, y_U = _used(x_P, y_P)
        k = math.ceil(share * len(x_U) - 1e-9)  # 0.1 x 30 is 3.0000000000000004
        values.append(float(_shared(x_U, y_U, k) / k))
    return torch.tensor(values, dtype=torch.float64)


def _rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps as float64 rows on the CPU."""
    if a.shape != b.shape:
        wrong = f"one is {list(a.shape)}, the other {list(b.shape)}"
        raise ShapeError(problem("attribution maps", wrong, "make both at the resolution of one input"))
    if a.dim() < 2 or not a.numel():
        wrong = f"they are {list(a.shape)}, expected [samples, positions, ...]"
        raise DataError(problem("attribution maps", wrong, "give at least one sample with at least one position"))
    for value in (a, b):
        odd = (~value.isfinite()).flatten(1).any(dim=1)
        if odd.any():
            wrong = f"those of {int(odd.sum())} of {len(value)} samples hold NaN or infinity"
            raise DataError(problem("attribution maps", wrong, "look at the model's gradient for these samples"))
    a_NP, b_NP = (value.detach().cpu().double().flatten(1) for value in (a, b))
    return a_NP, b_NP


def _used(x_P: Tensor, y_P: Tensor) -> tuple[Tensor, Tensor]:
    """The positions at which not both are zero."""
    either_P = (x_P != 0) | (y_P != 0)
    return x_P[either_P], y_P[either_P]


def _varies(x_P: Tensor) -> bool:
    return len(x_P) > 0 and bool((x_P != x_P[0]).any())


def _ranks(x_P: Tensor) -> Tensor:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place_P, counts = torch.unique(x_P, return_inverse=True, return_counts=True)
    rank: Tensor = counts.cumsum(0).double() - (counts - 1) / 2
    return rank[place_P]


def _cosine(x_P: Tensor, y_P: Tensor) -> float:
    """NaN where one of them is zero throughout."""
    most = [float(v_P.abs().max()) for v_P in (x_P, y_P)]
    if 0.0 in most:
        return math.nan
    # Scaled first: squares of very small or large values would leave the range of float64.
    x_P, y_P = x_P / most[0], y_P / most[1]
    # One root of the product, not a product of roots: it makes a map's cosine with itself exactly 1.
    value = float((x_P * y_P).sum() / ((x_P * x_P).sum() * (y_P * y_P).sum()).sqrt())
    return min(1.0, max(-1.0, value))


def _shared(x_P: Tensor, y_P: Tensor, k: int) -> Fraction:
    """How many of the k places the same positions hold in both; a fraction, so that all are exactly all."""
    levels, places = [], []
    for v_P in (x_P, y_P):
        edge = v_P.topk(k).values[-1]
        above, tied = int((v_P > edge).sum()), int((v_P == edge).sum())
        levels.append((v_P > edge).int() - (v_P < edge).int())
        places.append({1: Fraction(1), 0: Fraction(k - above, tied), -1: Fraction(0)})
    pairs, counts = torch.unique(torch.stack(levels, dim=1), dim=0, return_counts=True)
    held = [min(places[0][x], places[1][y]) for x, y in pairs.tolist()]
    return sum((part * count for part, count in zip(held, counts.tolist(), strict=True)), Fraction(0))
