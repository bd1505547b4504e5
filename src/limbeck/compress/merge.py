"""Layers that amount to one, made one; and several checkpoints averaged to one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.compress.base import EDITS, Change, Evidence, Left, edit
from limbeck.compress.places import CONVS, look, places
from limbeck.core.errors import CheckpointError, ConfigError, ShapeError, problem
from limbeck.core.fold import Chain, Pair, fold
from limbeck.core.setting import setting
from limbeck.core.surgery import find, replace, run

__all__ = ["Merge", "average"]

_ONES = {"kernel_size": 1, "stride": 1, "dilation": 1}


@setting
class Merge:
    """Merge layers that follow each other with nothing between. Lossless in evaluation mode, but for rounding.

    Merged are a batch norm into the convolution or linear layer before it, a linear layer into the next, and a 1×1
    convolution into the next or the last before it, where the borders allow it. Which layer's answer goes to the other
    alone is found by a dry run. Two layers that weigh less than the one they would become, as a bottleneck does, stay
    two. A batch norm that is merged no longer follows the data in training.

    Attributes:
        what: which of these are merged.
        include: patterns of paths of the earlier layer; `*` stands for anything.
        exclude: patterns of paths of the earlier layer to leave alone.

    Source: Ioffe & Szegedy 2015 section 3.1 (an inference-time batch norm is one linear map); Ding et al. 2021,
    "Diverse branch block", section 3.2, transform III (a 1×1 and a k×k convolution in a row are one).
    """

    kind: Literal["merge"] = "merge"
    what: tuple[Literal["norm", "linear", "conv"], ...] = ("norm", "linear", "conv")
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    needs: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[frozenset[str]] = frozenset(
        {"prune", "depth", "merge_units", "vocabulary", "features", "bake", "factorize"}
    )

    def changes(self, model: nn.Module, evidence: Evidence) -> tuple[Sequence[Change], Sequence[Left]]:
        """One edit a merger, in the order that they are made in."""
        kinds = {type(m) for m in model.modules()}
        found = places(model, kinds, include=self.include, exclude=self.exclude, where="merge.include")
        chosen = {path for path, _ in found}
        trial = copy.deepcopy(model)
        changes: list[Change] = []
        why: dict[str, str] = {}
        while True:
            seen = look(trial, evidence)
            change = self._next(trial, seen.pairs, [c for c in seen.chains if c.first in chosen], chosen, why)
            if change is None:
                break
            changes.append(change)
            with torch.no_grad():
                run(EDITS, change.edit, trial, change.at, change.detail)
        merged = {change.at for change in changes}
        return changes, [Left(at=path, why=said) for path, said in why.items() if path not in merged]

    def _next(
        self,
        model: nn.Module,
        pairs: Sequence[Pair],
        chains: Sequence[Chain],
        chosen: set[str],
        why: dict[str, str],
    ) -> Change | None:
        for pair in pairs:
            if "norm" in self.what and pair.layer in chosen:
                return Change(edit="fold_norm", at=pair.layer, detail={"norm": pair.norm})
        for chain in chains:
            first, second = find(model, chain.first), find(model, chain.second)
            if type(first) is nn.Linear and type(second) is nn.Linear and "linear" in self.what:
                said = _growth(first, second)
                name = "merge_linear"
            elif type(first) is type(second) and isinstance(first, CONVS) and "conv" in self.what:
                said = _against(first, second) or _growth(first, second)
                name = "merge_conv"
            else:
                continue
            if not said:
                return Change(edit=name, at=chain.first, detail={"into": chain.second})
            why[chain.first] = said
        return None


@edit("fold_norm")
def _fold_norm(model: nn.Module, at: str, *, norm: str) -> None:
    find(model, at)
    find(model, norm)
    fold(model, [Pair(at, norm)])
    replace(model, norm, nn.Identity())  # what is left of it would count as parameters that nothing reads


@edit("merge_linear")
def _merge_linear(model: nn.Module, at: str, *, into: str) -> None:
    first, second = find(model, at), find(model, into)
    weight, bias = _joined(first, second, _double(second.weight) @ _double(first.weight))
    merged = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    replace(model, into, _fill(merged, weight, bias, second.weight))
    replace(model, at, nn.Identity())


@edit("merge_conv")
def _merge_conv(model: nn.Module, at: str, *, into: str) -> None:
    first: Any = find(model, at)
    second: Any = find(model, into)
    before, after = _double(first.weight), _double(second.weight)
    geometric = second if _pointwise(first) else first
    if geometric is second:
        product = torch.einsum("oc...,ci->oi...", after, before.flatten(1))
    else:
        product = torch.einsum("oc,ci...->oi...", after.flatten(1), before)
    weight, bias = _joined(first, second, product)
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    geometry = {name: getattr(geometric, name) for name in names}
    merged = type(first)(first.in_channels, second.out_channels, **geometry, bias=bias is not None, device="meta")
    replace(model, into, _fill(merged, weight, bias, second.weight))
    replace(model, at, nn.Identity())


def _joined(first: nn.Module, second: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight, and the bias of both: the second's, and what it makes of the first's at every position."""
    bias = _double(second.bias) if isinstance(second.bias, Tensor) else None
    if isinstance(first.bias, Tensor):
        through = _double(second.weight).flatten(2).sum(2) if isinstance(second, CONVS) else _double(second.weight)
        bias = through @ _double(first.bias) + (0 if bias is None else bias)
    return weight, bias


