"""A PyTorch model as a teacher."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from limbeck.core.errors import ModelError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.taps import Inputs, Outputs, Reader, taps_in
from limbeck.core.types import Named
from limbeck.teachers.signal import Classes, check_classes, named_classes, pick_classes, renormalized

__all__ = ["ModuleTeacher"]


class ModuleTeacher:
    """A module that answers in evaluation mode, without gradient, and is bit-identical afterwards.

    It works on a private copy of the module: flags, hooks and buffers are the copy's own, so nothing that happens in
    a run, not even a module that writes its buffers in evaluation mode, reaches the user's. The weights are shared
    with the original, not doubled, unless the copy must move or be laid out anew (`device`, `channels_last`).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inputs: Inputs = None,
        outputs: Outputs = None,
        normalize: Normalize | None = None,
        classes: Classes | None = None,
    ) -> None:
        self.model = model
        self.normalize = normalize
        self.inputs, self.outputs = inputs, outputs
        self._index = check_classes(classes)
        self._reader: Reader | None = None
        self._step: Normalize | None = normalize
        self._precision: torch.dtype | None = None

    @property
    def offers(self) -> frozenset[str]:
        """The layers that can be read; what the model returns comes on top and is known after `open`."""
        return frozenset(path for path, _ in self.model.named_modules() if path)

    def fingerprint(self) -> str:
        """A digest of class, weights, buffers, normalisation and chosen classes."""
        digest = hashlib.sha256(
            f"{type(self.model).__qualname__}/{self.normalize}/{named_classes(self._index)}".encode()
        )
        for name, value in self.model.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def open(
        self,
        names: Iterable[str],
        example: Named,
        *,
        applied: Normalize | None = None,
        device: torch.device | None = None,
        precision: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> Named:
        """Make ready to answer with `names`, and return the answer to `example`.

        Args:
            names: outputs and layers that will be read.
            example: a batch.
            applied: the normalisation that the data has already been through.
            device: where to answer.
            precision: a half-precision type for autocast, or None.
            channels_last: lay weights out for channels-last convolutions.

        Raises:
            ModelError: the model cannot be copied or called, or lacks a name.
        """
        self.close()
        self._step = self.normalize.after(applied) if self.normalize else None
        self._precision = precision
        stays = device is None or all(p.device.type == device.type for p in self.model.parameters())
        own = self._private(shared=stays and not channels_last)
        if device is not None:
            own = own.to(device)
        if channels_last:
            own = own.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs lack it
        self._reader = Reader(
            own, taps=taps_in(own, names), inputs=self.inputs, outputs=self.outputs, name="teacher"
        ).eval()
        signal = self._reader.probe(renormalized(example, self._step), names)
        if self._index is not None and int(self._index.max()) >= signal["logits"].shape[-1]:
            wrong = f"class {int(self._index.max())} is asked for, the teacher has {signal['logits'].shape[-1]}"
            raise ModelError(problem("teacher.classes", wrong, "name classes that the teacher has, from 0"))
        return self(example)

    def _private(self, *, shared: bool) -> nn.Module:
        memo: dict[int, object] = {id(p): p for p in self.model.parameters()} if shared else {}
        try:
            own = copy.deepcopy(self.model, memo)
        except Exception as error:
            wrong = f"it cannot be copied ({type(error).__name__}: {error}), so it cannot be kept from changing"
            mend = "pass a function that calls it, e.g. `lambda x: model(x)`, with the model in eval mode"
            raise ModelError(problem("teacher", wrong, mend)) from error
        return own

    def close(self) -> None:
        """Let go of the private copy."""
        self._reader = None

    @torch.no_grad()
    def __call__(self, batch: Named) -> Named:
        """The signal for one batch, in float32 or wider, without gradient."""
        if self._reader is None:
            self.open((), batch)
        assert self._reader is not None
        batch = renormalized(batch, self._step)
        if self._precision is None:
            return pick_classes(self._reader(batch), self._index)
        device = next(iter(batch.values())).device.type
        with torch.autocast(device, self._precision):
            signal = self._reader(batch)
        return pick_classes({k: v.float() if v.is_floating_point() else v for k, v in signal.items()}, self._index)
