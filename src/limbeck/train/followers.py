"""What follows a student's weights: told after each step, kept in every checkpoint, restored from it bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from limbeck.core.sharding import parted, whole

__all__ = ["Average", "Follower", "Snapshot", "tensors_of"]


class Follower(Protocol):
    """Hears of every step after it was taken."""

    def follow(self, step: int) -> None:
        """Take in the weights after step number `step`, counted from 1."""
        ...

    def plain(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; every process must ask."""
        ...

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        ...


class _Held:
    """Tensors under the names of a module's own: copies of them, or those of another module of the same form."""

    def __init__(self, module: nn.Module, into: nn.Module | None = None) -> None:
        self._module = module
        of = {name: value.detach().clone() for name, value in tensors_of(module).items()}
        self._held = of if into is None else {name: value.detach() for name, value in tensors_of(into).items()}

    def plain(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; every process must ask."""
        return {name: whole(value) for name, value in self._held.items()}

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        with torch.no_grad():
            for name, value in self._held.items():
                value.copy_(parted(held[name], value))


class Average(_Held):
    """The exponential moving average of a module's parameters and floating buffers.

    After step n it is m ← d·m + (1 − d)·w, with d = min(decay, (1 + n) / (10 + n)), so that it does not hang on to
    where the weights began. Whole-number buffers are taken as they are.

    Args:
        module: whose weights.
        decay: the share of the average that stays.
        into: a module of the same form whose weights become the average; None keeps it apart.

    Source: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, module: nn.Module, decay: float, *, into: nn.Module | None = None) -> None:
        super().__init__(module, into)
        self._decay = decay

    def follow(self, step: int) -> None:
        """Take in the weights after step number `step`, counted from 1."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        now = tensors_of(self._module)
        floating = [name for name, value in now.items() if value.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([self._held[n] for n in floating], [now[n].detach() for n in floating], share)
            for name in now.keys() - set(floating):
                self._held[name].copy_(now[name])

    def swap(self) -> None:
        """Put the average into the module and the module's own weights here; the same again undoes it."""
        with torch.no_grad():
            for name, value in tensors_of(self._module).items():
                own = value.detach().clone()
                value.copy_(self._held[name])
                self._held[name].copy_(own)


class Snapshot(_Held):
    """A module's parameters and buffers as they were after the last whole number of `every` steps.

    Args:
        module: whose weights.
        every: steps between two copies.
        into: a module of the same form that holds them.
    """

    def __init__(self, module: nn.Module, every: int, *, into: nn.Module) -> None:
        super().__init__(module, into)
        self._every = every

    def follow(self, step: int) -> None:
        """Take in the weights after step number `step`, counted from 1, where it is time."""
        if step % self._every == 0:
            with torch.no_grad():
                for name, value in tensors_of(self._module).items():
                    self._held[name].copy_(value)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
