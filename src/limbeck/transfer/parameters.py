"""A student's first weights from its teacher's: by name, by units that matter, by blocks."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.compress.base import Evidence, edited
from limbeck.compress.criteria import CRITERIA, NEEDS, Criterion
from limbeck.compress.units import changes_for, coupled
from limbeck.core.check import one_of
from limbeck.core.coupling import Group
from limbeck.core.errors import ConfigError, ModelError, nearest, problem
from limbeck.core.seeds import derive
from limbeck.core.still import device_of
from limbeck.core.tracing import named_tensors
from limbeck.data import Batches, as_source
from limbeck.transfer.blocks import Depths, Match, match_blocks
from limbeck.transfer.choose import choose_units, wanted_units
from limbeck.transfer.example import batch_for
from limbeck.transfer.inherited import Inherited
from limbeck.transfer.inherited import Tensor as Row
from limbeck.transfer.project import compact_embeddings, least_squares
from limbeck.transfer.search import least_change

__all__ = ["inherit"]

_READ = 512
"""Samples of the data that are read."""
_WIDTHS = ("importance", "first", "project")


def inherit(
    student: nn.Module,
    teacher: nn.Module,
    *,
    example: Any = None,
    data: Any = None,
    names: Mapping[str, str] | None = None,
    width: Literal["importance", "first", "project"] = "importance",
    criterion: Criterion = "l2",
    depth: Depths = "even",
    embeddings: Literal["slice", "pca"] = "slice",
    seed: int = 0,
) -> Inherited:
    """Carry the teacher's parameters over to a student of the same kind, in place.

    Tensors are matched by name. Where the student is narrower, units are cut from a copy of the teacher with all that
    is coupled to them, the same ones at every place, and heads and the gates of recurrent layers whole; where it is
    shallower, each of its blocks starts from one of the teacher's. The student keeps its type and device, shares
    nothing with the teacher, and the teacher is bit-identical afterwards.

    Args:
        student: what is filled; `shrink` makes one.
        teacher: where from.
        example: a batch as the teacher takes it, as for `shrink`; only needed where widths differ, and found out for
            usual networks.
        data: samples (anything that `distill` trains on) for measures that need data, "project" and "search". The
            first 512 are read.
        names: where names differ, the teacher's name for a pattern of the student's: `{"body.*": "encoder.*"}`.
        width: which units stay: those that matter most by `criterion`, the "first", or those that matter most, with
            what the others said taken over by least squares on `data` ("project").
        criterion: a measure of `limbeck.compress`.
        depth: which blocks each stack starts from: "even" (evenly spaced, first and last among them), "first_last",
            "every_other" (0, 2, 4, …), "average" of as many runs, "search" (blocks leave one by one, always the one
            without which the answers on `data` change least), or a map: the teacher's block, or several to average,
            for each of the student's; or such a map by path of the stack.
        embeddings: "slice" cuts columns as units; "pca" keeps their principal components, where only linear and
            recurrent layers read them.
        seed: of the measure "random".

    Returns:
        What the student has from the teacher, tensor by tensor.

    Raises:
        ConfigError: a setting is unknown, or needs data that is not there.
        ModelError: student and teacher share memory, no tensor fits, or the teacher cannot be called.
    """
    _check(width, criterion, embeddings, depth, data)
    _apart(student, teacher)
    private = copy.deepcopy(teacher).eval()
    evidence = _Evidence(private, example, data, derive(seed, "inherit"))
    rename = _renaming(student, private, names)
    matches = match_blocks(
        student, private, depth, rename=rename, search=lambda m, k: least_change(private, m, k, evidence())
    )
    origins = {name: tuple(_origins(name, rename, matches)) for name in named_tensors(student)}
    carried = _Carried(private)
    if _narrower(student, private, origins):
        carried = _narrowed(student, private, origins, evidence(), width, criterion, embeddings)
    rows, values = _planned(student, carried, origins)
    if not any(row.how != "left" for row in rows):
        raise ModelError(_nothing(student, teacher, rows, carried.notes))
    with torch.no_grad():
        for name, value in values.items():
            named_tensors(student)[name].copy_(value)
    return Inherited(
        tensors=tuple(rows),
        blocks={match.path: match.sources for match in matches},
        units=carried.units,
        notes=tuple(carried.notes),
    )


class _Carried(NamedTuple):
    """The teacher as it is copied from, and what was done to it."""

    model: nn.Module
    units: Mapping[str, tuple[int, ...]] = {}
    notes: Sequence[str] = ()
    changed: Mapping[str, str] = {}
    cut: frozenset[str] = frozenset()


class _Evidence:
    """Made when it is first needed, for a teacher of equal shape needs none."""

    def __init__(self, teacher: nn.Module, example: Any, data: Any, seed: int) -> None:
        self.teacher, self.example, self.data, self.seed = teacher, example, data, seed
        self.made: Evidence | None = None

    def __call__(self) -> Evidence:
        if self.made is None:
            self.made = self._make()
        return self.made

    def _make(self) -> Evidence:
        if self.data is None:
            return Evidence(batch=batch_for(self.teacher, self.example, "inherit.example"), seed=self.seed)
        source = as_source(self.data, where="inherit.data")
        source = source.subset(torch.arange(min(_READ, len(source))))
        device = device_of(self.teacher)

        def batches() -> Iterator[dict[str, Tensor]]:
            for batch in Batches(source, batch_size=min(128, len(source)), shuffle=False).epoch(0):
                yield {name: value.to(device) for name, value in batch.items()}

        first = next(iter(batches()))
        batch = first if self.example is None else batch_for(self.teacher, self.example, "inherit.example")
        return Evidence(batch={**batch, **({"y": first["y"]} if "y" in first else {})}, batches=batches, seed=self.seed)


def _check(width: str, criterion: str, embeddings: str, depth: Depths, data: Any) -> None:
    one_of("inherit.width", width, _WIDTHS)
    one_of("inherit.criterion", criterion, tuple(CRITERIA))
    one_of("inherit.embeddings", embeddings, ("slice", "pca"))
    reads = {
        'width="project"': width == "project",
        'depth="search"': depth == "search",
        f"criterion={criterion!r}": bool(NEEDS.get(criterion)) and width != "first",
    }
    for what, needed in reads.items():
        if needed and data is None:
            raise ConfigError(problem("inherit.data", f"{what} needs samples, and there are none", "give data=(X, y)"))


def _apart(student: nn.Module, teacher: nn.Module) -> None:
    for side, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, nn.Module):
            wrong = f"the {side} is {type(model).__name__}, and parameters are carried between modules"
            raise ModelError(problem("inherit", wrong, "give a torch.nn.Module"))
    own = {tensor.untyped_storage().data_ptr(): name for name, tensor in named_tensors(student).items()}
    for name, tensor in named_tensors(teacher).items():
        if tensor.numel() and (shared := own.get(tensor.untyped_storage().data_ptr())) is not None:
            wrong = f"the student's {shared!r} and the teacher's {name!r} are one piece of memory"
            raise ModelError(problem("inherit", wrong, "give copy.deepcopy(student)"))


def _renaming(student: nn.Module, teacher: nn.Module, names: Mapping[str, str] | None) -> Callable[[str], str]:
    """The teacher's name for one of the student's: of a tensor, or of a module on the way to it."""
    rules = []
    for pattern, origin in (names or {}).items():
        expression = "(.*)".join(re.escape(part) for part in pattern.split("*"))
        if pattern.count("*") < origin.count("*"):
            wrong = f"{origin!r} has more * than {pattern!r}"
            raise ConfigError(problem("inherit.names", wrong, "give each * of the teacher's name one of the student's"))
        rule = re.compile(expression)
        if not any(rule.fullmatch(name) for name in named_tensors(student)):
            mend = nearest(pattern, named_tensors(student))
            raise ConfigError(problem("inherit.names", f"the pattern {pattern!r} fits nothing of the student", mend))
        rules.append((rule, origin))
    known = {*_every(teacher), *(path for path, _ in teacher.named_modules())}

    def rename(name: str) -> str:
        for rule, origin in rules:
            for tail in ("", ".") if name not in named else ("",):  # "body.*" renames the path "body" too
                if found := rule.fullmatch(name + tail):
                    new = _filled(origin, found.groups())
                    return new.removesuffix(".") if tail else new
        return name

    named = named_tensors(student)
    for rule, origin in rules:
        fits = [name for name in named if rule.fullmatch(name)]
        if not any(rename(name) in known for name in fits):
            wrong = f"{fits[0]!r} would come from {rename(fits[0])!r}, which the teacher has not"
            raise ConfigError(problem("inherit.names", wrong, nearest(origin, _every(teacher))))
    return rename


def _filled(pattern: str, parts: Sequence[str]) -> str:
    """The pattern with a part for each of its stars."""
    texts = pattern.split("*")
    return "".join(text + part for text, part in zip(texts, (*parts, ""), strict=False)) if len(texts) > 1 else pattern


def _origins(name: str, rename: Callable[[str], str], matches: Iterable[Match]) -> Iterator[str]:
    """The teacher's tensors that one of the student's is made of."""
    for match in matches:
        prefix = f"{match.path}." if match.path else ""
        block, _, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and block in match.names:
            inner = rename(name).removeprefix(f"{match.origin}." if match.origin else "").partition(".")[2]
            for at in match.sources[match.names.index(block)]:
                yield ".".join(part for part in (match.origin, match.origins[at], inner or rest) if part)
            return
    yield rename(name)


def _every(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor under every name: a tied one under each."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _narrower(student: nn.Module, teacher: nn.Module, origins: Mapping[str, Sequence[str]]) -> bool:
    theirs = _every(teacher)
    return any(
        origin in theirs and theirs[origin].shape != tensor.shape and theirs[origin].dim() == tensor.dim()
        for name, tensor in named_tensors(student).items()
        for origin in origins[name]
    )


def _narrowed(  # noqa: PLR0917 - the settings of `inherit`
    student: nn.Module,
    teacher: nn.Module,
    origins: Mapping[str, Sequence[str]],
    evidence: Evidence,
    width: str,
    criterion: Criterion,
    embeddings: str,
) -> _Carried:
    """The teacher without the units that the student has no room for."""
    coupling = coupled(teacher, evidence)
    first = {id(tensor): name for name, tensor in named_tensors(teacher).items()}
    every, ours = _every(teacher), named_tensors(student)
    heirs: dict[str, list[str]] = {}
    for name, sources in origins.items():
        for origin in sources:
            if origin in every:
                heirs.setdefault(first[id(every[origin])], []).append(name)
    wanted = wanted_units(teacher, coupling, {o: [ours[name] for name in found] for o, found in heirs.items()})

    def alike(group: Group) -> object:
        return frozenset((heir, place.dim) for place in group.index for heir in heirs.get(place.tensor, ())) or group

    measure = None if width == "first" else criterion
    removed, notes = choose_units(teacher, coupling, wanted, by=measure, evidence=evidence, alike=alike)
    changed: dict[str, str] = {}
    if embeddings == "pca":
        turned, said = compact_embeddings(teacher, coupling, removed)
        notes, changed = [*notes, *said], dict.fromkeys(turned, "pca")
    if width == "project":
        changed |= dict.fromkeys(least_squares(teacher, coupling, removed, evidence), "projected")
    units = {
        group.name: tuple(at for at in range(len(group.units)) if at not in set(removed[group.name]))
        for group in coupling.groups
        if group.name in removed
    }
    whole = [f"{left.at}: {left.why}" for left in coupling.left]
    changes = changes_for(teacher, coupling, removed)
    cut = {id(named_tensors(teacher)[change.at]) for change in changes if change.edit == "cut"}
    return _Carried(
        edited(teacher, changes),
        units,
        [*wanted.notes, *notes, *whole],
        changed,
        frozenset(name for name, tensor in every.items() if id(tensor) in cut),
    )


def _planned(
    student: nn.Module, carried: _Carried, origins: Mapping[str, Sequence[str]]
) -> tuple[list[Row], dict[str, Tensor]]:
    """A row for every tensor of the student, and the values of those that come from the teacher."""
    theirs, trained = _every(carried.model), dict(student.named_parameters())
    rows, values = [], {}
    for name, tensor in named_tensors(student).items():
        sources = tuple(origin for origin in origins[name] if origin in theirs)
        found = [theirs[origin] for origin in sources]
        why = ""
        if not found:
            why = f"the teacher has no {origins[name][0]!r}"
        elif any(other.shape != tensor.shape for other in found):
            other = next(other for other in found if other.shape != tensor.shape)
            why = f"it is {tuple(tensor.shape)}, and {tuple(other.shape)} is left of the teacher's"
        how = "left" if why else next((carried.changed[o] for o in sources if o in carried.changed), "")
        how = how or ("averaged" if len(found) > 1 else "sliced" if carried.cut & set(sources) else "copied")
        if not why:
            values[name] = _mean(found)
        rows.append(
            Row(name=name, sources=() if why else sources, how=how, numbers=tensor.numel(),
                parameter=name in trained, why=why)
        )  # fmt: skip
    return rows, values


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].detach()
    if not tensors[0].is_floating_point():
        return tensors[-1].detach()
    return torch.stack([tensor.detach().double() for tensor in tensors]).mean(0)


def _nothing(student: nn.Module, teacher: nn.Module, rows: Sequence[Row], notes: Sequence[str]) -> str:
    first = next(iter(rows), None)
    said = "" if first is None else f" ({first.name}: {first.why})"
    wrong = f"no tensor of this {type(teacher).__name__} fits this {type(student).__name__}{said}"
    if notes:
        wrong += "; " + "; ".join(notes[:3])
    mend = "make the student with limbeck.transfer.shrink(teacher, …), or say which names belong together with names="
    return problem("inherit", wrong, mend)
