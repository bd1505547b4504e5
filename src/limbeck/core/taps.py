"""Read any model as `batch -> named tensors`, inner layers included, without editing it.

A `Reader` is itself a module, so distributed wrappers go around it and nobody needs to reach for `.module`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.core.errors import ModelError, nearest, problem
from limbeck.core.still import undisturbed
from limbeck.core.types import RESERVED, Named

__all__ = ["Inputs", "Outputs", "Reader", "flatten_output", "taps_in"]

Inputs = Sequence[str] | Mapping[str, str] | Callable[[Named], Any] | None
"""Which batch columns go in: in order, as parameter -> column, or a function of the batch; None finds out."""

Outputs = Mapping[str, str] | Callable[[Any], Named] | None
"""New name -> the model's own name for it, or a function of what the model returns; None finds out."""

_LOGITS = ("logits", "output", "outputs", "out", "prediction", "predictions", "scores", "y")


def flatten_output(output: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor in what a model returned, under dotted names: by key, by field, by place."""
    if isinstance(output, Tensor):
        return {prefix or "logits": output}
    if isinstance(output, Mapping):
        items: Iterable[tuple[Any, Any]] = output.items()
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        items = ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))
    elif hasattr(output, "_asdict"):
        items = output._asdict().items()
    elif isinstance(output, list | tuple):
        items = enumerate(output)
    else:
        return {}
    flat: dict[str, Tensor] = {}
    for key, value in items:
        flat.update(flatten_output(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def taps_in(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the names that are layers of the model (`path`, `path@in` or `path@weight`); the rest are outputs."""
    paths = {path for path, _ in model.named_modules() if path}
    return [name for name in names if name.partition("@")[0] in paths]


class _Call(NamedTuple):
    """How a batch becomes arguments, found once for each set of columns."""

    positional: tuple[str, ...] = ()
    keyword: tuple[tuple[str, str], ...] = ()
    whole: bool = False


class Reader(nn.Module):
    """Any model as `batch -> Named`, with inner layers read by module path.

    Args:
        model: the module; it is not changed. It may return a tensor, a tuple, a mapping, a dataclass or a Hugging
            Face-style output; the first or only tensor, or the one called "logits", becomes `logits`.
        taps: module paths such as "layer3.1.conv2" whose output is to be read, "fc@in" for an input, or "fc@weight" for
            the weight itself.
        inputs: which batch columns the model takes; None passes `x`, or `x0, x1, …` in order, or other columns by
            parameter name, or the whole batch where the model has one parameter and that name is no column.
        outputs: names for what it returns; None finds out.
        name: what errors call it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        taps: Iterable[str] = (),
        inputs: Inputs = None,
        outputs: Outputs = None,
        name: str = "model",
    ) -> None:
        super().__init__()
        self.model = model
        self.taps = tuple(sorted(set(taps)))
        self._inputs, self._outputs, self._called = inputs, outputs, name
        self._plans: dict[frozenset[str], _Call] = {}
        self._seen: dict[str, Tensor] = {}
        self._logits_key: str | None = None
        self._copied: frozenset[str] = frozenset()
        self._versions: dict[str, tuple[Tensor, int]] | None = None
        self._handles: list[RemovableHandle] = []
        self._weights: dict[str, Any] = {}
        self._attach()

    def _attach(self) -> None:
        modules = dict(self.model.named_modules())
        for tap in self.taps:
            path, _, side = tap.partition("@")
            if path not in modules or side not in ("", "in", "weight"):
                wrong = f"there is no layer called {tap!r}"
                raise ModelError(problem(self._called, wrong, nearest(path, (p for p in modules if p))))
            if side == "weight":
                if not isinstance(getattr(modules[path], "weight", None), Tensor):
                    raise ModelError(problem(self._called, f"the layer {path!r} has no weight", "tap one that has"))
                self._weights[tap] = modules[path]
            elif side:
                self._handles.append(modules[path].register_forward_pre_hook(partial(self._keep_input, tap)))
            else:
                self._handles.append(modules[path].register_forward_hook(partial(self._keep_output, tap)))

    # Hooks are bound methods, not closures: those are copied with the reader, so that a copy hears its own model.
    def _keep_output(self, tap: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self._keep(tap, output)

    def _keep_input(self, tap: str, _module: nn.Module, args: Any) -> None:
        self._keep(tap, args)

    def _keep(self, tap: str, value: Any) -> None:
        first = value if isinstance(value, Tensor) else next(iter(flatten_output(value).values()), None)
        if first is None:
            mend = "tap a layer that returns a tensor"
            raise ModelError(problem(self._called, f"the layer {tap!r} returns {type(value).__name__}", mend))
        self._seen[tap] = kept = first.clone() if tap in self._copied else first
        if self._versions is not None:
            self._versions[tap] = (kept, kept._version)  # an in-place write raises the version

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def forward(self, batch: Named) -> dict[str, Tensor]:
        """The model's outputs and taps for this batch, by name."""
        self._seen.clear()
        positional, keyword = self.arguments(batch)
        signal = self._named(self.model(*positional, **keyword))
        for tap, layer in self._weights.items():
            self._seen[tap] = layer.weight
        for tap in self.taps:
            if tap not in self._seen:
                mend = "tap a layer that the forward pass calls"
                raise ModelError(problem(self._called, f"the layer {tap!r} was not called", mend))
        signal.update(self._seen)
        self._seen.clear()
        return signal

    def probe(self, batch: Named, wanted: Iterable[str] = ()) -> dict[str, Tensor]:
        """One pass without gradient, in evaluation mode, that leaves the model and the random state as they were.

        Also finds the taps that a later layer overwrites in place (`ReLU(inplace=True)`), and copies those from then
        on, so that a tap holds what its own layer returned.

        Raises:
            ModelError: the model cannot be called with this batch, or lacks one of the wanted names.
        """
        with torch.random.fork_rng(devices=[]), undisturbed(self.model):
            self._versions = {}
            signal = self._guarded(batch)
            self._copied = frozenset(tap for tap, (kept, then) in self._versions.items() if kept._version != then)
            self._versions = None
            if self._copied:
                signal = self.forward(batch)
        for name in wanted:
            if name not in signal:
                known = [*signal, *(path for path, _ in self.model.named_modules() if path)]
                wrong = f"it has no output and no layer called {name!r}"
                raise ModelError(problem(self._called, wrong, nearest(name, known)))
        return signal

    def _guarded(self, batch: Named) -> dict[str, Tensor]:
        try:
            return self.forward(batch)
        except ModelError:
            raise
        except Exception as error:
            shapes = ", ".join(
                f"{k} {tuple(v.shape)} {str(v.dtype)[6:]}" for k, v in batch.items() if k not in RESERVED
            )
            wrong = f"it cannot be called with the batch ({shapes}): {type(error).__name__}: {error}"
            mend = "check the shapes it expects, or say which columns go in with `inputs=`"
            raise ModelError(problem(self._called, wrong, mend)) from error

    def arguments(self, batch: Named) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called with for this batch: positional arguments, and those by keyword."""
        if callable(self._inputs):
            args = self._inputs(batch)
            return (args if isinstance(args, tuple) else (args,)), {}
        columns = frozenset(batch)
        plan = self._plans.get(columns)
        if plan is None:
            plan = self._plans.setdefault(columns, self._plan(batch))
        if plan.whole:
            return ({key: value for key, value in batch.items() if key not in RESERVED},), {}
        return tuple(batch[k] for k in plan.positional), {p: batch[k] for p, k in plan.keyword}

    def _plan(self, batch: Named) -> _Call:
        columns = [key for key in batch if key not in RESERVED]
        if self._inputs is not None and not callable(self._inputs):
            wanted = list(self._inputs.values()) if isinstance(self._inputs, Mapping) else list(self._inputs)
            for name in wanted:
                if name not in batch:
                    wrong = f"`inputs` names {name!r}, which the batch has not"
                    raise ModelError(problem(self._called, wrong, nearest(name, columns)))
            if isinstance(self._inputs, Mapping):
                return _Call(keyword=tuple(self._inputs.items()))
            return _Call(positional=tuple(wanted))
        if "x" in columns:
            return _Call(positional=("x",))
        if columns and all(c[0] == "x" and c[1:].isdigit() for c in columns):
            return _Call(positional=tuple(sorted(columns, key=lambda c: int(c[1:]))))
        parameters = inspect.signature(self.model.forward).parameters
        names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        known = [c for c in columns if c in names]
        if len(names) == 1 and not known:
            return _Call(whole=True)
        if takes_all and not known:
            known = columns
        required = [n for n in names if parameters[n].default is inspect.Parameter.empty]
        missing = [n for n in required if n not in known]
        if missing or not known:
            wrong = f"its parameters are {', '.join(names)}, the batch has {', '.join(columns) or 'no input'}"
            raise ModelError(problem(self._called, wrong, "name the columns that go in with `inputs=`"))
        return _Call(keyword=tuple((c, c) for c in known))

    def _named(self, output: Any) -> dict[str, Tensor]:
        if isinstance(output, Tensor) and self._outputs is None:
            return {"logits": output}
        if callable(self._outputs):
            return dict(self._outputs(output))
        flat = flatten_output(output)
        if self._outputs is not None:
            for new, own in self._outputs.items():
                if own not in flat:
                    wrong = f"`outputs` names {own!r}, which the model does not return"
                    raise ModelError(problem(self._called, wrong, nearest(own, flat)))
                flat[new] = flat[own]
            return flat
        if self._logits_key is None:
            self._logits_key = self._find_logits(flat)
        flat["logits"] = flat[self._logits_key]
        return flat

    def _find_logits(self, flat: Mapping[str, Tensor]) -> str:
        for name in (*_LOGITS, "0"):
            if name in flat:
                return name
        floating = [name for name, value in flat.items() if value.is_floating_point()]
        if len(floating) == 1:
            return floating[0]
        wrong = f"it returns {', '.join(flat) or 'no tensor'}, and which of them are the logits is not clear"
        raise ModelError(problem(self._called, wrong, 'say so with `outputs={"logits": "<name>"}`'))
