"""Losses of a student that answers more than once: peers that teach each other, and exits that its own end teaches.

What teaches is held still: no gradient reaches a peer, or the last layers, through answers that others learn from.

Shapes: B = any leading axes, P = peers, C = classes. Peers come as one tensor, [B, P, C].
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.core.check import one_of, positive
from limbeck.core.errors import ConfigError, ShapeError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.divergence import kl
from limbeck.objectives.heads import HEAD_FORMS, Head, Projected, make_head
from limbeck.objectives.label import label_cross_entropy
from limbeck.objectives.logspace import Reduction, Scaling, reduce
from limbeck.objectives.term import AnyTerm, Formula, check_weight, weighted

__all__ = ["Each", "Exits", "Mutual", "exits", "mutual"]


def mutual(
    peers_BPC: Tensor,
    *,
    temperature: float = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """Σᵢ 1/(P−1) Σ_{j≠i} KL(pⱼ ‖ pᵢ), where pⱼ is held still: each peer learns from all the others.

    Args:
        peers_BPC: logits of P peers, at least two, [..., P, C].
        temperature: all are divided by it before the softmax.
        temperature_scaling: "squared" multiplies by T², "none" leaves the bare divergence.
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: there are fewer than two peers.

    Source: Zhang et al. 2018, "Deep mutual learning", eqs. 5 to 8. There each peer has a loss and an optimizer of its
    own; as no gradient passes between them, their sum has the same gradient.
    """
    if peers_BPC.dim() < 2 or peers_BPC.shape[-2] < 2:
        wrong = f"the peers' logits are {tuple(peers_BPC.shape)}"
        raise ShapeError(problem("mutual", wrong, "give two peers or more, [..., peers, classes]"))
    peers = peers_BPC.shape[-2]
    square = (*peers_BPC.shape[:-1], peers, peers_BPC.shape[-1])
    learns, teaches = peers_BPC.unsqueeze(-2).expand(square), peers_BPC.detach().unsqueeze(-3).expand(square)
    # A peer against itself is 0, with no gradient, so nothing needs to be left out.
    value = kl(learns, teaches, temperature=temperature, temperature_scaling=temperature_scaling, reduction="none")
    return reduce(value.sum((-1, -2)) / (peers - 1), reduction)


def exits(
    exit_BC: Tensor,
    deepest_BC: Tensor,
    y: Tensor,
    *,
    share: float = 0.3,
    temperature: float = 3.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """(1 − share)·label cross-entropy + share·T² KL(deepest ‖ exit), where the deepest answer is held still.

    Args:
        exit_BC: logits of a shallow exit [..., C].
        deepest_BC: logits of the whole network [..., C].
        y: labels, as `label_cross_entropy` takes them; without one, only the second part is paid.
        share: of the deepest answer.
        temperature: of the second part.
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: the shapes differ, or labels and logits do not line up.

    Source: Zhang et al. 2019, "Be your own teacher", eqs. 4 and 5. (Its hint on features, eq. 6, is left out.)
    """
    soft = kl(exit_BC, deepest_BC.detach(), temperature=temperature, reduction="none")
    return reduce((1 - share) * label_cross_entropy(exit_BC, y, reduction="none") + share * soft, reduction)


@setting
class Mutual:
    """Peers that learn together match each other. The formula is `mutual`.

    Matches: each peer the distributions of all the others, which are held still.
    Formula: T² Σᵢ 1/(P−1) Σ_{j≠i} KL(pⱼ ‖ pᵢ).
    Source: Zhang et al. 2018 (Deep mutual learning), eqs. 5 to 8.
    Defaults: T = 1 and weight 1, the paper's; labels for every peer come from `Each(term=Label())` beside it.
    Helps: where there is no good teacher: peers of one size that began apart each end better than alone.
    Cost: P forward and backward passes, P² divergences of logits.
    Limits: a student of peers (`limbeck.Peers`), of the same classes. The first peer is the student that is kept.
    """

    formula: ClassVar[Formula] = staticmethod(mutual)
    kind: Literal["mutual"] = "mutual"
    weight: Number = 1.0
    on: str = "peers"
    temperature: Number = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        if not callable(self.temperature):
            positive("mutual.temperature", self.temperature)

    def needs(self) -> Needs:
        """The peers' logits; no teacher."""
        return Needs(student=frozenset({self.on}))

    def heads(self) -> tuple[Head, ...]:
        """None."""
        return ()

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per example."""
        return mutual(_peers("mutual", student[self.on]), temperature=self.temperature, reduction="none")  # type: ignore[arg-type]


@setting
class Each:
    """Apply a term to every peer, and add up what it says.

    Matches: what the term inside matches, for each peer.
    Formula: Σᵢ of the term's value, with the logits of peer i as the student's.
    Source: Zhang et al. 2018 (Deep mutual learning), eq. 6: every peer has its own loss on the labels.
    Defaults: none to choose.
    Helps: labels for peers, `Each(term=Label())`, and a teacher for them, `Each(term=KL())`.
    Cost: P times that of the term inside.
    Limits: terms on outputs: layers of a peer are read by their own names, as in "peer.0.layer2".
    """

    kind: Literal["each"] = "each"
    term: AnyTerm
    weight: Number = 1.0
    on: str = "peers"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        if isinstance(self.term, type) or not hasattr(self.term, "needs"):
            raise ConfigError(problem("each.term", f"{self.term!r} is no term", "give one, such as limbeck.Label()"))
        if hasattr(self.term, "units") or self.term.needs().student != {"logits"}:
            wrong = f"{self.term.kind!r} is no term on the logits of a sample alone"
            raise ConfigError(problem("each.term", wrong, "give a term such as limbeck.Label() or limbeck.KL()"))

    def needs(self) -> Needs:
        """What the term inside needs, with the peers in the place of the student's logits."""
        return self.term.needs()._replace(student=frozenset({self.on}))

    def heads(self) -> tuple[Head, ...]:
        """Those of the term inside."""
        return self.term.heads()

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example."""
        peers = _peers("each", student[self.on])
        each = [weighted(self.term, {**student, "logits": logits}, teacher, batch) for logits in peers.unbind(1)]
        return torch.stack(each).sum(0)


def _peers(kind: str, value: Tensor) -> Tensor:
    if value.dim() != 3:
        wrong = f"the peers' logits are {tuple(value.shape)}"
        raise ShapeError(
            problem(kind, wrong, "give a student of peers, as limbeck.Peers makes it: [B, peers, classes]")
        )
    return value


@setting
class Exit:
    """Asks for a classifier on the student's layer `tap`, with the classes of its logits `on`."""

    name: str
    tap: str
    on: str
    form: str

    def __call__(self, student: Named, teacher: Named) -> nn.Module:  # noqa: ARG002 - all heads are made alike
        """The module.

        Raises:
            ShapeError: the layer is no vector, token layer or map.
        """
        shapes = tuple(student[self.tap].shape), tuple(student[self.on].shape)
        return Projected(self.name, self.tap, make_head(self.form, *shapes, self.name))


