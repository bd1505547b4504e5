"""Tensors and lists of numbers as plain data, short enough for a plan."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import ModelError, problem

__all__ = ["as_ranges", "from_ranges", "pack_values", "unpack_values"]


def pack_values(values: Tensor) -> dict[str, Any]:
    """A float tensor as its shape and its float32 bytes, little end first, in base64."""
    raw = values.detach().cpu().numpy().astype("<f4").tobytes()
    return {"shape": list(values.shape), "float32": base64.b64encode(raw).decode("ascii")}


def unpack_values(packed: Any, where: str) -> Tensor:
    """The float32 tensor that `pack_values` packed.

    Raises:
        ModelError: this is no packed tensor.
    """
    try:
        raw = base64.b64decode(packed["float32"], validate=True)
        return torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32).reshape(packed["shape"]))
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise ModelError(problem(where, "its values are damaged", "restore the plan, or plan again")) from None


def as_ranges(numbers: Iterable[int]) -> str:
    """Rising whole numbers, runs of them by their ends.

    >>> as_ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def from_ranges(text: str, where: str) -> list[int]:
    """The numbers that `as_ranges` wrote.

    Raises:
        ModelError: this is no such text.

    >>> from_ranges("0-2,5", "plan")
    [0, 1, 2, 5]
    """
    try:
        ends = [part.split("-") for part in text.split(",")] if text else []
        return [number for run in ends for number in range(int(run[0]), int(run[-1]) + 1)]
    except (AttributeError, ValueError):
        raise ModelError(problem(where, f"{text!r} names no numbers", "restore the plan, or plan again")) from None
