"""Weights that share a few values: a codebook that is trained, and an index a weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from limbeck.compress.base import Change, Evidence, Left, edit
from limbeck.compress.kmeans import Floats, kmeans_1d
from limbeck.compress.places import CONVS, places, tied
from limbeck.compress.stored import Shared, kept_by, settle
from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting
from limbeck.core.surgery import find

__all__ = ["Cluster"]


@setting
class Cluster:
    """Let the weights of a layer share `levels` values, found by k-means. Lossy, unless a layer has no more values.

    The codebook becomes the layer's parameter: it is trained, and weights that share a value go on sharing it. Weights
    that are exactly zero stay so, through training too, under an index of their own; so a mask is kept. A file holds
    the codebook and ⌈log₂ levels⌉ bits a weight.

    Attributes:
        levels: values a codebook, the zero among them; 2 to 256.
        per: a codebook for the whole weight, or one for each output channel (row).
        include: patterns of paths to cluster; `*` stands for anything.
        exclude: patterns of paths to leave alone.

    Source: Han, Mao & Dally 2016, "Deep Compression", section 3 (shared weights, whose gradients are summed).
    """

    kind: Literal["cluster"] = "cluster"
    levels: int = 16
    per: Literal["tensor", "channel"] = "tensor"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    needs: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[frozenset[str]] = frozenset(
        {"prune", "depth", "merge_units", "merge", "vocabulary", "features", "bake", "factorize", "mask"}
    )

    def __post_init__(self) -> None:
        """Refuse a codebook that shares nothing, or more than a byte tells apart."""
        if not 2 <= self.levels <= 256:
            raise ConfigError(problem("cluster.levels", f"it is {self.levels}", "give 2 to 256"))

    def changes(self, model: nn.Module, _evidence: Evidence) -> tuple[Sequence[Change], Sequence[Left]]:
        """One edit a layer that a file can hold in fewer bytes."""
        kinds: tuple[type[nn.Module], ...] = (nn.Linear, *CONVS, nn.Embedding)
        found = places(model, kinds, include=self.include, exclude=self.exclude, where="cluster.include")
        owned_twice = tied(model)
        changes: list[Change] = []
        left: list[Left] = []
        for path, layer in found:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            channels = len(weight) if self.per == "channel" else 1
            bits = (self.levels - 1).bit_length()
            packed = channels * self.levels * weight.element_size() + -(-bits * weight.numel() // 8)
            if isinstance(kept_by(layer), Shared):
                left.append(Left(at=path, why="its weights are shared already"))
            elif is_parametrized(layer) and kept_by(layer) is None:
                left.append(Left(at=path, why="it has another parametrisation"))
            elif id(weight) in owned_twice:
                left.append(Left(at=path, why="its weight is tied to another layer's"))
            elif packed >= weight.numel() * weight.element_size():
                left.append(Left(at=path, why="codebook and indices would take no fewer bytes"))
            else:
                zeros = bool((weight == 0).any())
                detail = {"levels": self.levels, "per": self.per, "zeros": zeros}
                changes.append(Change(edit="cluster", at=path, detail=detail))
        return changes, left


@edit("cluster")
def _cluster(model: nn.Module, at: str, *, levels: int, per: str, zeros: bool) -> None:
    layer = find(model, at)
    settle(layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    rows = weight.detach().reshape(len(weight) if per == "channel" else 1, -1)
    if rows.is_meta:
        indices = torch.empty(rows.shape, dtype=torch.uint8, device="meta")
    else:
        # A channel has few values, and there are many channels.
        bins = 512 if len(rows) == 1 else max(128, 2 * levels)
        found = [_indices(row, levels, zeros, bins) for row in rows.double().cpu().numpy()]
        indices = torch.from_numpy(np.stack(found)).to(rows.device)
    keeper = Shared(indices, tuple(weight.shape), levels=levels, zeros=zeros)
    register_parametrization(layer, "weight", keeper, unsafe=True)  # the codebook has another shape


def _indices(row: Floats, levels: int, zeros: bool, bins: int) -> npt.NDArray[np.uint8]:
    """The index of each value's centre [N]; with `zeros`, 0 is for exact zeros and the others are from 1."""
    indices = np.zeros(len(row), dtype=np.uint8)
    taken = row != 0 if zeros else np.ones(len(row), dtype=bool)
    if taken.any():
        centres = kmeans_1d(row[taken], levels - zeros, bins=bins)
        indices[taken] = np.searchsorted((centres[1:] + centres[:-1]) / 2, row[taken]) + zeros
    return indices
