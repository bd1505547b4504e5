"""`objective="auto"`: what is tried, and how much of it. The trials themselves are in `limbeck.choosing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.core.check import not_negative, positive, whole
from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.core.setting import setting
from limbeck.objectives import DIST, KL, TERMS, Hint, Label, Similarity, Term, as_objective
from limbeck.objectives.term import AnyTerm

__all__ = ["PLAIN", "Auto", "as_auto"]

PLAIN = "plain"
"""The name of the arm that learns from labels alone."""


@setting
class Auto:
    """In the place of an objective: try several for a short while, and train with what was best, plain among them.

    With N the steps of one plain run, trials take at most `share` · N steps and the training that follows N, so that
    all of it costs at most 1 + `share` plain runs. The plain student is tried beside the others at every length and is
    what is trained in the end, unless a candidate beat it. See `docs/auto.md`.

    Args:
        share: what the trials may cost, in plain runs.
        candidates: objectives by name; each has a term that needs the teacher. None takes those of `defaults`.
        layers: pairs of student's and teacher's layers. With them, matching these is tried too.
        keep: the share of the candidates that is tried for longer after each round.
        views: augmented versions of each sample for which the teacher's answers are kept; up to 8 when None. 0 asks
            the teacher at each step instead.
        margin: how many standard errors a candidate must be ahead of plain in accuracy, paired over validation samples;
            where it is ahead by less, it must be so far ahead in cross-entropy. 0 asks for any lead.

    Raises:
        ConfigError: a number makes no sense, or a candidate is no objective, or learns nothing from a teacher.
    """

    share: float = 1.0
    candidates: Mapping[str, tuple[AnyTerm, ...]] | None = None
    layers: tuple[tuple[str, str], ...] = ()
    keep: float = 1 / 3
    views: int | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be tried."""
        positive("auto.share", self.share)
        not_negative("auto.margin", self.margin)
        if not 0 < self.keep < 1:
            raise ConfigError(problem("auto.keep", f"{self.keep} keeps none or all", "give a share between 0 and 1"))
        if self.views is not None:
            whole("auto.views", self.views, least=0)
        if self.candidates is None:
            return
        if not self.candidates:
            raise ConfigError(problem("auto.candidates", "there are none", "name one, or leave it out"))
        for name, objective in self.candidates.items():
            self._check(name, objective)

    def _check(self, name: str, objective: Any) -> None:
        where = f"auto.candidates.{name}"
        if name == PLAIN or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            mend = f"use letters, digits, -, _ and dots; {PLAIN!r} is the student on labels alone, and always there"
            raise ConfigError(problem(where, "it cannot be the name of a candidate", mend))
        if isinstance(objective, str) or (
            isinstance(objective, Sequence) and any(isinstance(x, str) for x in objective)
        ):
            word = objective if isinstance(objective, str) else next(x for x in objective if isinstance(x, str))
            wrong = f"{word!r} is the name of a term, and no term" if word in TERMS else f"no term is called {word!r}"
            raise ConfigError(problem(where, wrong, f"give terms such as limbeck.KL(); {nearest(word, TERMS)}"))
        if not any(term.needs().teacher for term in as_objective(objective)):
            raise ConfigError(problem(where, "none of its terms needs a teacher", "add one, or leave it out"))

    def objectives(self, *, labels: bool) -> dict[str, tuple[Term, ...]]:
        """What is tried, by name; without labels only what needs none.

        Raises:
            ConfigError: without labels nothing is left.
        """
        given = self.candidates if self.candidates is not None else defaults(self.layers)
        made: dict[str, tuple[Term, ...]] = {}
        for name, objective in given.items():
            terms = as_objective(objective)
            rest = terms if labels else tuple(term for term in terms if "y" not in term.needs().batch)
            # What differs from another only in how it weighs labels is the same without them.
            if any(term.needs().teacher for term in rest) and rest not in made.values():
                made[name] = rest
        if not made:
            wrong = "no sample has a label, and every candidate needs some"
            raise ConfigError(problem("auto.candidates", wrong, "give one that does without, such as limbeck.KL()"))
        return made


def defaults(layers: Sequence[tuple[str, str]] = ()) -> dict[str, tuple[Term, ...]]:
    """The objectives that are tried where none are named: the first is the best guess, which wins ties."""
    label, light = Label(weight=0.5), Label(weight=0.3)
    standardized = KL(temperature=2.0, weight=4.0, standardize=True)
    made: dict[str, tuple[Term, ...]] = {
        "kl-2": (KL(temperature=2.0, weight=0.5), label),
        "standardized": (standardized, light),
        "standardized-4": (KL(temperature=4.0, weight=9.0, standardize=True), Label(weight=0.1)),
        "standardized-dist": (standardized, DIST(temperature=1.0, weight=1.0), light),
    }
    if layers:
        hints = tuple(Hint(student=mine, teacher=theirs, weight=2.0) for mine, theirs in layers)
        alike = tuple(Similarity(student=mine, teacher=theirs, weight=1.0) for mine, theirs in layers)
        made["kl-2-hint"] = (*made["kl-2"], *hints)
        made["kl-2-similarity"] = (*made["kl-2"], *alike)
    return made


def as_auto(objective: Any) -> Auto | None:
    """The setting, where `objective` asks for it; None where it is an objective of its own.

    Raises:
        ConfigError: it is another word.
    """
    if isinstance(objective, str):
        if objective != "auto":
            wrong = f"{objective!r} is no objective"
            raise ConfigError(problem("objective", wrong, 'give terms such as limbeck.KL(), or "auto"'))
        return Auto()
    return objective if isinstance(objective, Auto) else None
