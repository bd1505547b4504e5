"""Losses on outputs: what the teacher answers, class by class and over a batch.

Shapes: B = any leading axes, C = classes. Student first, teacher second, logits in,
one value per example out. In the formulas t and s are the teacher's and the student's softened probabilities.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from limbeck.core.check import positive, same_shape
from limbeck.core.errors import ConfigError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.objectives.geometry import pearson_distance, products
from limbeck.objectives.logspace import (
    Heat,
    Reduction,
    Scaling,
    expected,
    gap,
    log_pair,
    probabilities,
    reduce,
    scale,
    softened,
    standardize,
    tried,
)
from limbeck.objectives.temperature import Temperature
from limbeck.objectives.term import BatchWide, Formula, OnOutput, Softened, check_weights

__all__ = [
    "DIST",
    "MLKD",
    "MSELogits",
    "MSEProbabilities",
    "SoftCrossEntropy",
    "dist",
    "mlkd",
    "mse_logits",
    "mse_probabilities",
    "soft_cross_entropy",
    "standardize",
]


def soft_cross_entropy(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    temperature: Heat = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the student under the teacher's softened answers, times temperature squared.

    It equals `kl` plus the teacher's entropy: the same gradient, a value that does not reach zero.

    Args:
        student_BC: student logits [..., C].
        teacher_BC: teacher logits [..., C].
        temperature: both sides are divided by it before the softmax.
        temperature_scaling: "squared" multiplies by T², "none" leaves the bare cross-entropy.
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: the shapes differ.

    Source: Hinton, Vinyals & Dean 2015, section 2.
    """
    same_shape("soft_cross_entropy", student=student_BC, teacher=teacher_BC)
    log_s = softened("soft_cross_entropy", student_BC, temperature).log_softmax(-1)
    t = softened("soft_cross_entropy", teacher_BC, temperature).softmax(-1)
    value = tried(lambda clear: -(t * (log_s if clear else log_s.masked_fill(t == 0, 0.0))).sum(-1), log_s)
    return reduce(scale(value, temperature, temperature_scaling), reduction)


