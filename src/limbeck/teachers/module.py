"""A PyTorch model as a teacher."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, get_args

import torch
from torch import nn

from limbeck.core.errors import ConfigError, ModelError, nearest, problem
from limbeck.core.fold import Survey, cast, fold, lay_out, survey
from limbeck.core.normalize import Normalize
from limbeck.core.processes import processes
from limbeck.core.setting import as_plain
from limbeck.core.sharding import shard
from limbeck.core.taps import Inputs, Outputs, Reader, taps_in
from limbeck.core.types import Named
from limbeck.teachers.prepare import (
    SMALL_MACS,
    Compile,
    Form,
    Parity,
    Precision,
    Prepare,
    forms,
    measure,
)
from limbeck.teachers.signal import (
    Classes,
    check_class_range,
    check_classes,
    digest_of,
    pick_classes,
    plain_function,
    renormalized,
)
from limbeck.teachers.weights import WeightsDigest

__all__ = ["ModuleTeacher"]

_HALVES = (torch.bfloat16, torch.float16)
_PROBED = 2


class ModuleTeacher:
    """A module that answers in evaluation mode, without gradient, and is bit-identical afterwards.

    It works on a private copy of the module: flags, hooks and buffers are the copy's own, so nothing that happens in
    a run, not even a module that writes its buffers in evaluation mode, reaches the user's. The weights are shared
    with the original, not doubled, but for those that are prepared and those that must move to another device.

    A teacher that has work to save is prepared when it is opened: batch norm folded, channels-last, bfloat16 where the
    chip has it. The fastest form whose answers on real samples are within `parity` is used; `form` says which.

    Args:
        model: the module.
        inputs: which batch columns it takes (see `limbeck.core.taps.Reader`).
        outputs: names for what it returns.
        normalize: the input normalisation that it was trained with.
        classes: which of its classes the student has.
        precision: "auto" takes bfloat16 where the chip computes it and parity holds; a named type is a demand.
        prepare: "none" leaves the model exactly as it is.
        compile: "default" runs it through `torch.compile`, which takes half a minute or so.
        parity: how far a prepared form may be from the original.
        shard: where there are several processes, each holds a part of the weights and gathers a block's when it is
            called (FSDP2), for a teacher that no device can hold whole. It is not prepared then.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inputs: Inputs = None,
        outputs: Outputs = None,
        normalize: Normalize | None = None,
        classes: Classes | None = None,
        precision: Precision = "auto",
        prepare: Prepare = "auto",
        compile: Compile = "none",  # noqa: A002 - what torch calls it
        parity: Parity | None = None,
        shard: bool = False,
    ) -> None:
        _check_choice("precision", precision, get_args(Precision))
        _check_choice("prepare", prepare, get_args(Prepare))
        _check_choice("compile", compile, get_args(Compile))
        if prepare == "none" and (precision == "bfloat16" or compile == "default"):
            wrong = f"precision={precision!r} and compile={compile!r} are preparations"
            raise ConfigError(problem("teacher.prepare", f"it is 'none', and {wrong}", "leave one of them out"))
        self.model = model
        self.shard = shard
        self.normalize = normalize
        self.inputs, self.outputs = inputs, outputs
        self.precision, self.prepare, self.compile = precision, prepare, compile
        self.parity = parity or Parity()
        self._index = check_classes(classes)
        self._weights = WeightsDigest(model)
        self._reader: Reader | None = None
        self._step: Normalize | None = normalize
        self._half: torch.dtype | None = None
        self._form: dict[str, Any] = {}

    @property
    def offers(self) -> frozenset[str]:
        """The layers that can be read; what the model returns comes on top and is known after `open`."""
        return frozenset(path for path, _ in self.model.named_modules() if path)

    @property
    def form(self) -> dict[str, Any]:
        """How it runs since it was last opened, as plain data; empty before.

        `precision` ("own": as handed over), `folded` (a count), `channels_last`, `compiled`, `macs` a sample, the
        measured `samples`, `agreement`, `difference` and `layers` (see `Parity`; absent where there was nothing to
        compare), and `refused`: what was tried first, and why it is not used.
        """
        return copy.deepcopy(self._form)

    @property
    def words(self) -> str:
        """The model's class."""
        return type(self.model).__qualname__

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as plain data, to be compared field by field."""
        return {
            "teacher": type(self).__name__,
            "class": f"{type(self.model).__module__}.{type(self.model).__qualname__}",
            "weights": self._weights(),
            "inputs": plain_function(self.inputs),
            "outputs": plain_function(self.outputs),
            "normalize": as_plain(self.normalize),
            "classes": None if self._index is None else self._index.tolist(),
            # What is asked for: the form that it takes on a machine is `form`. To prepare nothing asks for float32.
            "precision": "float32" if self.prepare == "none" else self.precision,
        }

    def fingerprint(self) -> str:
        """The digest of `identity`."""
        return digest_of(self.identity())

    def open(
        self,
        names: Iterable[str],
        example: Named,
        *,
        applied: Normalize | None = None,
        device: torch.device | None = None,
        samples: Named | None = None,
    ) -> Named:
        """Make ready to answer with `names`, and return the answer to `example`.

        Args:
            names: outputs and layers that will be read.
            example: a batch.
            applied: the normalisation that the data has already been through.
            device: where to answer.
            samples: a larger batch of real samples to hold a prepared form against the original on; None: `example`.

        Raises:
            ModelError: the model cannot be copied or called, lacks a name or weights, or a form that was asked for is
                not within `parity`.
        """
        self.close()
        names = tuple(names)
        self._step = self.normalize.after(applied) if self.normalize else None
        sharded = self.shard and processes() > 1
        own = self._private(None if sharded else device)
        taps = taps_in(own, names)
        # What is laid out in parts moves to the device by blocks, and must not take the user's weights along.
        reader = self._read(copy.deepcopy(own) if sharded else _twin(own), taps)
        if sharded:
            shard(reader.model, device or next(iter(example.values())).device)
        self._half = _own_half(own)
        check_class_range(self._probed(reader, example, names, self._half), self._index)
        self._reader = reader
        self._form = {**asdict(Form()), "macs": None, "refused": []}
        if self.prepare == "auto" and not sharded:
            with torch.random.fork_rng(devices=[]):
                self._prepare(own, names, taps, example, example if samples is None else samples)
        return self(example)

    def _prepare(self, own: nn.Module, names: tuple[str, ...], taps: list[str], example: Named, samples: Named) -> None:
        """Go down the ladder of forms to the first within the bound; `self` then answers in that form."""
        original = self._reader
        assert original is not None
        device = next(iter(example.values())).device
        samples = {name: value.to(device) for name, value in samples.items()}
        forced = self.precision == "bfloat16" or self.compile == "default"
        odd = next((p.dtype for p in own.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
        if odd is not None:
            self._refuse("any other", f"its weights are {odd} as handed over", forced)
            return
        try:
            seen = self._survey(original, taps, example)
        except Exception as error:  # a model that can't be watched works as it is
            self._refuse("any other", f"it cannot be looked into: {type(error).__name__}: {error}", forced)
            return
        self._form["macs"] = seen.macs
        if seen.macs < SMALL_MACS and not forced:
            return
        images = any(own.get_submodule(path).weight.dim() == 4 for path in seen.plain)  # type: ignore[operator]
        outputs = {"logits", *names} - set(taps)
        ladder = forms(self.precision, self.compile, folded=len(seen.pairs), images=images, device=device)
        for number, form in enumerate(ladder, 1):
            last = forced and number == len(ladder)
            try:
                reader = self._read(_formed(_twin(own), form, seen), taps)
                self._probed(reader, example, names, _half(form))
                if form.compiled:
                    reader.model.compile()
                measured = measure(
                    lambda part: self._answer(original, part, None),
                    lambda part, reader=reader, form=form: self._answer(reader, part, _half(form)),  # type: ignore[misc]
                    samples,
                    outputs=outputs,
                    layers=taps,
                )
            except Exception as error:  # whatever a form does, the original works
                self._refuse(str(form), f"it fails: {type(error).__name__}: {error}", last)
                continue
            if measured.within(self.parity):
                self._reader, self._half = reader, _half(form)
                self._form.update(asdict(form) | measured.plain())
                return
            self._refuse(str(form), str(measured), last)

    def _refuse(self, form: str, why: str, last: bool) -> None:
        if last:
            mend = "leave `precision` and `compile` at their defaults, or widen `parity`"
            bound = self.parity
            asked = f"(asked: agreement {bound.agreement}, difference {bound.difference}, layers {bound.layers})"
            raise ModelError(problem("teacher", f"it cannot be used in the form '{form}': {why} {asked}", mend))
        self._form["refused"].append({"form": form, "why": why})

    def _survey(self, reader: Reader, taps: list[str], example: Named) -> Survey:
        """A dry run on a few samples."""
        few = {name: value[:_PROBED] for name, value in renormalized(example, self._step).items()}
        count = len(next(iter(few.values())))
        return survey(reader.model, lambda: reader(few), samples=count, tapped=taps)

    def _probed(self, reader: Reader, example: Named, names: Iterable[str], half: torch.dtype | None) -> Named:
        with _precision(next(iter(example.values())).device, half):
            return reader.probe(renormalized(example, self._step), names)

    def _read(self, model: nn.Module, taps: list[str]) -> Reader:
        return Reader(model, taps=taps, inputs=self.inputs, outputs=self.outputs, name="teacher").eval()

    def _private(self, device: torch.device | None) -> nn.Module:
        """A copy of the model on the device, with the model's own weights where they are there already."""
        lazy = [name for name, p in self.model.named_parameters() if nn.parameter.is_lazy(p)]
        if lazy:
            wrong = f"it has no weights yet ({', '.join(lazy[:3])})"
            raise ModelError(problem("teacher", wrong, "call it once on a batch, and load its weights"))
        stays = device is None or all(p.device.type == device.type for p in self.model.parameters())
        try:
            own = _twin(self.model) if stays else copy.deepcopy(self.model)
        except Exception as error:
            wrong = f"it cannot be copied ({type(error).__name__}: {error}), so it cannot be kept from changing"
            mend = "pass a function that calls it, e.g. `lambda x: model(x)`, with the model in eval mode"
            raise ModelError(problem("teacher", wrong, mend)) from error
        return own if device is None else own.to(device)

    def close(self) -> None:
        """Let go of the private copy."""
        self._reader = None

    def __call__(self, batch: Named) -> Named:
        """The signal for one batch, in float32 or wider, without gradient."""
        if self._reader is None:
            self.open((), batch)
        assert self._reader is not None
        return self._answer(self._reader, batch, self._half)

    # Not `inference_mode`: its tensors can't be saved for a backward pass, and a loss may multiply by them.
    @torch.no_grad()
    def _answer(self, reader: Reader, batch: Named, half: torch.dtype | None) -> Named:
        with _precision(next(iter(batch.values())).device, half):
            signal = reader(renormalized(batch, self._step))
            wide = {k: v.float() if v.dtype in _HALVES else v.detach() for k, v in signal.items()}
            return pick_classes(wide, self._index)


def _twin(model: nn.Module) -> nn.Module:
    """A copy with buffers, flags and hooks of its own, and the very same parameters."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _formed(model: nn.Module, form: Form, seen: Survey) -> nn.Module:
    """The model, brought into a form; compiling comes later, when it has been called once as it is."""
    if form.folded:
        fold(model.eval(), seen.pairs)
    if form.channels_last:
        lay_out(model, seen.plain)
    if (half := _half(form)) is not None:
        cast(model, seen.plain, half)
    return model


def _half(form: Form) -> torch.dtype | None:
    return torch.bfloat16 if form.precision == "bfloat16" else None


def _own_half(model: nn.Module) -> torch.dtype | None:
    """The half-precision type of a model that was handed over so; float32 inputs reach it through autocast."""
    return next((p.dtype for p in model.parameters() if p.dtype in _HALVES), None)


def _precision(device: torch.device, half: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to `half`, or none, whatever the caller is in: a teacher's answers don't depend on who asks."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(problem(f"teacher.{name}", f"there is no {value!r}", nearest(str(value), known)))
