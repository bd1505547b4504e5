"""Which channels, heads and hidden units must be cut together, for any network, and the proof that they may be.

One pass over a real batch proposes groups (see `tracing`). A group is accepted only if, on that batch and with weights
moved so that nothing is zero by chance, the network without some of its units answers as the network in which those
units are silenced: *pruned equals masked*. All else is left whole, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.core.heads import narrow_attention
from limbeck.core.labels import Ids
from limbeck.core.shapes import knows_shape, shape_attributes
from limbeck.core.surgery import Edit, cut, set_attributes, tensor_at
from limbeck.core.tracing import Trace, named_tensors, owners_of, trace

__all__ = ["CUTS", "Count", "Coupling", "Group", "Place", "Step", "Whole", "propose", "silence"]

CUTS: dict[str, Edit] = {"cut": cut, "attributes": set_attributes, "narrow_attention": narrow_attention}
"""The edits that a cut is made of."""

_WORDS = ("head", "dim", "size", "width", "channel", "feature", "hidden", "inner", "embd", "embed", "plane", "group")


class Place(NamedTuple):
    """A dimension of a parameter or buffer."""

    tensor: str
    dim: int


class Step(NamedTuple):
    """An edit of `CUTS`, where, and its settings as plain data."""

    edit: str
    at: str
    detail: dict[str, Any]


class Whole(NamedTuple):
    """What is left whole, and why, in words."""

    at: str
    why: str


class Count(NamedTuple):
    """A number that a module keeps: how many of these units there are. A unit is -1 where it is not cut."""

    at: str
    name: str
    units: tuple[int, ...]

    @property
    def likely(self) -> bool:
        """Whether its name says that it counts units."""
        return any(word in self.name.lower() for word in _WORDS)


@dataclass(frozen=True)
class Group:
    """Units that are made and read at the same places, so that they can be compared and cut one by one.

    Attributes:
        name: the path of the first layer that makes them.
        makers: the paths of the layers that make them.
        units: a number for each, unique in the network.
        index: at each place, the indices of each unit.
    """

    name: str
    makers: tuple[str, ...]
    units: tuple[int, ...]
    index: Mapping[Place, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Coupling:
    """The groups of a network, what is left whole, and the numbers that must follow."""

    groups: tuple[Group, ...]
    left: tuple[Whole, ...]
    counts: tuple[Count, ...] = ()
    norms: bool = False
    """Whether norms run over what is left, so that pruned equals masked only if the masked network's norms do too."""

    def steps(self, model: nn.Module, removed: Mapping[str, Collection[int]]) -> list[Step]:
        """The edits that take units out.

        Args:
            model: as it was when the groups were found.
            removed: for a group's name, the positions of the units that go.
        """
        gone, places = set(), self._places(removed)
        for group in self.groups:
            gone |= {group.units[i] for i in removed.get(group.name, ())}
        shapes = {name: list(tensor.shape) for name, tensor in named_tensors(model).items()}
        cuts, owners, holders = [], set(), owners_of(model)
        for place, indices in places.items():
            width = shapes[place.tensor][place.dim]
            keep = [index for index in range(width) if index not in indices]
            shapes[place.tensor][place.dim] = len(keep)
            cuts.append(Step("cut", place.tensor, {"dim": place.dim, "keep": keep}))
            owners |= holders[place.tensor]
        narrow = [Step("narrow_attention", path, {}) for path in _ordered(model, _attentions(model, owners))]
        return [*narrow, *cuts, *self._attributes(model, shapes, owners, gone)]

    def _places(self, removed: Mapping[str, Collection[int]]) -> dict[Place, set[int]]:
        places: dict[Place, set[int]] = {}
        for group in self.groups:
            for place, index in group.index.items():
                for unit in removed.get(group.name, ()):
                    places.setdefault(place, set()).update(index[unit])
        return places

    def _attributes(
        self, model: nn.Module, shapes: Mapping[str, Sequence[int]], owners: set[str], gone: set[int]
    ) -> list[Step]:
        first = {id(tensor): name for name, tensor in named_tensors(model).items()}
        steps = []
        for path in _ordered(model, owners | _attentions(model, owners)):
            module = model.get_submodule(path)
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            old = {name: tuple(tensor.shape) for name, tensor in own if tensor.dim()}
            new = {name: tuple(shapes[first[id(tensor)]]) for name, tensor in own if tensor.dim()}
            values = shape_attributes(module, old, new) or {}
            changed = {name: value for name, value in values.items() if _differs(getattr(module, name), value)}
            if changed:
                steps.append(Step("attributes", path, dict(changed)))
        for count in self.counts:
            left = sum(unit not in gone for unit in count.units)
            if left != len(count.units):
                steps.append(Step("attributes", count.at, {count.name: left}))
        return steps


def silence(model: nn.Module, coupling: Coupling, removed: Mapping[str, Collection[int]]) -> None:
    """Make every parameter of some units zero, in place, so that nothing of them is heard."""
    with torch.no_grad():
        for place, indices in coupling._places(removed).items():
            tensor = tensor_at(model, place.tensor)
            if tensor.is_floating_point():
                tensor.index_fill_(place.dim, torch.tensor(sorted(indices), device=tensor.device), 0)


