"""Drop whole blocks that hardly change what passes through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.compress.base import Change, Evidence, Left, edit, edited
from limbeck.compress.units import caller
from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.core.setting import setting
from limbeck.core.surgery import replace
from limbeck.core.tracing import tensors_in

__all__ = ["Depth", "Skip", "change_of", "why_not"]


class Skip(nn.Identity):
    """Gives back its first argument, whatever else it is called with."""

    def forward(self, x: Tensor, *_args: Any, **_settings: Any) -> Tensor:  # type: ignore[override]
        """The first argument."""
        return x


@edit("identity")
def _identity(model: nn.Module, at: str) -> None:
    replace(model, at, nn.Identity())


@edit("skip")
def _skip(model: nn.Module, at: str) -> None:
    replace(model, at, Skip())


@setting
class Depth:
    """Put an identity in the place of blocks whose output has the shape of their input, the least active first.

    A block is a child of an `nn.Sequential` or `nn.ModuleList` with weights of its own, the outermost of those whose
    shape fits; where patterns are given, any layer that they fit.

    Attributes:
        ratio: share of the blocks that go, rounded down; not used where `count` says how many.
        count: how many go.
        include: patterns of layers that may go.
        exclude: patterns of layers that stay, even if included.

    Raises:
        ConfigError: a number is out of range, or, when it is planned, a pattern fits no layer.
    """

    kind: Literal["depth"] = "depth"
    ratio: float = 0.25
    count: int | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    needs: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[frozenset[str]] = frozenset(
        {"bake", "depth", "factorize", "features", "merge", "merge_units", "prune", "vocabulary"}
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if not 0 <= self.ratio <= 1:
            raise ConfigError(problem("depth.ratio", f"{self.ratio!r} is no share", "give a number from 0 to 1"))
        if self.count is not None:
            whole("depth.count", self.count, least=0)

    def changes(self, model: nn.Module, evidence: Evidence) -> tuple[Sequence[Change], Sequence[Left]]:
        """The blocks that go, in the order of the model, and those that cannot."""
        scores, many = _scores(model, evidence, self._candidates(model))
        wanted = math.floor(self.ratio * len(scores) + 1e-9) if self.count is None else self.count
        gone: list[Change] = []
        left: list[Left] = []
        expected = [t.shape for t in tensors_in(caller(evidence)(model))] if wanted else []
        for path in sorted(scores, key=lambda path: scores[path]):
            if len(gone) == wanted:
                break
            change = Change(edit="skip" if path in many else "identity", at=path, detail={})
            why = why_not(model, [*gone, change], evidence, expected)
            if why is None:
                gone.append(change)
            else:
                left.append(Left(at=path, why=why))
        order = {path: place for place, (path, _) in enumerate(model.named_modules())}
        return sorted(gone, key=lambda change: order[change.at]), left

    def _candidates(self, model: nn.Module) -> list[str]:
        modules = dict(model.named_modules())
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(path, pattern) for path in modules):
                mend = nearest(pattern, filter(None, modules))
                raise ConfigError(problem("depth", f"the pattern {pattern!r} fits no layer", mend))
        named = self.include != ("*",)
        found = []
        for path, module in modules.items():
            parent = modules[path.rpartition(".")[0]]
            if not path or isinstance(module, nn.Identity):
                continue  # an identity is what has gone
            if named or (isinstance(parent, nn.Sequential | nn.ModuleList) and _weighs(module)):
                included = any(fnmatchcase(path, pattern) for pattern in self.include)
                if included and not any(fnmatchcase(path, pattern) for pattern in self.exclude):
                    found.append(path)
        return found


def change_of(before: Tensor, after: Tensor) -> Tensor:
    """1 - cos between what enters and what leaves a block, one value a sample: [B, …] twice to [B].

    Men et al. 2024, "ShortGPT", equation 1, over the whole sample instead of its tokens one by one.
    """
    return 1 - F.cosine_similarity(before.float().flatten(1), after.float().flatten(1), dim=1)


def _weighs(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _scores(model: nn.Module, evidence: Evidence, paths: Iterable[str]) -> tuple[dict[str, float], set[str]]:
    """The mean change of each outermost layer that keeps its input's shape; and which are called with more than it."""
    sums: dict[str, list[Tensor]] = {}
    other: set[str] = set()
    many: set[str] = set()

    def listen(path: str, _module: nn.Module, args: Any, named: Mapping[str, Any], output: Any) -> None:
        same = bool(args) and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        if not same or args[0].shape != output.shape or not output.is_floating_point():
            other.add(path)
            return
        if len(args) > 1 or named:
            many.add(path)
        sums.setdefault(path, []).append(change_of(args[0], output).double().cpu())

    with _listening(model, paths, listen):
        reader = evidence.reader(model)
        for batch in evidence.batches() if evidence.batches else (evidence.batch,):
            reader(batch)
        reader.close()
    fits = [path for path in sums if path not in other]
    outermost = [path for path in fits if not any(path.startswith(f"{outer}.") for outer in fits)]
    return {path: float(torch.cat(sums[path]).mean()) for path in outermost}, many


@contextmanager
def _listening(model: nn.Module, paths: Iterable[str], listen: Callable[..., None]) -> Iterator[None]:
    handles = [
        model.get_submodule(path).register_forward_hook(partial(listen, path), with_kwargs=True) for path in paths
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def why_not(
    model: nn.Module, changes: Sequence[Change], evidence: Evidence, expected: Sequence[torch.Size]
) -> str | None:
    """Why the model cannot do without; None where it can."""
    short = edited(model, changes)
    try:
        shapes = [t.shape for t in tensors_in(caller(evidence)(short))]
    except Exception as error:  # whatever it is, it says that the code relies on the layer
        said = next(iter(str(error).splitlines()), "")[:120]
        return f"the network's code relies on it ({type(error).__name__}: {said})"
    return None if shapes == list(expected) else "without it the network's answers have another shape"