def mse_logits(student_BC: Tensor, teacher_BC: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared error of logits, averaged over classes.

    Unlike the divergences it sees a constant added to all logits: it asks for the same numbers, not the same answers.

    Args:
        student_BC: student logits [..., C].
        teacher_BC: teacher logits [..., C].
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: the shapes differ.

    Source: Ba & Caruana 2014, "Do deep nets really need to be deep?", section 2.2.
    """
    same_shape("mse_logits", student=student_BC, teacher=teacher_BC)
    if reduction == "mean":  # rows are of one length
        return gap(student_BC, teacher_BC, "mean")
    return reduce(gap(student_BC, teacher_BC).sum(-1) / student_BC.shape[-1], reduction)


def mse_probabilities(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    temperature: Heat = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared error of softened probabilities: summed over classes (the Brier form), averaged over samples.

    Args:
        student_BC: student logits [..., C].
        teacher_BC: teacher logits [..., C]; probabilities p go in as log p.
        temperature: both sides are divided by it before the softmax.
        temperature_scaling: "squared" multiplies by T².
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: the shapes differ.

    Source: the quadratic score of Brier 1950, with the teacher's answers in the place of the outcome.
    """
    s, t = probabilities("mse_probabilities", student_BC, teacher_BC, temperature=temperature)
    value = gap(s, t).sum(-1)
    return reduce(scale(value, temperature, temperature_scaling), reduction)


def dist(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """Match correlations, not values: β·(1 − ρ over the classes of a sample) + γ·(1 − ρ over the samples of a class).

    Args:
        student_BC: student logits [..., C]; all leading axes count as samples of one batch.
        teacher_BC: teacher logits [..., C].
        beta: weight between the classes of a sample.
        gamma: weight between the samples of a class (the mean over classes); 0 for a single sample.
        temperature: both sides are divided by it before the softmax.
        temperature_scaling: "squared" multiplies by T², as the released code does; "none" is the paper's formula.
        reduction: "none" gives one value per example, [...]; what belongs to the batch is shared by all.

    Raises:
        ShapeError: the shapes differ.

    Source: Huang et al. 2022, "Knowledge distillation from a stronger teacher", eq. 8 to 10.
    """
    s, t = probabilities("dist", student_BC, teacher_BC, temperature=temperature)
    between = pearson_distance(s, t)
    within = pearson_distance(s.flatten(0, -2), t.flatten(0, -2), 0).mean()
    return reduce(scale(beta * between + gamma * within, temperature, temperature_scaling), reduction)


def mlkd(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
    samples: float = 1.0,
    classes: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Multi-level logit distillation: at several temperatures, KL, relations of samples, and relations of classes.

    Summed over temperatures T: T²·KL(t ‖ s); the squared difference of P·Pᵀ (samples by samples), over the number of
    samples; the squared difference of Pᵀ·P (classes by classes), over the number of classes.

    Args:
        student_BC: student logits [..., C]; all leading axes count as samples of one batch.
        teacher_BC: teacher logits [..., C].
        temperatures: at which everything is compared.
        samples: weight of the relations between samples.
        classes: weight of the relations between classes.
        reduction: "none" gives one value per example, [...]; what belongs to the batch is shared by all.

    Raises:
        ShapeError: the shapes differ.
        ConfigError: no temperature, or one that is not above zero.

    Source: Jin et al. 2023, "Multi-level logit distillation", section 3. The released code also masks samples by the
    teacher's confidence and adds strongly augmented copies; those belong to the data, not to the loss.
    """
    _some_temperatures(temperatures)
    total = torch.zeros((), device=student_BC.device)
    for temperature in temperatures:
        log_s, log_t = log_pair("mlkd", student_BC, teacher_BC, temperature=temperature)
        alone = scale(expected(log_t, log_t - log_s), temperature, "squared")
        s, t = log_s.exp().flatten(0, -2), log_t.exp().flatten(0, -2)
        by_sample = (products(s, s) - products(t, t)).square().sum(-1).view(alone.shape)
        by_class = (products(s.T, s.T) - products(t.T, t.T)).square().sum() / s.shape[-1]
        total = total + alone + samples * by_sample + classes * by_class
    return reduce(total, reduction)


def _some_temperatures(temperatures: tuple[float, ...]) -> None:
    if not temperatures:
        raise ConfigError(problem("mlkd.temperatures", "there is none", "give some, such as (2.0, 4.0)"))
    for value in temperatures:
        positive("mlkd.temperatures", value)


@setting
class SoftCrossEntropy(Softened):
    """Match the teacher's soft answers by cross-entropy. The formula is `soft_cross_entropy`.

    Matches: what `KL` matches.
    Formula: −T² Σ t log s, which is `kl` plus the teacher's entropy.
    Source: Hinton et al. 2015, section 2.
    Defaults: as `KL`.
    Helps: where numbers must compare with a cross-entropy on labels.
    Cost: one softmax a side.
    Limits: its value does not reach zero; gradients are those of `KL`.
    """

    formula: ClassVar[Formula] = staticmethod(soft_cross_entropy)
    kind: Literal["soft_cross_entropy"] = "soft_cross_entropy"


@setting
class MSELogits(OnOutput):
    """Match the teacher's logits number by number. The formula is `mse_logits`.

    Matches: the logits themselves, their shift and scale included; also any output of numbers.
    Formula: mean over classes of (z_s − z_t)².
    Source: Ba & Caruana 2014, section 2.2.
    Defaults: none to choose.
    Helps: students of nearly their teacher's size, and outputs that are no classes.
    Cost: next to nothing.
    Limits: a small student spends capacity on shifts that no answer depends on.
    """

    formula: ClassVar[Formula] = staticmethod(mse_logits)
    kind: Literal["mse_logits"] = "mse_logits"


@setting
class MSEProbabilities(Softened):
    """Match the teacher's probabilities by squared error. The formula is `mse_probabilities`.

    Matches: probabilities; rare classes all but vanish from the loss.
    Formula: T² Σ (s − t)².
    Source: Brier 1950.
    Defaults: T = 1, the Brier form.
    Helps: noisy teachers: it is bounded, and calm where the teacher is wild.
    Cost: one softmax a side.
    Limits: gradients vanish where the student is sure and wrong.
    """

    formula: ClassVar[Formula] = staticmethod(mse_probabilities)
    kind: Literal["mse_probabilities"] = "mse_probabilities"
    temperature: Temperature = 1.0


@setting
class DIST(BatchWide, OnOutput):
    """Match how answers correlate, over classes and over samples. The formula is `dist`.

    Matches: the order and proportions of the answers, not their values.
    Formula: T² [β (1 − ρ over classes) + γ (1 − ρ over samples)], ρ of softened probabilities.
    Source: Huang et al. 2022, eq. 8 to 10; the T² is the released code's.
    Defaults: β = γ = 1, T = 1, the paper's for ImageNet (β = γ = 2, T = 4 on CIFAR-100).
    Helps: teachers much stronger than the student, whose exact probabilities are out of reach.
    Cost: one softmax a side and a few passes.
    Limits: relations are those of one micro-batch: `accumulate` and the batch size change it.
    """

    formula: ClassVar[Formula] = staticmethod(dist)
    kind: Literal["dist"] = "dist"
    temperature: float = 1.0
    beta: Number = 1.0
    gamma: Number = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnOutput.__post_init__(self)
        positive("dist.temperature", self.temperature)
        check_weights(self.kind, beta=self.beta, gamma=self.gamma)


@setting
class MLKD(BatchWide, OnOutput):
    """Match answers at several temperatures, and how samples and classes relate. The formula is `mlkd`.

    Matches: the distribution, and which samples and which classes go together.
    Formula: Σ over T of T² KL(t ‖ s) + ‖S Sᵀ − T Tᵀ‖² / B + ‖Sᵀ S − Tᵀ T‖² / C.
    Source: Jin et al. 2023, section 3.
    Defaults: T = 2, 3, 4, 5, 6, as released; equal weights.
    Helps: long training with strong augmentation, as in the paper (480 epochs).
    Cost: five softmaxes a side and two small products each.
    Limits: its size is that of five `KL`; the class part grows with the square of the batch, as in the released code.
    """

    formula: ClassVar[Formula] = staticmethod(mlkd)
    kind: Literal["mlkd"] = "mlkd"
    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)
    samples: Number = 1.0
    classes: Number = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnOutput.__post_init__(self)
        _some_temperatures(self.temperatures)
        check_weights(self.kind, samples=self.samples, classes=self.classes)
