"""Training with the rounding of 8 bits in it: weights and inputs are rounded, gradients pass as if they were not.

A changed copy of a network is trained like any other. Settled afterwards, it has float weights that lie on the grid
which 8-bit export finds again: a scale for each output channel, from its largest weight, so that folding a batch norm,
which scales whole channels, changes no rounded number.

Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference", section 3.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from limbeck.core.chip import sums_saturate
from limbeck.core.errors import ConfigError, ModelError, problem

__all__ = ["settle", "simulate"]

_AXES: dict[type[nn.Module], int] = {
    nn.Linear: 0,
    nn.Conv1d: 0,
    nn.Conv2d: 0,
    nn.Conv3d: 0,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 1,
    nn.ConvTranspose3d: 1,
}
"""The axis of a weight's output channels."""
_INPUT = "rounded_input"


def simulate(model: nn.Module, *, reduce_range: bool | None = None, momentum: float = 0.01) -> nn.Module:
    """A copy of a network whose linear and convolution layers compute with rounded weights and inputs.

    Weights are rounded to 8 bits with a scale for each output channel, symmetric around zero; inputs to 8 bits in a
    range that moves with the ends of each training batch. Until the first training step inputs are left as they are.
    Train it, for instance with `limbeck.distill`; then `settle` it.

    Args:
        model: the network; it stays as it is. Recurrent layers and attention projections stay in floats.
        reduce_range: weights of 7 bits, as `Quantize`; None asks the chip.
        momentum: of a new batch in the range of inputs, from above 0 to 1.

    Raises:
        ConfigError: the momentum cannot be.
        ModelError: there is no layer to round, or the network is a simulation already.
    """
    if not 0 < momentum <= 1:
        raise ConfigError(problem("simulate.momentum", f"it is {momentum}", "give a share from above 0 to 1"))
    if any(hasattr(module, _INPUT) for module in model.modules()):
        raise ModelError(problem("simulate", "the model is a simulation already", "settle it first"))
    changed = copy.deepcopy(model)
    levels = 64 if (sums_saturate() if reduce_range is None else reduce_range) else 127
    layers = [
        module for module in changed.modules() if type(module) in _AXES and not parametrize.is_parametrized(module)
    ]
    if not layers:
        mend = "give a network with linear or convolution layers"
        raise ModelError(problem("simulate", f"{type(model).__name__} has no layer that can be rounded", mend))
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _Weight(_AXES[type(layer)], levels))
        inputs = _Input(momentum).to(layer.weight.device)  # type: ignore[arg-type]
        layer.add_module(_INPUT, inputs)
        layer.register_forward_pre_hook(inputs.before)
    return changed


def settle(model: nn.Module) -> nn.Module:
    """A copy of a trained simulation as a plain network, whose weights are the rounded ones, in floats.

    Raises:
        ModelError: the model is no simulation.
    """
    changed = copy.deepcopy(model)
    layers = [module for module in changed.modules() if hasattr(module, _INPUT)]
    if not layers:
        raise ModelError(problem("settle", f"{type(model).__name__} is no simulation", "give what `simulate` returned"))
    for layer in layers:
        inputs = getattr(layer, _INPUT)
        for key, hook in list(layer._forward_pre_hooks.items()):
            if getattr(hook, "__self__", None) is inputs:
                del layer._forward_pre_hooks[key]
        delattr(layer, _INPUT)
        # A copy shares its class with the simulation, and what is removed is removed from the class.
        shared: type[nn.Module] = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return changed


class _Weight(nn.Module):
    """A weight on a grid of 2 * levels + 1 points for each output channel."""

    def __init__(self, axis: int, levels: int) -> None:
        super().__init__()
        self._axis, self._levels = axis, levels

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight; its gradient is the gradient of the weight."""
        others = [axis for axis in range(weight.dim()) if axis != self._axis]
        scale = (weight.detach().abs().amax(others) / self._levels).clamp_min(torch.finfo(weight.dtype).tiny)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, self._axis, -self._levels, self._levels)


class _Input(nn.Module):
    """A layer's input on a grid of 256 points; values outside its range become an end of it, without gradient."""

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self._momentum = momentum
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    # A bound method, not a closure: that is copied with the layer, so that a copy has its own range.
    def before(self, _layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the layer is called with."""
        return (self(args[0]), *args[1:]) if args else args

    def forward(self, x: Tensor) -> Tensor:
        """The rounded input."""
        if not x.is_floating_point() or not x.numel():
            return x
        if self.training:
            self._follow(x.detach())
        # A range of nothing, before the first step, would make all one value.
        span = (self.high - self.low).clamp_min(torch.finfo(torch.float32).tiny)
        scale = span / 255
        zero = (-self.low / scale).round().clamp(0, 255).to(torch.int32)
        rounded = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255).to(x.dtype)
        return torch.where(self.seen, rounded, x)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        part = torch.where(self.seen, self._momentum, 1.0)
        self.low.lerp_(x.amin().float().clamp_max(0), part)
        self.high.lerp_(x.amax().float().clamp_min(0), part)
        self.seen.fill_(True)
