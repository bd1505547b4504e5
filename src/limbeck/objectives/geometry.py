"""Lengths, directions, distances and correlations that stay finite, with finite gradients, where they are undefined.

Shapes: B = samples, D = width. Everything is computed in at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.objectives.logspace import widened

__all__ = ["distances", "pearson_distance", "products", "rows", "unit"]


def unit(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Vectors of length one along `dim`; a zero vector stays zero, and its gradient finite."""
    x = widened(x)
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(length == 0, 1.0, length)


def rows(x_BX: Tensor) -> Tensor:
    """One vector a sample, [B, D], in at least float32."""
    return widened(x_BX).flatten(1)


def distances(x_BD: Tensor) -> Tensor:
    """Euclidean distances between all samples, [B, B]: exactly 0 (with gradient 0) between equal ones.

    Taken from differences, not from |a|² + |b|² − 2ab, which loses near neighbours to rounding.
    """
    return torch.cdist(x_BD, x_BD, compute_mode="donot_use_mm_for_euclid_dist")


def products(a_BD: Tensor, b_KD: Tensor) -> Tensor:
    """All inner products a·bᵀ, [..., B, K], in full precision: autocast would round matrix products to half."""
    dtype = torch.promote_types(a_BD.dtype, b_KD.dtype)
    if not torch.is_autocast_enabled(a_BD.device.type):
        return a_BD.to(dtype) @ b_KD.to(dtype).mT
    with torch.autocast(a_BD.device.type, enabled=False):
        return a_BD.to(dtype) @ b_KD.to(dtype).mT


def pearson_distance(a: Tensor, b: Tensor, dim: int = -1) -> Tensor:
    """1 − Pearson's correlation along `dim`: 0 where both sides are constant, 1 where only one is."""
    sides = []
    for x in (a, b):
        centred = x - x.mean(dim, keepdim=True)
        length = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
        sides.append((centred / torch.where(length == 0, 1.0, length), length.squeeze(dim) == 0))
    (first, flat), (second, still) = sides
    return torch.where(flat & still, 0.0, 1 - (first * second).sum(dim))