@setting
class Exits:
    """The student's own end teaches classifiers on its earlier layers. The formula is `exits`.

    Matches: the labels and the deepest answer, which is held still, at each tapped layer through a classifier that
        falls away after training.
    Formula: Σ over taps of (1 − share)·CE + share·T² KL(deepest ‖ exit).
    Source: Zhang et al. 2019 (Be your own teacher), eqs. 4 and 5.
    Defaults: T = 3 and share 0.3, ours; the paper tunes both. Exits are a linear map of the pooled layer, where the
        paper's are convolutions, so that early layers are asked for no more than they can separate.
    Helps: deep students without a teacher: early layers learn what the last ones need.
    Cost: one small classifier a tap.
    Limits: beside `Label` or `KL`, which train the end itself; it reads labels. On a dense network of one or two layers
        there is little between an exit and the end.
    """

    formula: ClassVar[Formula] = staticmethod(exits)
    kind: Literal["exits"] = "exits"
    taps: tuple[str, ...]
    weight: Number = 1.0
    on: str = "logits"
    share: Number = 0.3
    temperature: Number = 3.0
    head: str = "linear"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        one_of("exits.head", self.head, tuple(form for form in HEAD_FORMS if form != "none"))
        if not self.taps or len(set(self.taps)) != len(self.taps):
            wrong = f"{self.taps} are not distinct layers"
            raise ConfigError(
                problem("exits.taps", wrong, 'name at least one layer, each once, as in taps=("layer1",)')
            )
        if self.on in self.taps:
            mend = "leave it out; the end learns from limbeck.Label() or limbeck.KL()"
            raise ConfigError(problem("exits.taps", f"{self.on!r} is the end that teaches", mend))
        if not callable(self.temperature):
            positive("exits.temperature", self.temperature)
        if not callable(self.share) and not 0 <= self.share <= 1:
            raise ConfigError(problem("exits.share", f"{self.share} is no share", "give a number from 0 to 1"))

    def needs(self) -> Needs:
        """The layers, the student's own output, and the labels; no teacher."""
        return Needs(student=frozenset({*self.taps, self.on}), batch=frozenset({"y"}))

    def heads(self) -> tuple[Head, ...]:
        """One classifier a layer."""
        return tuple(Exit(name=self._name(tap), tap=tap, on=self.on, form=self.head) for tap in self.taps)

    def _name(self, tap: str) -> str:
        return f"{self.kind}:{tap}>{self.on}:{self.head}"

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per example."""
        given = {"share": self.share, "temperature": self.temperature, "reduction": "none"}
        each = [exits(student[self._name(tap)], student[self.on], batch["y"], **given) for tap in self.taps]  # type: ignore[arg-type]
        return torch.stack(each).sum(0)
