"""What a Hugging Face configuration says about a model's shape, made to follow its cuts."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from limbeck.compress.base import Change, Left

__all__ = ["Number", "follow"]

_TRIES = 256
_WORDS = {
    "layers": ("layer", "depth", "block"),
    "heads": ("head", "group"),
    "units": ("size", "dim", "width", "inner", "hidden", "channel", "embd", "head"),
}


class Number(NamedTuple):
    """A count that changed: what of ("layers", "heads", "units"), and from what to what."""

    of: str
    old: int
    new: int


def follow(
    model: nn.Module, numbers: Iterable[Number], lists: Mapping[int, Sequence[int]]
) -> tuple[list[Change], list[Left]]:
    """The changes of the model's `config` after which `type(model)(config)` has the model's shapes.

    The numbers that might have to follow are those that equal a count that changed; which of them do is found by
    building the class without values and comparing shapes.

    Args:
        model: after its cuts.
        numbers: the counts that changed.
        lists: for a number of layers, those that stay: a list of that length in the configuration follows.

    Returns:
        At most one change; and what to know where no setting of the configuration describes the model.
    """
    config = getattr(model, "config", None)
    if config is None or not callable(getattr(model, "save_pretrained", None)):
        return [], []
    numbers = list(dict.fromkeys(numbers))
    options = _options(config, numbers)
    shorter = {
        name: [value[at] for at in lists[len(value)]]
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) in lists and not name.startswith("_")
    }
    shapes = _shapes(model)
    for chosen in itertools.islice(itertools.product(*options.values()), _TRIES):
        values = {name: value for name, value in zip(options, chosen, strict=True) if value is not None} | shorter
        if _built(type(model), config, values) == shapes:
            return ([Change(edit="configure", at="", detail=values)] if values else []), []
    layers = _options(config, {number for number in numbers if number.of == "layers"})
    likely = {name: first for name, (first, *_) in layers.items() if first is not None} | shorter
    why = (
        "no configuration of its class describes it (heads that are fewer but not narrower, say), so that "
        "`from_pretrained` cannot rebuild it; keep it with limbeck's own folders, or cut with heads=1.0"
    )
    return ([Change(edit="configure", at="", detail=likely)] if likely else []), [Left(at="config", why=why)]


def _options(config: Any, numbers: Iterable[Number]) -> dict[str, list[int | None]]:
    """For each number of a configuration what it may become, the likeliest first; None is as it is."""
    found: dict[str, list[int | None]] = {}
    for name, value in vars(config).items():
        if type(value) is not int or name.startswith("_") or name.endswith("_id") or "vocab" in name:
            continue
        fits = [number for number in numbers if number.old == value]
        if "head" in name:  # queries that share keys are several heads a unit
            shared = [n for n in numbers if n.of == "heads" and n.old < value and value % n.old == 0]
            fits += [Number("heads", value, value // n.old * n.new) for n in shared]
        likely = [n.new for n in fits if any(word in name.lower() for word in _WORDS[n.of])]
        rest: list[int | None] = [n.new for n in fits if n.new not in likely]
        if fits:
            found[name] = list(dict.fromkeys([*sorted(set(likely)), None, *rest]))
    return found


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _built(cls: Any, config: Any, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """The shapes of a model of the class by a configuration so changed; None where there is no such model."""
    changed = copy.deepcopy(config)
    try:
        for name, value in values.items():
            setattr(changed, name, value)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return _shapes(cls(changed))
    except Exception:  # whatever it is, it says that there is no such model
        return None
