"""Join units that say nearly the same, instead of dropping one: who read the one now reads the other."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.compress.base import Change, Evidence, Left, edit, edited
from limbeck.compress.readers import hear, readers_of
from limbeck.compress.units import as_left, caller, changes_for, coupled, selected
from limbeck.core.check import whole
from limbeck.core.coupling import Coupling, Group, Place
from limbeck.core.errors import ConfigError, problem
from limbeck.core.proof import TOLERANCE
from limbeck.core.setting import setting
from limbeck.core.shapes import knows_shape
from limbeck.core.surgery import find, tensor_at
from limbeck.core.tracing import tensors_in

__all__ = ["Heard", "MergeUnits", "fit", "pairs"]


@edit("join")
def _join(
    model: nn.Module,
    at: str,
    *,
    dim: int,
    into: Sequence[int],
    gone: Sequence[int],
    values: Mapping[str, Any] | None = None,
) -> None:
    """weight[into] += scale · weight[gone] along `dim`, and bias += weight[gone] · shift; shapes stay."""
    if values is None:  # the sums come from a file
        return
    weight = tensor_at(model, at)
    scale, shift = (torch.tensor(values[key], device=weight.device, dtype=weight.dtype) for key in ("scale", "shift"))
    columns = weight.index_select(dim, torch.tensor(list(gone), device=weight.device))
    if values["bias"] is not None:
        read = columns.movedim(dim, 0).reshape(*columns.movedim(dim, 0).shape[:2], -1).sum(-1)
        tensor_at(model, values["bias"]).add_(shift @ read)
    factor = scale.view([-1 if at_dim == dim else 1 for at_dim in range(weight.dim())])
    weight.index_add_(dim, torch.tensor(list(into), device=weight.device), columns * factor)


@setting
class MergeUnits:
    """Join similar units. Unit j goes, and where it was read, a multiple of unit i, plus a constant, is read instead.

    The multiple and the constant are the least-squares fit on real data, for every reader its own; the constant only
    where the reader has a bias. Exact duplicates are joined without any change of the answers.

    Attributes:
        ratio: share of every group's units that go, rounded down.
        minimum: units that every group keeps.
        include: patterns of layers (as in `layer1.*`) whose units may go.
        exclude: patterns of layers whose units stay, even if included.

    Raises:
        ConfigError: a number is out of range, or, when it is planned, a pattern fits no layer.
    """

    kind: Literal["merge_units"] = "merge_units"
    ratio: float = 0.25
    minimum: int = 1
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    needs: ClassVar[frozenset[str]] = frozenset({"data"})
    follows: ClassVar[frozenset[str]] = frozenset(
        {"bake", "depth", "factorize", "features", "merge", "merge_units", "prune", "vocabulary"}
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        whole("merge_units.minimum", self.minimum)
        if not 0 <= self.ratio <= 1:
            raise ConfigError(problem("merge_units.ratio", f"{self.ratio!r} is no share", "give a number from 0 to 1"))

    def changes(self, model: nn.Module, evidence: Evidence) -> tuple[Sequence[Change], Sequence[Left]]:
        """The sums, then the cuts; and what stays as it is."""
        coupling = coupled(model, evidence)
        groups, left = selected(model, self.kind, coupling.groups, self.include, self.exclude)
        left += as_left(coupling.left)
        able = []
        for group in groups:
            why = _why_not(model, coupling, group, evidence)
            if why is None:
                able.append(group)
            else:
                left.append(Left(at=group.name, why=why))
        heard = _listen(model, evidence, able)
        joins: list[Change] = []
        removed: dict[str, list[int]] = {}
        for group in able:
            count = len(group.units)
            wanted = min(math.floor(self.ratio * count + 1e-9), max(0, count - self.minimum), count - 1)
            known = {place: heard[group.name, place] for place in group.index if (group.name, place) in heard}
            if not known:
                left.append(Left(at=group.name, why="no layer was heard to read its units"))
            elif wanted:
                found = pairs(_costs(model, group, known), wanted)
                joins += _joins(model, group, known, found)
                removed[group.name] = sorted(gone for gone, _ in found)
        return [*joins, *changes_for(model, coupling, removed)], left


@dataclass
class Heard:
    """Sums over what a reader heard of U units of K indices each: of products [U, U], of themselves [U, K]."""

    products: Tensor
    sums: Tensor
    count: int = 0
    constant: bool = True
    """Whether the reader can add a constant."""


def fit(heard: Heard) -> tuple[Tensor, Tensor]:
    """The best multiple of unit i in the place of unit j, and the mean square that it misses: both [j, i].

    With a constant, a = cov(i, j) / var(i) and what is missed is var(j) - cov(i, j)^2 / var(i); without one the same
    of the raw second moments. A unit that never varies is met by the constant alone.
    """
    mean = heard.sums / heard.count
    moments = heard.products / heard.count - (mean @ mean.T if heard.constant else 0)
    power = moments.diagonal().clamp_min(0)
    floor = 1e-7 * (heard.products.diagonal() / heard.count).clamp_min(1e-30)
    scale = torch.where(power > floor, moments / power.clamp_min(1e-30), torch.zeros(()).to(moments))
    missed = (power[:, None] - scale * moments).clamp_min(0)
    return scale, missed


def pairs(costs: Tensor, count: int) -> list[tuple[int, int]]:
    """At most so many pairs (gone, into), the cheapest first; no unit that goes is joined into, and none goes twice.

    Args:
        costs: of putting unit i in the place of unit j, [j, i].
        count: how many units go.
    """
    free = costs.clone().fill_diagonal_(float("inf"))
    total = len(costs)
    found: list[tuple[int, int]] = []
    gone: set[int] = set()
    into: set[int] = set()
    for flat in free.flatten().argsort(stable=True).tolist():
        j, i = divmod(flat, total)
        if len(found) == count or i == j:
            break
        if j not in gone and j not in into and i not in gone:
            found.append((j, i))
            gone.add(j)
            into.add(i)
    return found


def _listen(model: nn.Module, evidence: Evidence, groups: Sequence[Group]) -> dict[tuple[str, Place], Heard]:
    """What every reader hears of every group; after a concatenation, several groups are read at one place."""
    heard: dict[tuple[str, Place], Heard] = {}
    wanted: dict[str, list[tuple[str, Place, Tensor]]] = {}
    layers: dict[str, nn.Module] = {}
    for group in groups:
        for place, layer in readers_of(model, group).items():
            layers[place.tensor] = layer
            wanted.setdefault(place.tensor, []).append((group.name, place, torch.tensor(group.index[place])))

    def take(name: str, read: Tensor) -> None:
        for group, place, index in wanted[name]:
            units = read[index.to(read.device)].double()
            products = torch.einsum("ukn,vkn->uv", units, units)
            known = heard.setdefault((group, place), Heard(torch.zeros_like(products), torch.zeros_like(units[..., 0])))
            known.constant = getattr(layers[name], "bias", None) is not None
            known.products += products
            known.sums += units.sum(-1)
            known.count += units.shape[-1]

    hear(model, evidence, layers, take)
    return heard


def _costs(model: nn.Module, group: Group, heard: Mapping[Place, Heard]) -> Tensor:
    """What the readers would miss, weighed by how strongly they read the unit that goes."""
    total = torch.zeros(len(group.units), len(group.units), dtype=torch.float64)
    for place, known in heard.items():
        weight = tensor_at(model, place.tensor).detach().double().movedim(place.dim, 0).flatten(1).square().sum(1)
        strength = torch.stack([weight[list(unit)].mean() for unit in group.index[place]])
        total += (strength[:, None] * fit(known)[1]).cpu()
    return total


def _joins(
    model: nn.Module, group: Group, heard: Mapping[Place, Heard], found: Sequence[tuple[int, int]]
) -> list[Change]:
    """The sums at every place where the units are read. A recurrent weight, unheard, follows another reader."""
    changes = []
    usual = fit(next(iter(heard.values())))[0]
    for place in _reads(model, group):
        known = heard.get(place)
        scale = usual if known is None else fit(known)[0]
        gone = [index for j, _ in found for index in group.index[place][j]]
        into = [index for _, i in found for index in group.index[place][i]]
        values: dict[str, Any] = {
            "scale": [float(scale[j, i]) for j, i in found for _ in group.index[place][j]],
            "shift": [],
            "bias": None,
        }
        if known is not None and known.constant:
            mean = known.sums / known.count
            values["bias"] = f"{place.tensor.removesuffix('weight')}bias"
            values["shift"] = [x for j, i in found for x in (mean[j] - scale[j, i] * mean[i]).tolist()]
        detail = {"dim": place.dim, "into": into, "gone": gone, "values": values}
        changes.append(Change(edit="join", at=place.tensor, detail=detail))
    return changes


def _reads(model: nn.Module, group: Group) -> list[Place]:
    """The places where a sum over the units is taken."""
    readers = readers_of(model, group)
    return [p for p in group.index if p in readers or (p.dim == 1 and _owner_is_recurrent(model, p))]


def _owner_is_recurrent(model: nn.Module, place: Place) -> bool:
    return isinstance(find(model, place.tensor.rpartition(".")[0]), nn.RNNBase | nn.RNNCellBase)


def _why_not(model: nn.Module, coupling: Coupling, group: Group, evidence: Evidence) -> str | None:
    """Why units of a group cannot be joined; None where a duplicate can be, shown on real samples."""
    if any(len(set(map(len, index))) > 1 for index in group.index.values()):
        return "its units are not of equal size"
    if not all(knows_shape(find(model, place.tensor.rpartition(".")[0])) for place in group.index):
        return "a layer of the network's own reads or makes its units"
    reads = _reads(model, group)
    if not reads:
        return "no linear layer or convolution reads its units"
    double = copy.deepcopy(model)
    with torch.no_grad():
        for place, index in group.index.items():
            if place not in reads:
                tensor = tensor_at(double, place.tensor)
                of = [torch.tensor(index[unit], device=tensor.device) for unit in (0, 1)]
                tensor.index_copy_(place.dim, of[1], tensor.index_select(place.dim, of[0]))
        changes = []
        for place in reads:
            into, gone = group.index[place][:2]
            values = {"scale": [1.0] * len(into), "shift": [], "bias": None}
            detail = {"dim": place.dim, "into": into, "gone": gone, "values": values}
            changes.append(Change(edit="join", at=place.tensor, detail=detail))
        merged = edited(double, [*changes, *changes_for(double, coupling, {group.name: [1]})])
        call = caller(evidence)
        for a, b in zip(tensors_in(call(merged)), tensors_in(call(double)), strict=True):
            if float((a - b).abs().max() / b.abs().max().clamp_min(1)) > TOLERANCE:
                return "its units are not only read by sums: joined duplicates change the answers"
    return None
