"""Which of the teacher's blocks each block of the student starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.transfer.stacks import evenly, look

__all__ = ["DEPTHS", "Depths", "Match", "match_blocks"]

Depths = str | Sequence[int] | Mapping[Any, Any]
Search = Callable[["Match", int], Sequence[int]]
DEPTHS = ("even", "first_last", "every_other", "average", "search")


@dataclass(frozen=True)
class Match:
    """A stack of blocks of both models.

    Attributes:
        path: of the container in the student.
        origin: of the container in the teacher.
        names: the names of the student's blocks in it, in order.
        origins: the names of the teacher's.
        sources: for each block of the student, the positions among `origins` that it starts from; several are averaged.
    """

    path: str
    origin: str
    names: tuple[str, ...]
    origins: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...] = ()


def match_blocks(
    student: nn.Module, teacher: nn.Module, depth: Depths, *, rename: Callable[[str], str], search: Search
) -> list[Match]:
    """For every container that both have, runs of alike blocks matched one to one, and which block starts from which.

    Args:
        student: which has as many runs in a container as the teacher, each with any number of blocks.
        teacher: whose containers are looked up under the student's path.
        depth: one of `DEPTHS`; the teacher's number for each block of the student (a list, or a mapping); or that by
            path of the container.
        rename: the teacher's path for a path of the student.
        search: chooses so many blocks of a match.

    Raises:
        ConfigError: the map names a container or block that is not there, or the word does not suit the numbers.
    """
    by_path = isinstance(depth, Mapping) and any(isinstance(key, str) for key in depth)
    found: list[Match] = []
    inside: list[str] = []
    for path, module in student.named_modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList) or any(path.startswith(p) for p in inside):
            continue
        origin = _at(teacher, rename(path))
        if not isinstance(origin, nn.Sequential | nn.ModuleList):
            continue
        for match in _runs(path, module, rename(path), origin):
            inside += [f"{path}.{name}." for name in match.names]
            own: Any = depth.get(path, "even") if by_path else depth  # type: ignore[union-attr]
            sources = _sources(match, own, search)
            found.append(Match(match.path, match.origin, match.names, match.origins, sources))
    if by_path:
        for path in depth:
            if path not in {match.path for match in found}:
                mend = nearest(str(path), [match.path for match in found])
                raise ConfigError(problem("inherit.depth", f"the student has no stack of blocks {path!r}", mend))
    return found


def _at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _runs(path: str, ours: nn.Module, origin: str, theirs: nn.Module) -> list[Match]:
    """Runs of blocks with the same look, where both have as many; a run of one block each is matched by its name."""
    holes = {
        name
        for name, child in ours._modules.items()
        if look(child) is None and name in theirs._modules and look(theirs._modules[name]) is not None
    }
    own, other = _segments(ours, holes), _segments(theirs, set())
    if len(own) != len(other):
        return []
    pairs = [(a, b) for a, b in zip(own, other, strict=True) if len(a) > 1 or len(b) > 1]
    return [Match(path, origin, tuple(a), tuple(b)) for a, b in pairs]


def _segments(container: nn.Module, holes: set[str]) -> list[list[str]]:
    runs: list[list[str]] = []
    last: object = None
    for name, child in container._modules.items():
        if name in holes:
            continue
        own = look(child)
        if own is not None and own == last:
            runs[-1].append(name)
        else:
            runs.append([name])
        last = own
    return runs


def _sources(match: Match, depth: Any, search: Search) -> tuple[tuple[int, ...], ...]:
    count, total = len(match.names), len(match.origins)
    if isinstance(depth, Mapping | Sequence) and not isinstance(depth, str):
        return _given(match, depth)
    if depth not in DEPTHS:
        wrong = f"{depth!r} is no choice of blocks"
        mend = f"choose from {', '.join(DEPTHS)}, or give the teacher's block for each of the student's"
        raise ConfigError(problem("inherit.depth", wrong, mend))
    if count == total:
        return tuple((at,) for at in range(total))
    if count > total:
        return tuple((at * total // count,) for at in range(count))  # each of the teacher's several times
    if depth == "average":
        edges = [math.floor(at * total / count + 1e-9) for at in range(count + 1)]
        return tuple(tuple(range(a, b)) for a, b in pairwise(edges))
    if depth == "first_last":
        front = (count + 1) // 2
        chosen = [*range(front), *range(total - (count - front), total)]
    elif depth == "every_other":
        chosen = [2 * at for at in range(count)]
        if chosen[-1] >= total:
            wrong = f"every other of {total} blocks at {match.origin!r} is {(total + 1) // 2}; the student has {count}"
            raise ConfigError(problem("inherit.depth", wrong, 'use "even"'))
    else:
        chosen = list(search(match, count)) if depth == "search" else evenly(total, count)
    return tuple((at,) for at in chosen)


def _given(match: Match, depth: Any) -> tuple[tuple[int, ...], ...]:
    count, total = len(match.names), len(match.origins)
    wanted = [depth.get(at) for at in range(count)] if isinstance(depth, Mapping) else list(depth)
    extra = isinstance(depth, Mapping) and set(depth) - set(range(count))
    if len(wanted) != count or extra or None in wanted:
        wrong = f"the map is for {len(depth)} blocks, and {match.path!r} of the student has {count}"
        mend = "give the teacher's block for each; where stacks differ, by path: {'path': [0, 2]}"
        raise ConfigError(problem("inherit.depth", wrong, mend))
    sources = [tuple(at) if isinstance(at, list | tuple) else (at,) for at in wanted]
    for at in (at for source in sources for at in source):
        if type(at) is not int or not 0 <= at < total:
            wrong = f"the teacher has no block {at!r} at {match.origin!r}, it has {total}"
            raise ConfigError(problem("inherit.depth", wrong, f"give numbers from 0 to {total - 1}"))
    return tuple(sources)
