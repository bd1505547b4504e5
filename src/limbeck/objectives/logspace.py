"""The one numerical core: every loss between distributions is built on these few lines.

Log-probabilities in at least float32, never probabilities; a class that is ruled out (-inf) is masked on the way in and
not on the way out, because 0 * inf is NaN and so is its gradient.

Shapes: B = any leading axes, C = classes. Student first, teacher second, logits in, one value per example out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.check import one_of, positive, same_shape
from limbeck.core.errors import ShapeError, problem

__all__ = [
    "Heat",
    "LogPair",
    "Reduction",
    "Scaling",
    "complement",
    "expected",
    "gap",
    "log_mix",
    "log_pair",
    "probabilities",
    "reduce",
    "scale",
    "softened",
    "standardize",
    "tried",
    "widened",
]

Reduction = Literal["mean", "sum", "none"]
Scaling = Literal["squared", "none"]
Heat = float | Tensor
"""A temperature: one number, or one for each example (any shape that broadcasts against the leading axes)."""

LN2 = math.log(2.0)


class LogPair(NamedTuple):
    """Log-probabilities of both sides, in at least float32."""

    student: Tensor
    teacher: Tensor


def widened(x: Tensor) -> Tensor:
    """At least float32: half precision is raised, float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def softened(where: str, logits_BC: Tensor, temperature: Heat) -> Tensor:
    """Logits over temperature, in at least float32.

    Raises:
        ConfigError: the temperature is not above zero.
    """
    logits_BC = widened(logits_BC)
    if isinstance(temperature, Tensor):
        return logits_BC / temperature.unsqueeze(-1)
    positive(f"{where}.temperature", temperature)
    return logits_BC / temperature if temperature != 1.0 else logits_BC


def log_pair(
    where: str, student_BC: Tensor, teacher_BC: Tensor, *, temperature: Heat = 1.0, standardized: bool = False
) -> LogPair:
    """Softened log-probabilities of both sides.

    Raises:
        ShapeError: the shapes differ.
        ConfigError: the temperature is not above zero.
    """
    same_shape(where, student=student_BC, teacher=teacher_BC)
    if standardized:
        student_BC, teacher_BC = standardize(student_BC), standardize(teacher_BC)
    return LogPair(
        softened(where, student_BC, temperature).log_softmax(-1),
        softened(where, teacher_BC, temperature).log_softmax(-1),
    )


def probabilities(where: str, student_BC: Tensor, teacher_BC: Tensor, *, temperature: Heat = 1.0) -> LogPair:
    """Softened probabilities of both sides, for losses that take no logarithm of them; errors as in `log_pair`."""
    same_shape(where, student=student_BC, teacher=teacher_BC)
    return LogPair(*(softened(where, x, temperature).softmax(-1) for x in (student_BC, teacher_BC)))


def standardize(logits_BC: Tensor) -> Tensor:
    """Logits with mean 0 and (unbiased) standard deviation 1 over the classes: blind to their shift and scale.

    Logits that are all equal, or a single class, become zeros. With two classes only their order is left (±0.71).

    Args:
        logits_BC: logits [..., C].

    Source: Sun et al. 2024, "Logit standardization in knowledge distillation", section 4. (The released code adds 1e-7
    to the deviation, which is lost in half precision; here the deviation of constant logits is replaced instead.)
    """
    logits_BC = widened(logits_BC)
    mean = logits_BC.mean(-1, keepdim=True)
    centred = logits_BC - mean
    freedom = max(logits_BC.shape[-1] - 1, 1)
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(freedom)
    flat = deviation <= 8 * torch.finfo(centred.dtype).eps * mean.abs()  # nothing but the rounding of the mean
    return centred * torch.where(flat, 0.0, 1 / torch.where(flat, 1.0, deviation))


def tried(value: Callable[[bool], Tensor], example: Tensor) -> Tensor:
    """`value(True)`, taken without masks, where that is a number; `value(False)`, with them, elsewhere.

    A class that is ruled out gives 0 * inf, so NaN, in its row: a look at the rows costs less than masks, on a CPU;
    elsewhere a look would wait, and in a compiled graph there is none.
    """
    if example.device.type == "cpu" and not torch.compiler.is_compiling():
        bare = value(True)
        if not bool(bare.detach().isnan().any()):
            return bare
    return value(False)


def expected(log_p_BC: Tensor, value_BC: Tensor, *, clear: bool | None = None) -> Tensor:
    """The mean of `value` under p, summed over classes. A class with p = 0 adds nothing, whatever its value.

    `clear` leaves the masks out, for what is `tried`; by default it is tried here.
    """
    if clear is None:
        return tried(lambda known: expected(log_p_BC, value_BC, clear=known), log_p_BC)
    if clear:
        return (log_p_BC.exp() * value_BC).sum(-1)
    dead = log_p_BC == -torch.inf
    return (log_p_BC.exp() * value_BC.masked_fill(dead, 0.0)).sum(-1)


def log_mix(log_p_BC: Tensor, log_q_BC: Tensor, share: float, *, clear: bool = False) -> Tensor:
    """Log of `share`·p + (1 − `share`)·q, for a share above 0 and below 1; `clear` as in `expected`."""
    if clear:
        return torch.logaddexp(log_p_BC + math.log(share), log_q_BC + math.log1p(-share))
    dead = (log_p_BC == -torch.inf) & (log_q_BC == -torch.inf)
    first = log_p_BC.masked_fill(dead, 0.0) + math.log(share)
    second = log_q_BC.masked_fill(dead, 0.0) + math.log1p(-share)
    return torch.logaddexp(first, second).masked_fill(dead, -torch.inf)


def gap(student: Tensor, teacher: Tensor, reduction: Reduction = "none") -> Tensor:
    """Squared differences in at least float32, in one pass each way; "mean" is over all of them."""
    student, teacher = widened(student), widened(teacher)
    kind = torch.promote_types(student.dtype, teacher.dtype)
    return F.mse_loss(student.to(kind), teacher.to(kind), reduction=reduction)


def complement(log_p: Tensor) -> Tensor:
    """log(1 − p) from log p, exact at both ends (Mächler 2012); −inf where p is 1 (or rounds above it)."""
    near = log_p > -LN2
    full = log_p >= 0
    small = torch.where(near & ~full, log_p, torch.full_like(log_p, -0.5))
    large = torch.where(near, torch.full_like(log_p, -1.0), log_p)
    value = torch.where(near, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))
    return value.masked_fill(full, -torch.inf)


def scale(value: Tensor, temperature: Heat, scaling: Scaling) -> Tensor:
    """Apply temperature squared, which keeps gradients level as T grows (Hinton et al. 2015, section 2)."""
    one_of("temperature_scaling", scaling, ("squared", "none"))
    if scaling == "none" or (not isinstance(temperature, Tensor) and temperature == 1.0):
        return value
    return value * temperature**2


def reduce(value: Tensor, reduction: Reduction) -> Tensor:
    """Mean, sum, or the values themselves."""
    one_of("reduction", reduction, ("mean", "sum", "none"))
    if reduction == "none":
        return value
    return value.mean() if reduction == "mean" else value.sum()


def classes_of(where: str, *, least: int, **named: Tensor) -> None:
    """Refuse logits with fewer than `least` classes."""
    for name, value in named.items():
        if value.dim() < 1 or value.shape[-1] < least:
            wrong = f"{name} is {tuple(value.shape)}, with fewer than {least} classes"
            raise ShapeError(problem(where, wrong, "give logits [..., classes]"))
