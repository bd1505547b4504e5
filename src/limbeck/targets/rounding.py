"""Numbers in smaller types: what is refused, and how far off they are."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.core.errors import DataError, problem

__all__ = ["absmax", "beyond", "id_type", "no_number", "rounded", "rounding", "unwrapped", "wide"]


def id_type(classes: int) -> torch.dtype:
    """The smallest type that holds ids of so many classes; `unwrapped` reads it."""
    return torch.int16 if classes <= 1 << 16 else torch.int32


def unwrapped(ids: Tensor) -> Tensor:
    """Two-byte ids are kept as int16 whose sign is their highest bit: torch does little with uint16."""
    return ids.long() & 0xFFFF if ids.dtype == torch.int16 else ids.long()


def wide(x: Tensor) -> Tensor:
    """Values in at least float32, without gradient."""
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def absmax(x: Tensor) -> Tensor:
    """The largest size in each row."""
    return x.abs().reshape(len(x), -1).amax(1) if x.numel() else x.new_zeros(len(x))


def rounding(size: Tensor, given: torch.dtype, kept: str) -> Tensor:
    """The largest error of values of this size, rounded to a type; float64 goes by way of float32, hence a little."""
    dtype: torch.dtype = getattr(torch, kept)
    if torch.promote_types(given, dtype) == dtype:
        return torch.zeros_like(size)
    info = torch.finfo(dtype)
    error = (size * (info.eps / 2)).clamp_min(info.smallest_normal * info.eps / 2) * (1 + 2**-10)
    return torch.where(size.isinf(), 0.0, error)


def rounded(x: Tensor, dtype: str, output: str) -> Tensor:
    """Values in the type. Refuses NaN, +inf and what overflows; −inf stays."""
    y = x.detach().to(getattr(torch, dtype))
    if not y.isfinite().all() and not ((y == -torch.inf) == (x == -torch.inf)).logical_and(y < torch.inf).all():
        raise DataError(beyond(x, dtype, output))
    return y


def no_number(output: str) -> str:
    """That an output holds what nobody can learn from, and what to do about it."""
    wrong = "a value is NaN, +inf, or belongs to logits that are all −inf"
    mend = "look at the teacher's answers for these samples; they cannot be learned from"
    return problem(f"output {output!r}", wrong, mend)


def beyond(x: Tensor, dtype: str, output: str) -> str:
    """What is wrong with values that the type cannot hold, and what to do about it."""
    where = f"output {output!r}"
    if x.isnan().any() or (x == torch.inf).any():
        return no_number(output)
    if dtype == "int8" and (x == -torch.inf).any():
        return problem(where, "a value of −inf cannot be kept as int8", 'take dtype="float16" or "float32"')
    most = float(x[x.isfinite()].abs().max())
    return problem(where, f"a value of {most:g} is beyond {dtype}", 'take dtype="float32" or "bfloat16"')
