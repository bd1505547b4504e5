"""Single weights set to zero and held there: by size, by size times input, or so many in each group of so many."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from limbeck.compress.base import Change, Evidence, Left, edit
from limbeck.compress.places import CONVS, places, tied, watched
from limbeck.compress.stored import Masked, kept_by, settle
from limbeck.compress.values import pack_values, unpack_values
from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting
from limbeck.core.surgery import find

__all__ = ["Mask", "input_norms"]


@setting
class Mask:
    """Set the least important single weights to zero, and hold them there while the rest trains on. Lossy.

    Neither parameters nor multiply-accumulates fall: what falls is the file, which holds the other weights and one bit
    each. `Bake` makes the zeros plain.

    Attributes:
        sparsity: the share of weights to set to zero, from 0 to below 1. Weights that are zero already count.
        pattern: "N:M" instead: of each M neighbours along the inputs, N are kept.
        by: a weight's importance is its size, or its size times the norm of its input on the data (which then is
            needed), compared within a row. Of a convolution the norm is that of the input channel.
        scope: what is compared with `by="magnitude"`: the weights of one layer, or of all layers together.
        include: patterns of paths to mask; `*` stands for anything.
        exclude: patterns of paths to leave alone.

    Source: Han et al. 2015 (magnitude, with retraining); Sun et al. 2024, "A simple and effective pruning approach for
    large language models" (Wanda), section 3, equation 1 and the comparison by output; Zhou et al. 2021 (N:M).
    """

    kind: Literal["mask"] = "mask"
    sparsity: float | None = None
    pattern: str | None = None
    by: Literal["magnitude", "inputs"] = "magnitude"
    scope: Literal["layer", "global"] = "layer"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    follows: ClassVar[frozenset[str]] = frozenset(
        {"prune", "depth", "merge_units", "merge", "vocabulary", "features", "bake", "factorize", "mask"}
    )

    def __post_init__(self) -> None:
        """Refuse what says nothing, two things or something impossible."""
        if (self.sparsity is None) == (self.pattern is None):
            wrong = "sparsity and pattern are both given" if self.pattern else "neither sparsity nor pattern is given"
            raise ConfigError(problem("mask", wrong, "give one of them"))
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ConfigError(problem("mask.sparsity", f"it is {self.sparsity}", "give a share from 0 to below 1"))
        if self.pattern is not None:
            _groups(self.pattern)
        if self.scope == "global" and (self.pattern or self.by == "inputs"):
            wrong = 'scope="global" compares weights of all layers, and this compares within rows or groups'
            raise ConfigError(problem("mask", wrong, 'leave out `scope`, or use `sparsity` by="magnitude"'))

    @property
    def needs(self) -> frozenset[str]:
        """Data, where inputs are read."""
        return frozenset({"data"}) if self.by == "inputs" else frozenset()

    def changes(self, model: nn.Module, evidence: Evidence) -> tuple[Sequence[Change], Sequence[Left]]:
        """One edit a layer."""
        if self.sparsity == 0:
            return (), ()
        found = places(model, (nn.Linear, *CONVS), include=self.include, exclude=self.exclude, where="mask.include")
        owned_twice = tied(model)
        left: list[Left] = []
        taken: list[tuple[str, nn.Module]] = []
        for path, layer in found:
            why = self._against(layer, owned_twice)
            if why:
                left.append(Left(at=path, why=why))
            else:
                taken.append((path, layer))
        norms = input_norms(model, taken, evidence) if self.by == "inputs" else {}
        if norms.keys() != dict(taken).keys() and self.by == "inputs":
            left += [Left(at=path, why="no batch reached it") for path, _ in taken if path not in norms]
            taken = [(path, layer) for path, layer in taken if path in norms]
        details = [self._detail(layer, norms.get(path)) for path, layer in taken]
        if self.scope == "global" and taken:
            for detail, keep in zip(details, _spread([layer for _, layer in taken], self.sparsity or 0), strict=True):
                detail["keep"] = keep
        return [Change(edit="mask", at=p, detail=d) for (p, _), d in zip(taken, details, strict=True)], left

    def _against(self, layer: nn.Module, owned_twice: set[int]) -> str:
        """Why this layer is left alone, or nothing."""
        keeper = kept_by(layer)
        if is_parametrized(layer) and not isinstance(keeper, Masked):
            return "its weights are shared" if keeper else "it has another parametrisation"
        if id(layer.weight) in owned_twice:
            return "its weight is tied to another layer's"
        if self.pattern and _weight(layer).shape[1] % _groups(self.pattern)[1]:
            return f"its {_weight(layer).shape[1]} inputs do not part into groups of {_groups(self.pattern)[1]}"
        return ""

    def _detail(self, layer: nn.Module, norms: Tensor | None) -> dict[str, Any]:
        weight = _weight(layer)
        detail: dict[str, Any]
        if self.pattern:
            detail = {"groups": list(_groups(self.pattern))}
        elif self.by == "inputs":
            size = weight[0].numel()
            detail = {"keep_row": size - int((self.sparsity or 0) * size)}
        else:
            detail = {"keep": weight.numel() - int((self.sparsity or 0) * weight.numel())}
        return detail if norms is None else {**detail, "values": pack_values(norms)}


def input_norms(model: nn.Module, layers: Sequence[tuple[str, nn.Module]], evidence: Evidence) -> dict[str, Tensor]:
    """The Euclidean norm [n] of each input feature or channel of each layer over all the data, summed in float64."""
    sums: dict[str, Tensor] = {}

    def see(path: str, layer: nn.Module, x: Tensor | None, _output: Any) -> None:
        if x is not None:
            rows = x.detach().double()
            rows = rows if isinstance(layer, nn.Linear) else rows.movedim(1 - _weight(layer).dim(), -1)
            sums[path] = sums.get(path, 0) + rows.flatten(0, -2).square().sum(0)

    assert evidence.batches is not None
    reader = evidence.reader(model)
    with torch.no_grad(), watched(layers, see):
        for batch in evidence.batches():
            reader(batch)
    return {path: total.sqrt() for path, total in sums.items()}


@edit("mask")
def _mask(
    model: nn.Module,
    at: str,
    *,
    keep: int | None = None,
    keep_row: int | None = None,
    groups: Sequence[int] | None = None,
    values: Any = None,
) -> None:
    layer = find(model, at)
    settle(layer)
    weight = _weight(layer)
    if weight.is_meta:
        mask = torch.empty(weight.shape, dtype=torch.bool, device="meta")
    else:
        score = weight.abs().double()
        if values is not None:
            norms = unpack_values(values, at).to(score)
            score = score * _per_input(norms, layer)[(..., *[None] * (score.dim() - 2))]
        if groups is not None:
            # Groups run along the inputs, which of a convolution are channels at one kernel position.
            along = score.movedim(1, -1)
            mask = _top(along.reshape(-1, groups[1]), groups[0]).view(along.shape).movedim(-1, 1).contiguous()
        elif keep_row is not None:
            mask = _top(score.flatten(1), keep_row).view(score.shape)
        else:
            mask = _top(score.reshape(1, -1), keep or 0).view(score.shape)
    register_parametrization(layer, "weight", Masked(mask))


def _per_input(norms: Tensor, layer: nn.Module) -> Tensor:
    """The norms that each output's inputs have [m, inputs]: of a grouped convolution, those of its group."""
    groups: int = getattr(layer, "groups", 1)
    return norms.view(groups, -1).repeat_interleave(len(_weight(layer)) // groups, 0)


def _top(score: Tensor, keep: int) -> Tensor:
    """True at the `keep` largest of each row; of equal ones the first are taken, on every machine."""
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True)


def _spread(layers: Sequence[nn.Module], sparsity: float) -> list[int]:
    """How many weights of each layer are among the largest of all."""
    sizes = [_weight(layer).abs().flatten() for layer in layers]
    every = torch.cat(sizes)
    mask = _top(every[None], every.numel() - int(sparsity * every.numel()))[0]
    return [int(part.sum()) for part in torch.split(mask, [len(size) for size in sizes])]


def _groups(pattern: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    n, m = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < n < m:
        raise ConfigError(problem("mask.pattern", f"{pattern!r} is no pattern", 'write "2:4": 2 kept of each 4'))
    return n, m


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach()
