"""Which layers an operation is for: by kind, by path patterns, and with weights that nothing else depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from limbeck.compress.base import Evidence
from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.core.fold import Survey, survey

__all__ = ["CONVS", "look", "places", "tied", "watched"]

CONVS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def places(
    model: nn.Module,
    kinds: Iterable[type[nn.Module]],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    where: str = "compress",
) -> list[tuple[str, nn.Module]]:
    """The layers of these kinds whose path fits a pattern of `include` and none of `exclude`, in the model's order.

    Patterns are those of a shell: `*` stands for anything, dots too. A kind is the class itself and no subclass, which
    may do something else with its weight. A layer that stands in several places is named once.

    Raises:
        ConfigError: a pattern other than `*` fits no layer at all.
    """
    paths = [path for path, _ in model.named_modules()]
    for pattern in (*include, *exclude):
        if pattern != "*" and not any(fnmatchcase(path, pattern) for path in paths):
            raise ConfigError(problem(where, f"no layer fits {pattern!r}", nearest(pattern, filter(None, paths))))
    wanted = tuple(kinds)
    return [
        (path, module)
        for path, module in model.named_modules()
        if type_before_parametrizations(module) in wanted
        and any(fnmatchcase(path, pattern) for pattern in include)
        and not any(fnmatchcase(path, pattern) for pattern in exclude)
    ]


def tied(model: nn.Module) -> set[int]:
    """The identities of parameters that several modules own."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {key for key, count in owners.items() if count > 1}


def look(model: nn.Module, evidence: Evidence) -> Survey:
    """What a dry run on the evidence's batch shows of the model's layers."""
    reader = evidence.reader(model)
    return survey(model, lambda: reader(evidence.batch), samples=1, tapped=())


@contextmanager
def watched(layers: Iterable[tuple[str, nn.Module]], see: Any) -> Iterator[None]:
    """Call `see(path, layer, input, output)` after each call of these layers; removed at the end."""
    with ExitStack() as stack:
        for path, layer in layers:
            hook = partial(_see, see, path)
            stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _see(see: Any, path: str, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: PLR0917 - a hook
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    see(path, layer, first, output)