def _fill(merged: nn.Module, weight: Tensor, bias: Tensor | None, old: Any) -> nn.Module:
    """The merged layer with these values, in the type of the old weight, learning where that did."""
    merged.weight = nn.Parameter(weight.to(old.dtype).contiguous(), requires_grad=old.requires_grad)
    if bias is not None:
        merged.bias = nn.Parameter(bias.to(old.dtype), requires_grad=old.requires_grad)
    return merged


def _growth(first: nn.Module, second: nn.Module) -> str:
    """Why the two had better stay two, or nothing."""
    a, b = _double(first.weight), _double(second.weight)
    kernel = max(a[0, 0].numel(), b[0, 0].numel())
    return "apart the two weigh less than as one" if len(b) * a.shape[1] * kernel > a.numel() + b.numel() else ""


def _against(first: Any, second: Any) -> str:
    """Why two convolutions are not exactly one, or nothing."""
    if first.groups != 1 or second.groups != 1:
        return "one of the two convolutions is grouped"
    if _pointwise(second):
        return ""
    if not _pointwise(first):
        return "neither of the two convolutions is 1×1"
    padded = second.padding == "same" or (second.padding != "valid" and any(second.padding))
    if first.bias is not None and padded and second.padding_mode == "zeros":
        return "its bias is missing from the zeros that the next convolution is padded with"
    return ""


def _pointwise(layer: Any) -> bool:
    sizes = all(set(getattr(layer, name)) == {value} for name, value in _ONES.items())
    return sizes and layer.padding in ("valid", "same", (0,) * len(layer.kernel_size))


def _double(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach().double()


def average(
    states: Sequence[str | Path | Mapping[str, Tensor]], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The weighted mean of checkpoints of one architecture, as a state dict to load.

    Each is a path of a safetensors file, a folder with `model.safetensors`, or a state dict. Weights are made to sum to
    one; None weighs all alike. Floats are averaged in float64 and keep the type of the first. Of whole numbers, a count
    (a single number, as a batch norm's) is the largest, and tables must be the same in all.

    It pays for checkpoints of one run, or fine-tuned from the same weights. The statistics of batch norms do not
    average to those of the averaged weights: pass some data through in training mode afterwards.

    Raises:
        ConfigError: there is no checkpoint, or the weights do not fit.
        CheckpointError: a file cannot be read.
        ShapeError: names or shapes differ, or whole numbers do.

    Source: Izmailov et al. 2018 (SWA), algorithm 1; Wortsman et al. 2022, "Model soups", section 2 (the uniform soup).
    """
    if not states:
        raise ConfigError(problem("average", "there is no checkpoint", "give one or more"))
    shares = [1.0] * len(states) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(states) or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        wrong = f"{len(states)} checkpoints have the weights {shares}"
        raise ConfigError(problem("average.weights", wrong, "give each a number from 0 on, not all of them 0"))
    total = sum(shares)
    mean: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for index, (given, share) in enumerate(zip(states, shares, strict=True)):
        state = _read(given)
        if index:
            _check_alike(mean, state, index)
        for name, value in state.items():
            if not index:
                kinds[name] = value.dtype
            if kinds[name].is_floating_point:
                mean[name] = mean.get(name, 0) + value.detach().double() * (share / total)
            else:
                mean[name] = _whole(name, mean.get(name), value, index)
    return {name: value.to(kinds[name]) for name, value in mean.items()}


def _read(given: str | Path | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(given, Mapping):
        return given
    path = Path(given) / "model.safetensors" if Path(given).is_dir() else Path(given)
    try:
        state: Mapping[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        said = str(error).splitlines()[0]
        raise CheckpointError(problem(str(path), f"cannot be read ({said})", "name a safetensors file")) from None
    return state


def _check_alike(mean: Mapping[str, Tensor], state: Mapping[str, Tensor], index: int) -> None:
    for name in (*mean, *state):
        one, other = (tuple(s[name].shape) if name in s else None for s in (mean, state))
        if one != other:
            say = ["missing" if shape is None else str(shape) for shape in (one, other)]
            wrong = f"{name} is {say[0]} in the first checkpoint and {say[1]} in number {index + 1}"
            raise ShapeError(problem("average", wrong, "average checkpoints of one architecture"))


def _whole(name: str, before: Tensor | None, value: Tensor, index: int) -> Tensor:
    if before is None or torch.equal(before, value):
        return value
    if value.numel() == 1 and value.dtype != torch.bool:
        return torch.maximum(before, value)
    wrong = f"{name} holds whole numbers that differ between the first checkpoint and number {index + 1}"
    raise ShapeError(problem("average", wrong, "average before clustering or masking, or bake the models first"))
