"""One call of each public function, so that laws can run over all of them: CALLS[name](function=…, reduction=…).

A function that is a term's formula is called as its base would, unless it is named here.
"""

import torch

from limbeck import functional as F
from limbeck.objectives import TERMS
from limbeck.objectives.term import Labelled, OnLayers, OnOutput

G = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=G)


LOGITS = draw(6, 5), draw(6, 5)
ROWS = draw(6, 8), draw(6, 8)
MAPS = draw(6, 4, 5, 3), draw(6, 4, 5, 3)
TOKENS = draw(6, 4, 8), draw(6, 4, 8)
Y = torch.arange(6) % 5
NO_REDUCTION = {"standardize", "token_mask"}


def of(name, *tensors, **settings):
    def call(*, function=None, **more):
        return (function or getattr(F, name))(*tensors, **settings, **more)

    return call


def default(term):
    """The tensors that the formula of a term of this base takes."""
    if issubclass(term, OnLayers):
        return MAPS
    return (*LOGITS, Y) if issubclass(term, Labelled) else LOGITS


CALLS = {
    "attention_relation": of("attention_relation", *TOKENS, heads=2),
    "fsp": of("fsp", MAPS, MAPS[::-1]),
    "variational": of("variational", MAPS[0], draw(4), MAPS[1]),
    "review": of("review", MAPS, MAPS[::-1]),
    "masked_generative": of("masked_generative", *MAPS),
    "similarity": of("similarity", *ROWS),
    "rkd": of("rkd", *ROWS),
    "rkd_distance": of("rkd_distance", *ROWS),
    "rkd_angle": of("rkd_angle", *ROWS),
    "info_nce": of("info_nce", *ROWS),
    "crd": of("crd", *ROWS),
    "token_mask": of("token_mask", torch.tensor([[1, 2, -100, 3], [4, -100, -100, 5]])),
    "topk_kl": of("topk_kl", LOGITS[0], *reversed(LOGITS[1].log_softmax(-1).topk(3, -1))),
    "linear_kl": of("linear_kl", ROWS[0], draw(9, 8), ROWS[1], draw(9, 8), chunk=4),
    "squared_error": of("squared_error", *ROWS),
    "bounded_error": of("bounded_error", *ROWS, draw(6, 8)),
    "label_cross_entropy": of("label_cross_entropy", LOGITS[0], Y),
    "teacher_free": of("teacher_free", LOGITS[0], Y),
    "mutual": of("mutual", draw(6, 3, 5)),
    "exits": of("exits", *LOGITS, Y),
    "standardize": of("standardize", LOGITS[0]),
}
FORMULAS = {
    t.formula.__name__: t for t in TERMS.values() if issubclass(t, OnOutput | OnLayers) and hasattr(t, "formula")
}
CALLS |= {name: of(name, *default(term)) for name, term in FORMULAS.items() if name not in CALLS}
