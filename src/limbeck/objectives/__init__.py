"""What the student is asked to match: pure losses per example, and terms, which are their frozen settings.

The table below is written by hand. A new loss is a function and a term in its family's file, a row here, and a test
for what is special about it; loading from YAML, listing, the card, the public names and the contract laws follow.
"""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.core.errors import ConfigError, problem
from limbeck.objectives.adapt import Balanced, GradientNorm, Uncertainty, Weighed
from limbeck.objectives.contrast import CRD, InfoNCE
from limbeck.objectives.decoupled import DKD, NKD
from limbeck.objectives.divergence import JSD, KL, AlphaBeta, ReverseKL, SkewKL, SkewReverseKL, TotalVariation
from limbeck.objectives.feature import ActivationBoundary, Cosine, Factor, Hint
from limbeck.objectives.label import Label, TeacherFree
from limbeck.objectives.linear import LinearKL
from limbeck.objectives.peers import Each, Exits, Mutual
from limbeck.objectives.reconstruct import MaskedGenerative, Review, Variational
from limbeck.objectives.regression import BoundedError, SquaredError
from limbeck.objectives.relation import CKA, PKT, RKD, Correlation, Similarity
from limbeck.objectives.response import DIST, MLKD, MSELogits, MSEProbabilities, SoftCrossEntropy
from limbeck.objectives.select import Classes, Tokens
from limbeck.objectives.sequence import ULD, TopKKL
from limbeck.objectives.spatial import FSP, NST, Attention
from limbeck.objectives.temperature import ByEntropy, Curriculum
from limbeck.objectives.term import Term, relates, units, values
from limbeck.objectives.transformer import AttentionRelation

TERMS: dict[str, type] = {
    "label": Label,
    "teacher_free": TeacherFree,
    "kl": KL,
    "reverse_kl": ReverseKL,
    "jsd": JSD,
    "skew_kl": SkewKL,
    "skew_reverse_kl": SkewReverseKL,
    "total_variation": TotalVariation,
    "alpha_beta": AlphaBeta,
    "soft_cross_entropy": SoftCrossEntropy,
    "mse_logits": MSELogits,
    "mse_probabilities": MSEProbabilities,
    "dkd": DKD,
    "nkd": NKD,
    "dist": DIST,
    "mlkd": MLKD,
    "hint": Hint,
    "cosine": Cosine,
    "attention": Attention,
    "nst": NST,
    "fsp": FSP,
    "activation_boundary": ActivationBoundary,
    "factor": Factor,
    "variational": Variational,
    "review": Review,
    "masked_generative": MaskedGenerative,
    "similarity": Similarity,
    "rkd": RKD,
    "pkt": PKT,
    "correlation": Correlation,
    "cka": CKA,
    "attention_relation": AttentionRelation,
    "info_nce": InfoNCE,
    "crd": CRD,
    "uld": ULD,
    "topk_kl": TopKKL,
    "linear_kl": LinearKL,
    "mutual": Mutual,
    "each": Each,
    "exits": Exits,
    "squared_error": SquaredError,
    "bounded_error": BoundedError,
    "tokens": Tokens,
    "classes": Classes,
    "weighed": Weighed,
    "balanced": Balanced,
}

__all__ = [
    "CKA",
    "CRD",
    "DIST",
    "DKD",
    "FSP",
    "JSD",
    "KL",
    "MLKD",
    "NKD",
    "NST",
    "PKT",
    "RKD",
    "TERMS",
    "ULD",
    "ActivationBoundary",
    "AlphaBeta",
    "Attention",
    "AttentionRelation",
    "Balanced",
    "BoundedError",
    "ByEntropy",
    "Classes",
    "Correlation",
    "Cosine",
    "Curriculum",
    "Each",
    "Exits",
    "Factor",
    "GradientNorm",
    "Hint",
    "InfoNCE",
    "Label",
    "LinearKL",
    "MSELogits",
    "MSEProbabilities",
    "MaskedGenerative",
    "Mutual",
    "ReverseKL",
    "Review",
    "Similarity",
    "SkewKL",
    "SkewReverseKL",
    "SoftCrossEntropy",
    "SquaredError",
    "TeacherFree",
    "Term",
    "Tokens",
    "TopKKL",
    "TotalVariation",
    "Uncertainty",
    "Variational",
    "Weighed",
    "as_objective",
    "relates",
    "term_names",
    "units",
    "values",
]


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
