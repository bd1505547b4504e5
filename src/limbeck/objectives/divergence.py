"""Divergences between the student's and the teacher's answers.

Shapes: B = any leading axes, C = classes. Student first, teacher second, logits in, one value per example out. In the
formulas t and s are the teacher's and the student's softened probabilities.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from limbeck.core.check import not_negative
from limbeck.core.errors import ConfigError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.objectives.logspace import (
    Heat,
    Reduction,
    Scaling,
    expected,
    log_mix,
    log_pair,
    probabilities,
    reduce,
    scale,
    tried,
)
from limbeck.objectives.temperature import Temperature
from limbeck.objectives.term import Formula, Softened, check_share

__all__ = [
    "JSD",
    "KL",
    "AlphaBeta",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "TotalVariation",
    "alpha_beta",
    "jsd",
    "kl",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
]


def kl(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    temperature: Heat = 1.0,
    standardize: bool = False,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(t ‖ s) between softened distributions, times temperature squared: the student covers all the teacher does.

    Args:
        student_BC: student logits [..., C].
        teacher_BC: teacher logits [..., C].
        temperature: both sides are divided by it before the softmax; a number, or one for each example.
        standardize: give the logits of both sides mean 0 and deviation 1 first (see `standardize`).
        temperature_scaling: "squared" multiplies by T², "none" leaves the bare divergence.
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: the shapes differ.
        ConfigError: a setting is impossible.

    Source: Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network", section 2.
    """
    log_s, log_t = log_pair("kl", student_BC, teacher_BC, temperature=temperature, standardized=standardize)
    return reduce(scale(expected(log_t, log_t - log_s), temperature, temperature_scaling), reduction)


