"""The one divergence core: every loss between distributions is built on these few lines.

Shapes: B = any leading axes, C = classes. Student first, teacher second, logits in, one value per example out.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.core.check import one_of, positive, same_shape

__all__ = ["LogPair", "Reduction", "Scaling", "expected", "kl", "log_pair", "reduce", "scale"]

Reduction = Literal["mean", "sum", "none"]
Scaling = Literal["squared", "none"]


class LogPair(NamedTuple):
    """Log-probabilities of both sides, in at least float32."""

    student: Tensor
    teacher: Tensor


def widened(x: Tensor) -> Tensor:
    """At least float32: half precision is raised, float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def log_pair(where: str, student_BC: Tensor, teacher_BC: Tensor, *, temperature: float = 1.0) -> LogPair:
    """Softened log-probabilities of both sides.

    Raises:
        ShapeError: the shapes differ.
        ConfigError: the temperature is not above zero.
    """
    same_shape(where, student=student_BC, teacher=teacher_BC)
    positive(f"{where}.temperature", temperature)
    return LogPair(
        (widened(student_BC) / temperature).log_softmax(-1),
        (widened(teacher_BC) / temperature).log_softmax(-1),
    )


def expected(log_p_BC: Tensor, value_BC: Tensor) -> Tensor:
    """The mean of `value` under p, summed over classes. A class with p = 0 adds nothing, whatever its value."""
    dead = log_p_BC == -torch.inf
    # The inputs are masked, not the product: 0 * inf would be NaN, and so would its gradient.
    return (log_p_BC.exp() * value_BC.masked_fill(dead, 0.0)).sum(-1)


def scale(value: Tensor, temperature: float, scaling: Scaling) -> Tensor:
    """Apply temperature squared, which keeps gradients level as T grows (Hinton et al. 2015, section 2)."""
    one_of("temperature_scaling", scaling, ("squared", "none"))
    return value * temperature**2 if scaling == "squared" and temperature != 1.0 else value


def reduce(value: Tensor, reduction: Reduction) -> Tensor:
    """Mean, sum, or the values themselves."""
    one_of("reduction", reduction, ("mean", "sum", "none"))
    if reduction == "none":
        return value
    return value.mean() if reduction == "mean" else value.sum()


def kl(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    temperature: float = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher || student) between softened distributions, times temperature squared.

    Args:
        student_BC: student logits [..., C].
        teacher_BC: teacher logits [..., C].
        temperature: both sides are divided by it before the softmax.
        temperature_scaling: "squared" multiplies by T², "none" leaves the bare divergence.
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: the shapes differ.
        ConfigError: a setting is impossible.

    Source: Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network", section 2.
    """
    log_s, log_t = log_pair("kl", student_BC, teacher_BC, temperature=temperature)
    return reduce(scale(expected(log_t, log_t - log_s), temperature, temperature_scaling), reduction)