def propose(
    model: nn.Module, call: Callable[[nn.Module], Any], entering: Iterable[Tensor], *, norms: bool = False
) -> Coupling:
    """The groups that one pass shows, not yet proved, and all counts that might have to follow.

    Args:
        model: in evaluation mode. It is not changed.
        call: runs a model on a real batch and returns what it returned.
        entering: the tensors of that batch.
        norms: whether what a norm runs over may be cut.
    """
    seen = trace(model, call, entering, norms=norms)
    _bind_recurrent(model, seen)
    groups = _groups(model, seen)
    left = [
        Whole(group.name, "it has one unit, or its units hang together") for group in groups if len(group.units) < 2
    ]
    groups = [group for group in groups if len(group.units) > 1]
    return Coupling(tuple(groups), (*_fixed(model, seen), *left), tuple(_counts(model, seen, groups)), norms)


def _groups(model: nn.Module, seen: Trace) -> list[Group]:
    classes: dict[int, dict[Place, list[int]]] = {}
    for name in (name for name in named_tensors(model) if name in seen.places):
        for dim, ids in seen.places[name].items():
            for at, unit in enumerate(seen.labels.roots(ids)):
                classes.setdefault(int(unit), {}).setdefault(Place(name, dim), []).append(at)
    own = dict(model.named_parameters())
    alike: dict[frozenset[Place], list[int]] = {}
    for unit, places in classes.items():
        if seen.labels.why_fixed(unit) is None and any(place.tensor in own for place in places):
            alike.setdefault(frozenset(places), []).append(unit)
    groups: dict[str, Group] = {}
    for units in alike.values():
        index = {place: tuple(tuple(classes[unit][place]) for unit in units) for place in classes[units[0]]}
        makers = _makers(model, seen, index)
        name = makers[0]
        if name in groups:
            name = f"{name}#{sum(other.partition('#')[0] == name for other in groups) + 1}"
        groups[name] = Group(name, makers, tuple(units), index)
    return list(groups.values())


def _makers(model: nn.Module, seen: Trace, places: Collection[Place]) -> tuple[str, ...]:
    """The layers whose weights give the units, and not those that read or rescale them."""
    makers = [place for place in places if _makes(model, seen, place)]
    return tuple(dict.fromkeys(place.tensor.rpartition(".")[0] for place in makers or places))


def _makes(model: nn.Module, seen: Trace, place: Place) -> bool:
    """Whether it is a weight that no product sums over at this dimension; both at once if it is tied."""
    first = int(seen.places[place.tensor][place.dim][0])
    return tensor_at(model, place.tensor).dim() > 1 and (first not in seen.read or place.tensor in seen.tied)


def _fixed(model: nn.Module, seen: Trace) -> list[Whole]:
    """The layers that make units none of which can go."""
    left: dict[str, Whole] = {}
    for name in (name for name in named_tensors(model) if name in seen.places):
        made = [ids for dim, ids in seen.places[name].items() if _makes(model, seen, Place(name, dim))]
        whys = [seen.labels.why_fixed(int(label)) for ids in made for label in ids]
        why = next(filter(None, whys), None)
        if why is not None and None not in whys:
            path = name.rpartition(".")[0]
            left.setdefault(path, Whole(path, why))
    return list(left.values())


def _bind_recurrent(model: nn.Module, seen: Trace) -> None:
    """A recurrent layer has one hidden size: its levels and directions are cut at the same numbers."""
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            for which, dim in (("weight_hh", 1), ("weight_hr", 0), ("weight_hr", 1)):
                _bind(seen, path, [name for name in module._parameters if name.startswith(which)], dim)


def _bind(seen: Trace, path: str, names: Sequence[str], dim: int) -> None:
    found = [seen.places.get(f"{path}.{name}" if path else name, {}).get(dim) for name in names]
    known: list[Ids] = [ids for ids in found if ids is not None]
    for other in known[1:]:
        seen.labels.join(known[0], other)


def _counts(model: nn.Module, seen: Trace, groups: Iterable[Group]) -> list[Count]:
    """The numbers of a module that equal how many units its own code handled."""
    units = {unit for group in groups for unit in group.units}
    counts: dict[Count, None] = {}
    for path, sizes in seen.passed.items():
        module = model.get_submodule(path)
        if knows_shape(module):
            continue
        for name, value in vars(module).items():
            if type(value) is int and value in sizes and not name.startswith("_"):
                for ids in sizes[value]:
                    roots = seen.labels.roots(ids)
                    count = Count(path, name, tuple(int(row[0]) if row[0] in units else -1 for row in roots))
                    if (roots == roots[:, :1]).all() and set(count.units) != {-1}:
                        counts[count] = None
    return sorted(counts, key=lambda count: not count.likely)


def _attentions(model: nn.Module, owners: Iterable[str]) -> set[str]:
    """Of torch's attention layers, those that own a tensor or whose projection does."""
    paths = {path.rpartition(".")[0] if path.endswith("out_proj") else path for path in owners}
    return {path for path in paths if isinstance(model.get_submodule(path), nn.MultiheadAttention)}


def _ordered(model: nn.Module, paths: Collection[str]) -> list[str]:
    return [path for path, _ in model.named_modules() if path in paths]


def _differs(old: Any, new: Any) -> bool:
    return bool(old != new if isinstance(new, int) else list(old) != list(new))
