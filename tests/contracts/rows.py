"""What each row of the table of terms claims, and how it is called; the laws in `test_terms.py` read this alone.

A term without a row here is held to what its base promises: it runs on outputs or on layers of any form, one value per
example, zero at equality and above it elsewhere. A row says what it claims beyond that, or that it claims less.
"""

from dataclasses import dataclass, field

import torch

from limbeck.objectives import KL, TERMS, Label
from limbeck.objectives.term import BatchWide, Labelled, OnLayers

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """Named shapes of both sides; `pairs` are compared with each other, student's name first."""

    student: dict[str, Shape]
    teacher: dict[str, Shape]
    pairs: tuple[tuple[str, str], ...]
    shared: tuple[str, ...] = ()  # names without an axis of samples


def outputs(*shape, teacher=None):
    return Case({"logits": shape}, {"logits": teacher or shape}, (("logits", "logits"),))


def layers(*shape, teacher=None):
    return Case({"s": shape}, {"t": teacher or shape}, (("s", "t"),))


LOGITS = (outputs(6, 5), outputs(6, 2), outputs(6, 3, 5))
VECTORS, TOKENS, MAPS = layers(6, 5), layers(6, 4, 5), layers(6, 5, 3, 2)
LAYERS = (VECTORS, TOKENS, MAPS)


@dataclass(frozen=True)
class Row:
    """How a term is made and what it claims."""

    cases: tuple[Case, ...] = LOGITS
    settings: dict = field(default_factory=dict)
    zero: bool = True  # 0 at equality, above it elsewhere
    strict: bool = True  # above 0 for every example where the sides differ, not only in the mean
    shift: bool = False  # blind to a constant added to all classes of one side
    permutes: bool = False  # blind to an order of classes or channels that both sides share
    scale: bool = False  # blind to a positive factor on either side
    turns: bool = False  # blind to orthogonal turns of the width of either side alone
    labels: bool = False  # reads y
    batch_wide: bool = False  # relates samples
    ordered: bool = False  # depends on the order of samples
    duplicates: float | None = 1.0  # the mean over the batch twice, as a multiple; None: no such claim
    teacher: bool = True
    refuses: bool = True  # classes that differ
    gradcheck: bool = True  # False where part of the formula is held still on purpose
    wild: float = 1e4  # the size of values at which it and its gradient stay finite, in half precision too


SIDES = {"student": "s", "teacher": "t"}
PAIRS = (("a", "c"), ("b", "d"))
FLOW = Case({"a": (6, 5, 4, 3), "b": (6, 5, 2, 3)}, {"c": (6, 5, 4, 3), "d": (6, 5, 2, 3)}, PAIRS)
PEERS = Case({"peers": (6, 3, 5)}, {}, (("peers", "peers"),))
EXITS = Case({"a": (6, 5, 4, 3), "b": (6, 3), "logits": (6, 5)}, {}, (("b", "b"), ("a", "a")))
REVIEW = Case({"a": (6, 3, 6, 5), "b": (6, 4, 3, 2)}, {"c": (6, 4, 6, 5), "d": (6, 5, 3, 2)}, PAIRS)
WIDTHS = (*LAYERS, layers(6, 5, teacher=(6, 9)))


def linear(*lead):
    """Hidden states of both sides, and their output weights, which have no axis of samples."""
    student, teacher = {"h": (*lead, 4), "w": (9, 4)}, {"g": (*lead, 4), "v": (9, 4)}
    return Case(student, teacher, (("h", "g"), ("w", "v")), ("w", "v"))


