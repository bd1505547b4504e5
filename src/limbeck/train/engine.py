"""Where and how a step is computed: device, precision, processes. The only file that knows Accelerate."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import ConfigError, problem
from limbeck.core.types import Named

__all__ = ["Engine"]


class Engine:
    """One process or several, through Accelerate; the loop is the same for all.

    Precision is ours and not Accelerate's: its setting is one for the whole process, ours belongs to a run.
    """

    def __init__(self, *, device: str = "auto", precision: str = "float32") -> None:
        from accelerate import Accelerator  # noqa: PLC0415 - seconds to import, and only training needs it

        self._accelerator: Any = Accelerator(cpu=device == "cpu", device_placement=False)
        self.device: torch.device = self._accelerator.device if device == "auto" else torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(problem("device", f"{device!r} is not there", 'give "auto" or "cpu"'))
        self.world_size: int = self._accelerator.num_processes
        self.half: torch.dtype | None = torch.bfloat16 if precision == "bfloat16" else None
        self._prepared: nn.Module | None = None

    def prepare(self, student: nn.Module) -> nn.Module:
        """The student on its device, wrapped where there are several processes."""
        student = student.to(self.device)
        if self.world_size > 1:
            student = self._accelerator.prepare_model(student)
        self._prepared = student
        return student

    def batch(self, batch: Named) -> Named:
        """The batch on the device."""
        if self.device.type == "cpu":
            return batch
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def autocast(self) -> AbstractContextManager[Any]:
        """Half precision inside, where the run asks for it."""
        return torch.autocast(self.device.type, self.half) if self.half else nullcontext()

    def sync(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged between processes with the last micro-batch of a step only."""
        if last or self.world_size == 1:
            return nullcontext()
        context: AbstractContextManager[Any] = self._accelerator.no_sync(self._prepared)
        return context

    def backward(self, loss: Tensor) -> None:
        """Gradients of a sum that is divided by the global count; data-parallel wrappers average, so undo that."""
        self._accelerator.backward(loss * self.world_size if self.world_size > 1 else loss)

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        if self.world_size == 1:
            return value
        summed: Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed
