"""Losses on where and how a layer answers rather than with which numbers: the two sides may differ in width.

Shapes: B = batch, C, D = channels, N = positions of a map or tokens. Student first, teacher second. Of two sizes the
larger is averaged to the smaller.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.check import one_of
from limbeck.core.errors import ConfigError, ShapeError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.feature import check_power
from limbeck.objectives.geometry import products, unit
from limbeck.objectives.heads import Head, Projecting
from limbeck.objectives.logspace import Reduction, gap, reduce, widened
from limbeck.objectives.term import Formula, OnLayers, check_weight

__all__ = ["FSP", "NST", "Attention", "attention", "fsp", "nst"]


def attention(
    student: Tensor,
    teacher: Tensor,
    *,
    p: float = 2.0,
    form: Literal["code", "paper"] = "code",
    reduction: Reduction = "mean",
) -> Tensor:
    """Distance of attention maps: where in a layer the energy is, whatever its channels and its scale.

    A map is the mean of |f|^p over channels, normalised to length one. Maps [B, C, H, W], or tokens [B, N, C] of both
    sides; channels may differ, and of two sizes the larger is averaged to the smaller before the power.

    Args:
        student: the student's layer.
        teacher: the teacher's layer.
        p: at least 1; larger ones look at peaks.
        form: "code" is the mean over positions of the squared difference, "paper" the length of the difference.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the layers are neither both maps nor both tokens, or their batches differ.
        ConfigError: a setting is impossible.

    Source: Zagoruyko & Komodakis 2017, "Paying more attention to attention", eq. 2; "code" is what they released.
    """
    check_power("attention.p", p)
    one_of("attention.form", form, ("code", "paper"))
    s, t = (_energy(x, p) for x in _together("attention", student=student, teacher=teacher))
    value = gap(s, t).sum(1) / s.shape[1] if form == "code" else torch.linalg.vector_norm(s - t, dim=1)
    return reduce(value, reduction)


def _energy(x_BCN: Tensor, p: float) -> Tensor:
    """Attention maps [B, N]. What is normalised may be scaled first, so that no power overflows or vanishes."""
    seen = x_BCN.detach()
    peak = torch.maximum(seen.amax((1, 2), keepdim=True), -seen.amin((1, 2), keepdim=True))
    if not _tame(peak, p):
        x_BCN = x_BCN / torch.where(peak == 0, 1.0, peak)
    return unit((x_BCN.square() if p == 2 else x_BCN.abs().pow(p)).sum(1))


def _tame(peak_B11: Tensor, p: float) -> bool:
    """Whether no sample needs scaling for this power; only known on a CPU, where a look costs less than a pass."""
    if p > 4 or peak_B11.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(((peak_B11 > 1e-3) & (peak_B11 < 1e3)).all())


def nst(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared MMD between the channels of both sides as unit vectors over positions, with the kernel (a·b)².

    The layers are those of `attention`. It sees neither the order nor the sign nor the scale of a channel, and is taken
    from inner products between channels or between positions, whichever are fewer: no pair of channels is unfolded.

    Source: Huang & Wang 2017, "Like what you like: knowledge distill via neuron selectivity transfer", section 4.
    """
    s, t = (unit(x) for x in _together("nst", student=student, teacher=teacher))
    positions, width_s, width_t = s.shape[2], s.shape[1], t.shape[1]
    if positions * (width_s + width_t) <= width_s**2 + width_s * width_t + width_t**2:
        gap = products(s.mT, s.mT) / width_s - products(t.mT, t.mT) / width_t
        return reduce(gap.square().sum((1, 2)), reduction)
    same_s, same_t, cross = (products(a, b).square().mean((1, 2)) for a, b in ((s, s), (t, t), (s, t)))
    return reduce(same_t + same_s - 2 * cross, reduction)


def fsp(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, reduction: Reduction = "mean") -> Tensor:
    """Mean squared error of flow matrices: the inner products of the channels of two layers, mean over positions.

    Args:
        student: two layers of the student, both maps or both tokens.
        teacher: two layers of the teacher with the same channels; its positions may be others.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the channels of the two sides differ, or two layers cannot be brought together.

    Source: Yim et al. 2017, "A gift from knowledge distillation", eqs. 1 and 2.
    """
    s, t = (_flow(*_together("fsp", first=pair[0], second=pair[1])) for pair in (student, teacher))
    if s.shape != t.shape:
        wrong = f"the student's flow is {tuple(s.shape)}, the teacher's {tuple(t.shape)} (batch, channels, channels)"
        raise ShapeError(problem("fsp", wrong, 'give both the same channels: `head="auto"` projects them'))
    return reduce(gap(s, t).sum((1, 2)) / math.prod(s.shape[1:]), reduction)


def _flow(first_BCN: Tensor, second_BDN: Tensor) -> Tensor:
    return products(first_BCN, second_BDN) / first_BCN.shape[2]