ROWS = {
    "label": Row(zero=False, shift=True, permutes=False, labels=True, teacher=False),
    "teacher_free": Row(zero=False, shift=True, labels=True, teacher=False),
    "kl": Row(shift=True, permutes=True),
    "reverse_kl": Row(shift=True, permutes=True),
    "jsd": Row(shift=True, permutes=True),
    "skew_kl": Row(shift=True, permutes=True),
    "skew_reverse_kl": Row(shift=True, permutes=True),
    "total_variation": Row(shift=True, permutes=True),
    "alpha_beta": Row(shift=True, permutes=True),
    "soft_cross_entropy": Row(zero=False, shift=True, permutes=True),
    "mse_logits": Row(permutes=True),
    "mse_probabilities": Row(shift=True, permutes=True),
    "dkd": Row(shift=True, labels=True),
    "nkd": Row(zero=False, shift=True, labels=True),
    "dist": Row(shift=True, permutes=True, batch_wide=True),
    "mlkd": Row(shift=True, permutes=True, batch_wide=True, duplicates=None),
    "hint": Row(LAYERS, SIDES, permutes=True),
    "cosine": Row(LAYERS, SIDES, permutes=True, scale=True),
    "attention": Row((TOKENS, MAPS, layers(6, 4, 3, 2, teacher=(6, 7, 5, 2))), SIDES, permutes=True, scale=True),
    "nst": Row((TOKENS, MAPS, layers(6, 4, 3, 2, teacher=(6, 7, 5, 2))), SIDES, permutes=True, scale=True),
    "fsp": Row((FLOW,), {"student": ("a", "b"), "teacher": ("c", "d")}, permutes=True, wild=1e2),
    "activation_boundary": Row(LAYERS, SIDES, zero=False, permutes=True),
    "factor": Row(LAYERS, SIDES, permutes=True, scale=True),
    "variational": Row((*LAYERS, layers(6, 5, 3, 2, teacher=(6, 4, 6, 2))), SIDES, zero=False),
    "review": Row((REVIEW,), {"student": ("a", "b"), "teacher": ("c", "d")}, zero=False),
    "masked_generative": Row((MAPS, layers(6, 5, 3, 2, teacher=(6, 4, 6, 2))), SIDES, zero=False),
    "similarity": Row(WIDTHS, SIDES, permutes=True, scale=True, turns=True, batch_wide=True, duplicates=0.5),
    "rkd": Row(WIDTHS, SIDES, permutes=True, scale=True, turns=True, batch_wide=True),
    "pkt": Row(WIDTHS, SIDES, permutes=True, scale=True, turns=True, batch_wide=True, duplicates=None),
    "correlation": Row(LAYERS, SIDES, permutes=True, batch_wide=True, ordered=True, duplicates=None),
    "cka": Row(WIDTHS, SIDES, permutes=True, scale=True, turns=True, batch_wide=True),
    "attention_relation": Row((TOKENS, layers(6, 4, 5, teacher=(6, 4, 7))), SIDES, permutes=True),
    "info_nce": Row((*LAYERS, layers(6, 5, teacher=(6, 8))), SIDES, zero=False, batch_wide=True, duplicates=None),
    "crd": Row(
        (*LAYERS, layers(6, 5, teacher=(6, 8))), SIDES, zero=False, batch_wide=True, duplicates=None, gradcheck=False
    ),
    "uld": Row((*LOGITS, outputs(6, 5, teacher=(6, 8))), shift=True, permutes=True, refuses=False),
    "topk_kl": Row(settings={"k": 3}, shift=True, permutes=True, refuses=False),
    "linear_kl": Row(
        (linear(6), linear(6, 3)),
        {"student": "h", "student_weight": "w", "teacher": "g", "teacher_weight": "v"},
        permutes=True,
    ),
    "mutual": Row((PEERS,), zero=False, permutes=True, teacher=False, gradcheck=False),
    "each": Row((PEERS,), {"term": Label()}, zero=False, labels=True, teacher=False),
    "exits": Row((EXITS,), {"taps": ("b", "a")}, zero=False, labels=True, teacher=False),
    "squared_error": Row(LOGITS, {"target": "target"}, zero=False, teacher=False),
    "bounded_error": Row(LOGITS, {"target": "target"}, strict=False),
    "tokens": Row((outputs(6, 3, 5), outputs(6, 3, 2)), {"term": KL()}, strict=False, shift=True, permutes=True),
    "classes": Row((outputs(6, 5, teacher=(6, 2)),), {"term": KL(), "student": (3, 0)}, zero=False, shift=True),
    "weighed": Row(settings={"term": KL()}, shift=True, permutes=True, strict=False),
    "balanced": Row(settings={"terms": (KL(), Label())}, zero=False, shift=True, labels=True),
}


def default(term):
    """What is claimed of a term that has no row: what its base promises."""
    wide = issubclass(term, BatchWide)
    if issubclass(term, OnLayers):
        return Row(LAYERS, {"student": "s", "teacher": "t"}, batch_wide=wide)
    return Row(labels=issubclass(term, Labelled), batch_wide=wide)


ROWS |= {kind: default(term) for kind, term in TERMS.items() if kind not in ROWS}


def made(kind, **settings):
    return TERMS[kind](**{**ROWS[kind].settings, **settings})


def draw(case, *, seed=0, dtype=torch.float64, scale=3.0):
    """Both sides and a batch, by name."""
    g = torch.Generator().manual_seed(seed)

    def side(shapes):
        return {k: (torch.randn(v, generator=g, dtype=torch.float64) * scale).to(dtype) for k, v in shapes.items()}

    student, teacher = side(case.student), side(case.teacher)
    return student, teacher, batch_of(student, case)


def batch_of(student, case):
    first = student[case.pairs[0][0]]
    y = torch.arange(first.shape[:-1].numel()).reshape(first.shape[:-1]) % first.shape[-1]
    if "logits" not in student:
        y = torch.arange(len(first)) % 2
    g = torch.Generator().manual_seed(99)
    return {
        "valid": torch.ones(len(first), dtype=torch.bool),
        "y": y,
        "id": torch.arange(len(first)),
        "target": torch.randn(first.shape, generator=g),
    }


def with_heads(term, student, teacher, batch):
    """The student's signal with what the term's heads give, made as a dry run would."""
    full = dict(student)
    with torch.random.fork_rng():
        for request in term.heads():
            torch.manual_seed(7)
            head = request({k: v.detach() for k, v in full.items()}, teacher).to(first_dtype(student)).eval()
            full.update(head(widened(full), widened(teacher), batch))
    return full


def widened(signal):
    """Heads are float32, and autocast would bring half precision to them."""
    return {k: v.float() if v.dtype in (torch.float16, torch.bfloat16) else v for k, v in signal.items()}


def first_dtype(student):
    kind = next(iter(student.values())).dtype
    return kind if kind == torch.float64 else torch.float32


def call(term, student, teacher, batch):
    """One value per example, through the heads where the term asks for some."""
    return term(with_heads(term, student, teacher, batch), teacher, batch)


def example_mean(value):
    """[B] from values with further axes (tokens)."""
    return value.flatten(1).mean(1) if value.dim() > 1 else value


def chosen(named, index, shared):
    return {k: v if k in shared else v[index] for k, v in named.items()}


def equal_sides(case, student, teacher):
    """The teacher's signal where it says exactly what the student says."""
    return {**teacher, **{t: student[s].clone() for s, t in case.pairs}}


CASES = [(kind, i) for kind, row in ROWS.items() for i in range(len(row.cases))]
