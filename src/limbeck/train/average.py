"""A moving average of the weights, which often scores better and steadier than the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.core.sharding import parted, whole

__all__ = ["Average"]


class Average:
    """The exponential moving average of a module's parameters and floating buffers.

    After step n it is m ← d·m + (1 − d)·w, with d = min(decay, (1 + n) / (10 + n)), so that it does not hang on to
    where the weights began. Whole-number buffers are taken as they are.

    Source: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self._held = {name: value.detach().clone() for name, value in _tensors(module).items()}

    def follow(self, step: int) -> None:
        """Take in the weights after step number `step`, counted from 1."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        now = _tensors(self._module)
        floating = [name for name, value in now.items() if value.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([self._held[n] for n in floating], [now[n].detach() for n in floating], share)
            for name in now.keys() - set(floating):
                self._held[name].copy_(now[name])

    def swap(self) -> None:
        """Put the average into the module and the module's own weights here; the same again undoes it."""
        with torch.no_grad():
            for name, value in _tensors(self._module).items():
                own = value.detach().clone()
                value.copy_(self._held[name])
                self._held[name].copy_(own)

    def plain(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; every process must ask."""
        return {name: whole(value) for name, value in self._held.items()}

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        with torch.no_grad():
            for name, value in self._held.items():
                value.copy_(parted(held[name], value))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
