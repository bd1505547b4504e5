"""Multiply-accumulates of one forward pass, counted exactly on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import DataError, ModelError, problem
from limbeck.core.kernels import plain_kernels
from limbeck.core.still import undisturbed
from limbeck.core.types import RESERVED

__all__ = ["Example", "batch_size", "call", "count_macs"]

Example = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""What a model is called with: a tensor, a tuple of tensors, or tensors by keyword. The batch is on the first axis."""


def count_macs(model: nn.Module, example: Example) -> int:
    """Multiply-accumulates per example: those of one forward pass on `example`, divided by its batch size, rounded.

    Counted: matrix products, convolutions, recurrent layers, attention, and their dynamically quantised kinds.
    Not counted: what is elementwise (activations, norms, `nn.Bilinear`) and lookups. Nothing of the model changes.

    Raises:
        DataError: the example holds no tensor or no sample.
        ModelError: the model cannot be called on it.
    """
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - rarely needed

    batch = batch_size(example)
    with undisturbed(model), plain_kernels():
        counter = FlopCounterMode(display=False, custom_mapping=_extra_formulas())
        with counter:
            call(model, example)
    return round(counter.get_total_flops() / (2 * batch))


def batch_size(example: Example) -> int:
    """The length of the first axis of the example's first tensor.

    Raises:
        DataError: the example holds no tensor or no sample.
    """
    values = _arguments(example)
    tensors = [value for value in (*values[0], *values[1].values()) if isinstance(value, Tensor)]
    if not tensors or tensors[0].dim() == 0 or not len(tensors[0]):
        raise DataError(
            problem(
                "footprint",
                "the example holds no sample",
                "give a batch: a tensor, a tuple of tensors or a dict of tensors, samples on the first axis",
            )
        )
    return len(tensors[0])


def call(model: nn.Module, example: Example) -> object:
    """The model's answer to the example; keys that are never handed to a model (`id`, `valid`, `y`) are left out.

    Raises:
        ModelError: the model cannot be called on it.
    """
    positional, named = _arguments(example)
    try:
        return model(*positional, **named)
    except Exception as error:  # whatever it is, the user must learn that it is the example's
        raise ModelError(
            problem(
                "footprint",
                f"{type(model).__name__} cannot be called on the example ({type(error).__name__}: {error})",
                "give a batch as the model's forward takes it, on the model's device",
            )
        ) from error


def _arguments(example: Example) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    if isinstance(example, Mapping):
        return (), {name: value for name, value in example.items() if name not in RESERVED}
    return (example,) if isinstance(example, Tensor) else tuple(example), {}


def _extra_formulas() -> dict[Any, Callable[..., int]]:
    """Operations that torch's counter passes over. It counts FLOPs, two for a multiply-accumulate."""
    aten, quantized = torch.ops.aten, torch.ops.quantized
    formulas: dict[Any, Callable[..., int]] = {aten.dot: _dot, aten.mv: _mv, aten.addmv: _addmv}
    for name in ("linear_dynamic", "linear_relu_dynamic", "linear_dynamic_fp16", "linear_relu_dynamic_fp16"):
        formulas[getattr(quantized, name)] = _quantized_linear
    formulas[aten.quantized_lstm] = _quantized_lstm
    formulas[aten.quantized_gru] = _quantized_gru
    for formula in (_quantized_linear, _quantized_lstm, _quantized_gru):
        vars(formula)["_get_raw"] = True  # the counter's mark for "give tensors, not shapes"
    return formulas


def _dot(a: list[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(a)


def _mv(matrix: list[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _addmv(_bias: list[int], matrix: list[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _quantized_linear(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * out_val.numel() * x.shape[-1]


def _quantized_lstm(x: Tensor, hx: list[Tensor], *rest: Any, **__: Any) -> int:
    return _recurrent(x, hx[0], bool(rest[5]), gates=4)


def _quantized_gru(x: Tensor, hx: Tensor, *rest: Any, **__: Any) -> int:
    return _recurrent(x, hx, bool(rest[5]), gates=3)


def _recurrent(x: Tensor, hx: Tensor, bidirectional: bool, *, gates: int) -> int:
    directions = 2 if bidirectional else 1
    layers, hidden = hx.shape[0] // directions, hx.shape[-1]
    inputs = x.shape[-1] + (layers - 1) * directions * hidden
    steps = x.shape[0] * x.shape[1]
    return 2 * steps * directions * gates * hidden * (inputs + layers * hidden)