def reverse_kl(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    temperature: Heat = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(s ‖ t), times temperature squared: the student stays where the teacher is sure, and may leave modes out.

    Arguments and errors are those of `kl`.

    Source: Gu et al. 2024, "MiniLLM", section 2.1.
    """
    log_s, log_t = log_pair("reverse_kl", student_BC, teacher_BC, temperature=temperature)
    return reduce(scale(expected(log_s, log_s - log_t), temperature, temperature_scaling), reduction)


def jsd(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    beta: float = 0.5,
    temperature: Heat = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """Generalised Jensen-Shannon: β·KL(t ‖ m) + (1 − β)·KL(s ‖ m), with m = β·t + (1 − β)·s; at most ln 2 (T = 1).

    It vanishes with β and with 1 − β (jsd / β tends to `kl`, jsd / (1 − β) to `reverse_kl`), so the ends are refused.

    Args:
        beta: above 0 and below 1; the teacher's share.
        The others, and the errors, are those of `kl`.

    Source: Agarwal et al. 2024, "On-policy distillation of language models" (GKD), eq. 1.
    """
    check_share("jsd.beta", beta, low="reverse_kl", high="kl")
    log_s, log_t = log_pair("jsd", student_BC, teacher_BC, temperature=temperature)

    def both(clear: bool) -> Tensor:
        log_m = log_mix(log_t, log_s, beta, clear=clear)
        left, right = (expected(log_x, log_x - log_m, clear=clear) for log_x in (log_t, log_s))
        return beta * left + (1 - beta) * right

    return reduce(scale(tried(both, log_s), temperature, temperature_scaling), reduction)


def skew_kl(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    alpha: float = 0.1,
    temperature: Heat = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(t ‖ α·t + (1 − α)·s): `kl` whose gradient stays bounded where the student is far off.

    Args:
        alpha: above 0 and below 1; the share of the teacher in the mixture. `kl` is the limit at 0.
        The others, and the errors, are those of `kl`.

    Source: Ko et al. 2024, "DistiLLM", section 3.1 (there SKL; the released code leaves the teacher's entropy out).
    """
    check_share("skew_kl.alpha", alpha, low="kl", high="no loss")
    log_s, log_t = log_pair("skew_kl", student_BC, teacher_BC, temperature=temperature)
    value = _to_mix(log_t, log_s, alpha)
    return reduce(scale(value, temperature, temperature_scaling), reduction)


def skew_reverse_kl(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    alpha: float = 0.1,
    temperature: Heat = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(s ‖ α·s + (1 − α)·t): `reverse_kl` that stays finite where the teacher is sure.

    Args:
        alpha: above 0 and below 1; the share of the student in the mixture. `reverse_kl` is the limit at 0.
        The others, and the errors, are those of `kl`.

    Source: Ko et al. 2024, "DistiLLM", section 3.1 (there called SRKL).
    """
    check_share("skew_reverse_kl.alpha", alpha, low="reverse_kl", high="no loss")
    log_s, log_t = log_pair("skew_reverse_kl", student_BC, teacher_BC, temperature=temperature)
    value = _to_mix(log_s, log_t, alpha)
    return reduce(scale(value, temperature, temperature_scaling), reduction)


def _to_mix(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """KL(p ‖ `share`·p + (1 − `share`)·q)."""
    return tried(lambda clear: expected(log_p, log_p - log_mix(log_p, log_q, share, clear=clear), clear=clear), log_p)


def total_variation(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    temperature: Heat = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """Half the summed absolute difference of the softened probabilities: 0 to 1 (T = 1), bounded gradients.

    Arguments and errors are those of `kl`.

    Source: Wen et al. 2023, "f-Divergence minimization for sequence-level knowledge distillation", section 3.
    """
    s, t = probabilities("total_variation", student_BC, teacher_BC, temperature=temperature)
    value = (s - t).abs().sum(-1) / 2
    return reduce(scale(value, temperature, temperature_scaling), reduction)


def alpha_beta(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: Heat = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """The α-β divergence: −1/(αβ) Σ [t^α s^β − α/(α+β) t^(α+β) − β/(α+β) s^(α+β)], continued to its limits.

    (1, 0) is `kl` and (0, 1) `reverse_kl`; (½, ½) is four times the squared Hellinger distance; (1, 1) is half the
    squared error of probabilities. At an end the true limit is taken (a factor 1/α², where the released code has 1/α).

    Args:
        alpha: weight on the teacher's side, 0 or more.
        beta: weight on the student's side, 0 or more; not both 0.
        The others, and the errors, are those of `kl`.

    Source: Wang et al. 2025, "ABKD", eq. 5; Cichocki, Cruces & Amari 2011, section 2.
    """
    _exponents("alpha_beta", alpha, beta)
    log_s, log_t = log_pair("alpha_beta", student_BC, teacher_BC, temperature=temperature)
    if beta == 0:
        value = _limit(log_t, log_s, alpha)
    elif alpha == 0:
        value = _limit(log_s, log_t, beta)
    else:
        kind = log_s.dtype
        if min(alpha, beta) < 0.05:  # three terms that all but cancel, over a small number
            log_s, log_t = log_s.double(), log_t.double()
        both = alpha + beta
        mixed = (alpha * log_t + beta * log_s).exp()
        own = alpha / both * (both * log_t).exp() + beta / both * (both * log_s).exp()
        value = ((own - mixed).sum(-1) / (alpha * beta)).to(kind)
    return reduce(scale(value, temperature, temperature_scaling), reduction)


def _limit(log_p: Tensor, log_q: Tensor, power: float) -> Tensor:
    """The α-β divergence where one exponent is `power` (on p) and the other tends to 0."""
    p, q = power * log_p, power * log_q
    return (expected(p, p - q) - (p.exp() - q.exp()).sum(-1)) / power**2


def _exponents(where: str, alpha: Number, beta: Number) -> None:
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not callable(value):
            not_negative(f"{where}.{name}", value)
    if alpha == 0 and beta == 0:
        raise ConfigError(problem(where, "alpha and beta are both 0", "give one of them above 0, such as beta=0.7"))


@setting
class KL(Softened):
    """Match the teacher's soft answers. The formula is `kl`.

    Matches: the whole distribution over classes, so also which wrong answers are nearly right.
    Formula: T² Σ t (log t − log s), with t, s = softmax(logits / T).
    Source: Hinton et al. 2015, section 2.
    Defaults: T = 2 and the factor T², which keeps the size of the gradient level as T grows.
    Helps: the first thing to try; most where labels are few or the student is trained briefly.
    Cost: one softmax a side.
    Limits: it needs the same classes on both sides; a weight near 1 with a weak teacher crowds the labels out.
    """

    formula: ClassVar[Formula] = staticmethod(kl)
    kind: Literal["kl"] = "kl"
    standardize: bool = False


@setting
class ReverseKL(Softened):
    """Match the teacher where the student is sure. The formula is `reverse_kl`.

    Matches: the distribution over classes, weighed by the student's own probabilities.
    Formula: T² Σ s (log s − log t).
    Source: Gu et al. 2024 (MiniLLM), section 2.1.
    Defaults: T = 1, as language models are distilled.
    Helps: generation with a student too small for all of the teacher's modes: it drops modes instead of blurring them.
    Cost: one softmax a side.
    Limits: it forgives what the student leaves out; where there is one true class, `kl` is the better start.
    """

    formula: ClassVar[Formula] = staticmethod(reverse_kl)
    kind: Literal["reverse_kl"] = "reverse_kl"
    temperature: Temperature = 1.0


@setting
class JSD(Softened):
    """Match both ways, through the mixture of the two. The formula is `jsd`.

    Matches: the distribution over classes, in a way that lies between `kl` and `reverse_kl`.
    Formula: T² [β KL(t ‖ m) + (1 − β) KL(s ‖ m)], m = β t + (1 − β) s.
    Source: Agarwal et al. 2024 (GKD), eq. 1.
    Defaults: β = 0.5, the symmetric form; T = 1.
    Helps: language models trained on their own samples, and teachers that are wrong with confidence: it is bounded.
    Cost: one softmax a side and one mixture.
    Limits: its size falls with β and with 1 − β: another β needs another weight or rate.
    """

    formula: ClassVar[Formula] = staticmethod(jsd)
    kind: Literal["jsd"] = "jsd"
    temperature: Temperature = 1.0
    beta: Number = 0.5

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        Softened.__post_init__(self)
        check_share("jsd.beta", self.beta, low="reverse_kl", high="kl")


@setting
class SkewKL(Softened):
    """Match the teacher through a mixture that holds a share of it. The formula is `skew_kl`.

    Matches: the distribution over classes, as `kl`, with bounded gradients where the student gives almost nothing.
    Formula: T² KL(t ‖ α t + (1 − α) s).
    Source: Ko et al. 2024 (DistiLLM), section 3.1.
    Defaults: α = 0.1, the paper's best; T = 1.
    Helps: large vocabularies, early training, and students far from their teacher.
    Cost: one softmax a side and one mixture.
    Limits: with α near 1 nothing is left to learn.
    """

    formula: ClassVar[Formula] = staticmethod(skew_kl)
    kind: Literal["skew_kl"] = "skew_kl"
    temperature: Temperature = 1.0
    alpha: Number = 0.1

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        Softened.__post_init__(self)
        check_share("skew_kl.alpha", self.alpha, low="kl", high="no loss")


@setting
class SkewReverseKL(Softened):
    """Match the teacher where the student is sure, through a mixture. The formula is `skew_reverse_kl`.

    Matches: the distribution over classes, as `reverse_kl`, but finite where the teacher rules a class out.
    Formula: T² KL(s ‖ α s + (1 − α) t).
    Source: Ko et al. 2024 (DistiLLM), section 3.1.
    Defaults: α = 0.1, the paper's best; T = 1. The gradient also flows through the mixture (DistiLLM-2 stops it there).
    Helps: answers that the student generated itself.
    Cost: one softmax a side and one mixture.
    Limits: as `reverse_kl`, it forgives what the student leaves out.
    """

    formula: ClassVar[Formula] = staticmethod(skew_reverse_kl)
    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    temperature: Temperature = 1.0
    alpha: Number = 0.1

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        Softened.__post_init__(self)
        check_share("skew_reverse_kl.alpha", self.alpha, low="reverse_kl", high="no loss")


@setting
class TotalVariation(Softened):
    """Match probabilities by their absolute difference. The formula is `total_variation`.

    Matches: the distribution over classes; no class can cost more than its probability.
    Formula: T² ½ Σ |t − s|.
    Source: Wen et al. 2023, section 3.
    Defaults: T = 1.
    Helps: teachers with wild tails, since it is bounded and blind to ratios of tiny probabilities.
    Cost: one softmax a side.
    Limits: the gradient vanishes where the student is sure and wrong; with T² it grows with T, so T = 1 is best.
    """

    formula: ClassVar[Formula] = staticmethod(total_variation)
    kind: Literal["total_variation"] = "total_variation"
    temperature: Temperature = 1.0


@setting
class AlphaBeta(Softened):
    """Match the teacher by a divergence with two dials. The formula is `alpha_beta`.

    Matches: the distribution over classes; α sharpens the teacher's say, β the student's.
    Formula: −T²/(αβ) Σ [t^α s^β − α/(α+β) t^(α+β) − β/(α+β) s^(α+β)].
    Source: Wang et al. 2025 (ABKD), eq. 5.
    Defaults: α = 0.2, β = 0.7, the paper's setting for language models; T = 1.
    Helps: where neither `kl` (it spreads) nor `reverse_kl` (it drops) is right; the dials move between them.
    Cost: one softmax a side and three powers; in float64 where a dial is below 0.05, as terms then cancel.
    Limits: two more numbers to choose, on validation.
    """

    formula: ClassVar[Formula] = staticmethod(alpha_beta)
    kind: Literal["alpha_beta"] = "alpha_beta"
    temperature: Temperature = 1.0
    alpha: Number = 0.2
    beta: Number = 0.7

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        Softened.__post_init__(self)
        _exponents("alpha_beta", self.alpha, self.beta)