def _together(where: str, **named: Tensor) -> list[Tensor]:
    """Two layers as [B, C, positions] each, the larger averaged to the positions of the smaller."""
    sides = list(named.values())
    if len({(x.dim(), x.shape[0]) if x.dim() else () for x in sides}) > 1 or sides[0].dim() not in (3, 4):
        seen = ", ".join(f"{name} is {tuple(x.shape)}" for name, x in named.items())
        raise ShapeError(problem(where, seen, "give maps [B, C, H, W] or tokens [B, N, C] of one batch on both sides"))
    maps = [widened(x if x.dim() == 4 else x.mT) for x in sides]
    least = [min(sizes) for sizes in zip(*(x.shape[2:] for x in maps), strict=True)]
    pool: Any = F.adaptive_avg_pool2d if len(least) == 2 else F.adaptive_avg_pool1d
    return [(x if list(x.shape[2:]) == least else pool(x, least)).flatten(2) for x in maps]


@setting
class Attention(OnLayers):
    """Match where a layer's energy lies. The formula is `attention`.

    Matches: the places that a layer answers to, blind to channels and scale.
    Formula: mean of (a_s − a_t)² over positions; a is the mean of |f|^p over channels, of length one.
    Source: Zagoruyko & Komodakis 2017, eq. 2, in the form of their code ("paper": the length of a_s − a_t).
    Defaults: p = 2, no head; weight 1000, that of the usual benchmark code, for each of three or four layers.
    Helps: convolutional networks of one family, a term for the end of each stage.
    Cost: one pass over both layers.
    Limits: vectors have no places; what differs between channels goes unseen.
    """

    formula: ClassVar[Formula] = staticmethod(attention)
    kind: Literal["attention"] = "attention"
    weight: Number = 1000.0
    head: str = "none"
    p: float = 2.0
    form: Literal["code", "paper"] = "code"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnLayers.__post_init__(self)
        check_power("attention.p", self.p)
        one_of("attention.form", self.form, ("code", "paper"))


@setting
class NST(OnLayers):
    """Match how a layer's channels are spread, as a set. The formula is `nst`.

    Matches: the distribution of channels, each a direction over positions; blind to their order, sign and number.
    Formula: mean k(t, t') + mean k(s, s') − 2 mean k(s, t) over pairs of channels, k(a, b) = (a·b)².
    Source: Huang & Wang 2017, section 4, with their polynomial kernel (d = 2, c = 0).
    Defaults: no head; weight 50, that of the usual benchmark code.
    Helps: where channels differ in number and a projection would hide what they select.
    Cost: inner products of all channels, or of all positions if that is less.
    Limits: vectors have no places; which channel answers to which pattern goes unseen, only where they answer counts.
    """

    formula: ClassVar[Formula] = staticmethod(nst)
    kind: Literal["nst"] = "nst"
    weight: Number = 50.0
    head: str = "none"


@setting
class FSP:
    """Match how one layer leads to another. The formula is `fsp`.

    Matches: inner products between the channels of two layers of one network.
    Formula: mean of (G_s − G_t)², G = (1 / HW) Σ a·b over positions, for all pairs of channels.
    Source: Yim et al. 2017, eqs. 1 and 2.
    Defaults: a linear map of the channels where they differ; weight 50, that of the usual benchmark code.
    Helps: a first stage between networks of one family, the first and last layer of each stage.
    Cost: one product of two layers a side.
    Limits: it grows with the fourth power of the activations, so they should be normalised.
    """

    kind: Literal["fsp"] = "fsp"
    student: tuple[str, str]
    teacher: tuple[str, str]
    weight: Number = 50.0
    head: Literal["auto", "none"] = "auto"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        one_of("fsp.head", self.head, ("auto", "none"))
        for side, names in (("student", self.student), ("teacher", self.teacher)):
            if not isinstance(names, tuple) or len(names) != 2:
                raise ConfigError(problem(f"fsp.{side}", f"{names!r} is no pair", "name two layers, first and last"))

    def needs(self) -> Needs:
        """Two layers on each side."""
        return Needs(frozenset(self.student), frozenset(self.teacher))

    def heads(self) -> tuple[Head, ...]:
        """A projection for each of the two layers; none where they are compared as they are."""
        if self.head == "none":
            return ()
        triples = zip(self.projected, self.student, self.teacher, strict=True)
        return tuple(Projecting(name=name, source=s, target=t, form="channels") for name, s, t in triples)

    @property
    def projected(self) -> tuple[str, ...]:
        """The names under which the student's signal holds the layers that are compared."""
        pairs = zip(self.student, self.teacher, strict=True)
        return self.student if self.head == "none" else tuple(f"fsp:{s}>{t}" for s, t in pairs)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per example."""
        (a_s, b_s), (a_t, b_t) = (student[k] for k in self.projected), (teacher[k] for k in self.teacher)
        return fsp((a_s, b_s), (a_t, b_t), reduction="none")
