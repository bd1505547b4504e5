"""Where and how a step is computed: device, precision and processes, through Accelerate."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from limbeck.core import chip
from limbeck.core.errors import ConfigError, problem
from limbeck.core.processes import leave_at_exit
from limbeck.core.sharding import shard, whole
from limbeck.core.types import Named
from limbeck.train.exchange import joined, own_rows, spread

__all__ = ["Engine"]

_HALF = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LEAST_SCALE = 2.0**-14
"""A loss scale below this means that the gradients themselves are not finite."""


class Engine:
    """One process or several, through Accelerate; the loop is the same for all.

    Precision is ours and not Accelerate's: its setting is one for the whole process, ours belongs to a run.

    Args:
        device: "auto", or a torch device.
        precision: "float32", or "bfloat16" or "float16" for the forward pass; the latter with a scaled loss. "auto" is
            bfloat16 where the device multiplies it itself, else float32.
        parallel: how several processes share the student: "replicate" (DDP), "shard" (FSDP2), or what the launcher
            asks for with "auto".
        gather: terms that relate samples to each other see those of all processes.
        compile: the student goes through `torch.compile`.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        precision: str = "float32",
        parallel: str = "auto",
        gather: bool = False,
        compile: bool = False,  # noqa: A002 - the setting's name
    ) -> None:
        from accelerate import Accelerator  # noqa: PLC0415 - seconds to import, and only training needs it

        self._accelerator: Any = Accelerator(cpu=_on_cpu(device), device_placement=False)
        self.device: torch.device = self._accelerator.device if device == "auto" else torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(problem("device", f"{device!r} is not there", 'give "auto" or "cpu"'))
        self.world_size: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        if self.world_size > 1:
            leave_at_exit()
        if self.world_size > 1 and self.device.type != "cpu":
            self.device = self._accelerator.device  # each process has its own
        native = chip.multiplies_bfloat16(self.device)
        self.precision = ("bfloat16" if native else "float32") if precision == "auto" else precision
        self.imitates = self.precision == "bfloat16" and not native
        self.half: torch.dtype | None = _HALF[self.precision]
        self.sharded = self.world_size > 1 and (parallel == "shard" or (parallel == "auto" and _launcher_shards()))
        if self.sharded and self.half is torch.float16:
            wrong = "a scaled loss does not go with a sharded student"
            raise ConfigError(problem("precision", wrong, 'give "bfloat16", or parallel="replicate"'))
        self.gathers = gather and self.world_size > 1
        self.scaler = torch.amp.GradScaler(self.device.type) if self.half is torch.float16 else None
        self._compile = compile
        self._prepared: nn.Module | None = None
        self._idle: list[nn.Parameter] = []
        self._waiting: Sequence[nn.Parameter] = ()

    def prepare(self, student: nn.Module, *, idle: Collection[str] = ()) -> tuple[nn.Module, nn.Module]:
        """The student on its device: the module to call in training, and the one that holds the weights.

        Where it is sharded, that is a copy: the caller's own module keeps its plain parameters. `idle` names the
        parameters that never get a gradient; they stay as they are, as with one process.
        """
        student = student.to(self.device)
        held = student
        if self.sharded:
            held = copy.deepcopy(student)
            shard(held, self.device)
        called = held
        if self.world_size > 1 and not self.sharded:
            ids = [self.device.index] if self.device.type == "cuda" else None
            called = nn.parallel.DistributedDataParallel(held, device_ids=ids, find_unused_parameters=bool(idle))
        self._prepared = called
        self._idle = [value for name, value in held.named_parameters() if name in idle]
        return (cast(nn.Module, torch.compile(called)) if self._compile else called), held

    def hold_back(self, parameters: Sequence[nn.Parameter]) -> None:
        """Drop the gradients of these, until others are named: no step moves them."""
        self._waiting = parameters

    def batch(self, batch: Named) -> Named:
        """The batch on the device."""
        if self.device.type == "cpu":
            return batch
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    @property
    def part(self) -> tuple[int, int]:
        """Which part of each batch is this process's, of how many."""
        return self.rank, self.world_size

    def autocast(self) -> AbstractContextManager[Any]:
        """Half precision inside, where the run asks for it."""
        return torch.autocast(self.device.type, self.half) if self.half else nullcontext()

    @contextmanager
    def sync(self, *, last: bool) -> Iterator[None]:
        """Gradients are exchanged between processes with the last micro-batch of a step only."""
        prepared: Any = self._prepared
        if self.world_size == 1:
            yield
        elif self.sharded:
            prepared.set_requires_gradient_sync(last)
            yield
        elif last:
            yield
        else:
            with self._accelerator.no_sync(prepared):
                yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of a sum that is divided by the global count; data-parallel wrappers average, so undo that."""
        loss = loss * self.world_size if self.world_size > 1 else loss
        self._accelerator.backward(loss if self.scaler is None else self.scaler.scale(loss))

    def norm(self, optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
        """The norm of all gradients over all processes, which are then scaled down to `limit` at most.

        Parts of a model that learn each for itself are scaled each by its own: one's gradients do not slow another.
        """
        for parameter in (*self._idle, *self._waiting):  # sharding fills in zeros, and weight decay would follow
            parameter.grad = None
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        parts: dict[int, list[Tensor]] = {}
        for group in optimizer.param_groups:
            parts.setdefault(group.get("part", 0), []).extend(group["params"])
        norms = [whole(clip_grad_norm_(parameters, limit)).to(self.device) for parameters in parts.values()]
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    def step(self, optimizer: torch.optim.Optimizer, penalise: Callable[[], None] = lambda: None) -> None:
        """Update the weights. A scaled step whose gradients are not finite is left out, with a smaller scale after.

        `penalise` adds to the gradients what was not clipped with them.
        """
        penalise()
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def leave_out(self) -> None:
        """Go without the step whose gradients `norm` has looked at."""
        if self.scaler is not None:
            self.scaler.update()

    @property
    def minds_gradients(self) -> bool:
        """Whether `norm` has to be called before each step, clipping or not."""
        return self.scaler is not None or bool(self._idle) or bool(self._waiting)

    @property
    def settling(self) -> bool:
        """Whether a gradient that is not finite only says that the loss scale is still too large."""
        return self.scaler is not None and self.scaler.get_scale() >= _LEAST_SCALE

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        if self.world_size == 1:
            return value
        summed: Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed

    def agreed(self, reason: str | None, reasons: Sequence[str]) -> str | None:
        """The reason of any process, the same for all: nobody stops while others go on."""
        if self.world_size == 1:
            return reason
        wishes = torch.tensor([float(reason == each) for each in reasons], device=self.device)
        found = self.total(wishes).nonzero().flatten().tolist()
        return reasons[found[0]] if found else None

    def everywhere(self, *sides: Named) -> tuple[list[dict[str, Tensor]], slice]:
        """The samples of all processes, with gradient, and which rows are this one's."""
        return joined(*sides), own_rows(len(sides[-1]["valid"]))

    def spread(self, forward: Callable[[Named], Named]) -> Callable[[Named], Named]:
        """`forward`, each process doing its part of every batch, all getting the whole answer."""
        return forward if self.world_size == 1 else spread(forward)

    def align(self, module: nn.Module) -> None:
        """Buffers as the first process has them: batch statistics, banks."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def plain(self) -> Mapping[str, Any]:
        """What a checkpoint keeps of it."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        if self.scaler is not None and plain.get("scaler"):
            self.scaler.load_state_dict(dict(plain["scaler"]))


def _on_cpu(device: str) -> bool:
    """Several processes without a GPU meet over gloo; Accelerate wants to be told."""
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def _launcher_shards() -> bool:
    """`accelerate launch --use_fsdp` says so here."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
