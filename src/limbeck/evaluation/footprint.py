"""What a model weighs, computes, holds and takes: parameters, bytes, multiply-accumulates, memory, latency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.check import positive
from limbeck.core.errors import ModelError, problem
from limbeck.core.setting import setting
from limbeck.evaluation.latency import Latency, compare_latency
from limbeck.evaluation.macs import Example, batch_size, count_macs
from limbeck.evaluation.memory import peak_memory

__all__ = ["Footprint", "footprint"]


@setting
class Footprint:
    """What a model weighs, computes per example (`macs`), and takes (`latency`).

    `parameters` are numbers, tied ones counted once; `trainable` those that require a gradient; `bytes` what
    parameters and persistent buffers take as they are stored; `peak_memory` the bytes that must be free to call it on
    the example (see `limbeck.evaluation.memory`), None where that cannot be measured.
    """

    parameters: int
    trainable: int
    bytes: int
    macs: int
    peak_memory: int | None
    latency: Latency | None


def footprint(model: nn.Module, example: Example, *, seconds: float = 1.0, latency: bool = True) -> Footprint:
    """Measure a model on an example batch, in evaluation mode, and leave it as it was.

    `example` is a tensor, a tuple of tensors, or tensors by keyword, on the model's device, samples on the first
    axis. Packed weights of torch's quantised layers count as parameters and bytes, at their stored width. Calls are
    timed for at most so many `seconds`. To hold the latency of models against each other, measure them together:
    `limbeck.evaluation.compare_latency`.

    Raises:
        ConfigError: the seconds are not above zero.
        DataError: the example holds no sample.
        ModelError: the model has no sizes yet, or cannot be called on the example.
    """
    batch_size(example)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ModelError(problem("footprint", f"{name} has no size yet", "call the model once on a batch first"))
    positive("footprint.seconds", seconds)
    parameters = list(model.parameters())
    kept, packed = _stored(model)
    return Footprint(
        parameters=sum(p.numel() for p in (*parameters, *packed)),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        bytes=sum(t.numel() * t.element_size() for t in (*kept, *packed)),
        macs=count_macs(model, example),
        peak_memory=peak_memory(model, example),
        latency=compare_latency({"model": (model, example)}, seconds=seconds)["model"] if latency else None,
    )


def _stored(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The distinct tensors of the state dict, and those packed inside quantised layers' entries."""
    kept: dict[int, Tensor] = {}
    packed: dict[int, Tensor] = {}
    # With `keep_vars` the entries are the tensors themselves, so that tied ones are one by identity.
    for value in model.state_dict(keep_vars=True).values():
        if isinstance(value, Tensor):
            kept[id(value)] = value
        else:
            packed |= {id(tensor): tensor for tensor in _unpack(value)}
    return list(kept.values()), list(packed.values())


def _unpack(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, torch.ScriptObject):
        return _unpack(value.__getstate__())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _unpack(part)]
    return []
