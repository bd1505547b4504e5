"""What the student is asked to match: pure losses per example, and terms, which are their frozen settings.

The table below is written by hand. A new loss is a function and a term in its family's file, a row here, and a test
for what is special about it; loading from YAML, listing, and the contract laws follow from the row.
"""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.core.errors import ConfigError, problem
from limbeck.objectives.feature import Cosine, Hint
from limbeck.objectives.response import KL, Label, MSELogits, MSEProbabilities, SoftCrossEntropy
from limbeck.objectives.term import HeadRequest, Term

__all__ = [
    "KL",
    "TERMS",
    "Cosine",
    "HeadRequest",
    "Hint",
    "Label",
    "MSELogits",
    "MSEProbabilities",
    "SoftCrossEntropy",
    "Term",
    "as_objective",
    "term_names",
]

TERMS: dict[str, type] = {
    "label": Label,
    "kl": KL,
    "soft_cross_entropy": SoftCrossEntropy,
    "mse_logits": MSELogits,
    "mse_probabilities": MSEProbabilities,
    "hint": Hint,
    "cosine": Cosine,
}


def as_objective(objective: Term | Sequence[Term]) -> tuple[Term, ...]:
    """One term or several, as a tuple; anything else is refused.

    Raises:
        ConfigError: nothing in it, or something that is no term.
    """
    terms = tuple(objective) if isinstance(objective, Sequence) else (objective,)
    if not terms:
        raise ConfigError(problem("objective", "it holds no term", "give at least one, such as limbeck.KL()"))
    for term in terms:
        if isinstance(term, type) or not (callable(term) and hasattr(term, "needs") and hasattr(term, "weight")):
            mend = f"give terms such as limbeck.{getattr(term, '__name__', 'KL')}()"
            raise ConfigError(problem("objective", f"{term!r} is no term", mend))
    return terms


def term_names(objective: Sequence[Term]) -> tuple[str, ...]:
    """One name for each term's record: its kind, with a number where a kind comes more than once."""
    kinds = [term.kind for term in objective]
    return tuple(k if kinds.count(k) == 1 else f"{k}.{kinds[:i].count(k)}" for i, k in enumerate(kinds))
