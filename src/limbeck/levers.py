"""Operations as the levers of a search: in which field their strength is, in what order they go, what a name means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from limbeck.compress import OPS
from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.export.integers import Quantize
from limbeck.search import Budget, Lever

__all__ = ["CHAIN", "Step", "steps"]


class _Kind(NamedTuple):
    """How an operation is pulled: the field of its strength and the most of it; neither where it is taken or not."""

    field: str | None = None
    most: float | None = None
    free: bool = False
    repaired: bool = True


CHAIN: dict[str, _Kind] = {
    "features": _Kind(),
    "vocabulary": _Kind(free=True),
    "depth": _Kind("ratio", 0.75),
    "prune": _Kind("ratio", 0.95),
    "merge_units": _Kind("ratio", 0.9),
    "merge": _Kind(free=True),
    "factorize": _Kind("ratio", 0.95),
    "mask": _Kind("sparsity", 0.98),
    "cluster": _Kind(),
    "quantize": _Kind(repaired=False),
}
"""Every operation that a search can use, in the order in which they go."""


class Step(NamedTuple):
    """An operation and the lever that pulls it."""

    op: Any
    lever: Lever
    rounds: int = 1

    def at(self, strength: float | None) -> Any:
        """The operation at a strength."""
        field = CHAIN[self.op.kind].field
        return self.op if field is None else replace(self.op, **{field: strength, **_UNSET.get(self.op.kind, {})})


_UNSET: dict[str, dict[str, Any]] = {
    "prune": {"macs": None, "parameters": None, "ratios": None, "rounds": 1},
    "depth": {"count": None},
    "factorize": {"rank": None, "energy": None},
    "mask": {"pattern": None},
}
"""Other ways to say how far an operation goes, which a search does not use."""


def steps(ops: Sequence[Any] | None, budget: Budget) -> list[Step]:
    """The chain of a search.

    Args:
        ops: operations, or their names, in any order that the table allows; those given as a setting begin with the
            strength that they state, and those given by name with what the costs ask for. None takes "prune", and
            with a budget of bytes or latency also "quantize".
        budget: what is asked for.

    Raises:
        ConfigError: a name is unknown, an operation is there twice, or one may not follow another.
    """
    if ops is None:
        ops = ("prune", "quantize") if {"bytes", "latency"} & set(budget.costs) else ("prune",)
    if not ops:
        raise ConfigError(problem("ops", "there is none", f"name one of {', '.join(CHAIN)}, or leave it out"))
    chain = [_step(each) for each in ops]
    kinds = [step.op.kind for step in chain]
    for index, step in enumerate(chain):
        if kinds.index(step.op.kind) != index:
            raise ConfigError(problem("ops", f"{step.op.kind!r} is there twice", "name it once; it has rounds"))
        if step.op.kind == "quantize":
            if index + 1 < len(chain):
                mend = "put it last: its result is a file, which nothing else can change"
                raise ConfigError(problem("ops", f"{kinds[index + 1]!r} comes after 'quantize'", mend))
            continue
        for before in kinds[:index]:
            if before not in step.op.follows:
                mend = f"the usual order is {', '.join(name for name in CHAIN if name in kinds)}"
                raise ConfigError(problem("ops", f"{step.op.kind!r} may not follow {before!r}", mend))
    return chain


def _step(given: Any) -> Step:
    table = {**OPS, "quantize": Quantize}
    named = isinstance(given, str)
    kind = given if named else getattr(given, "kind", type(given).__name__)
    if kind not in CHAIN or (not named and type(given) is not table[kind]):
        raise ConfigError(problem("ops", f"no step of a search is called {kind!r}", nearest(str(kind), CHAIN)))
    pulled = CHAIN[kind]
    op = table[kind]() if named else given
    first = None if named or pulled.field is None else getattr(op, pulled.field)
    lever = Lever(name=kind, most=pulled.most, first=first, free=pulled.free, repaired=pulled.repaired)
    return Step(op, lever, getattr(op, "rounds", 1) if kind == "prune" else 1)
