"""Laws over the whole table of terms: a new row is tested on the day it is added."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.objectives import TERMS, term_names

LAYER_SHAPES = {"hint": [(6, 5), (6, 4, 5), (6, 5, 3, 2)], "cosine": [(6, 5), (6, 4, 5), (6, 5, 3, 2)]}
ZERO_AT_EQUALITY = [kind for kind in TERMS if kind not in ("label", "soft_cross_entropy")]
BLIND_TO_SHIFT = ["kl", "soft_cross_entropy", "mse_probabilities", "label"]


def made(kind, **settings):
    layered = kind in LAYER_SHAPES
    return TERMS[kind](**({"student": "s", "teacher": "t", "head": "none"} if layered else {}), **settings)


def call(term, student, teacher, y=None):
    """Call a term on two tensors, whatever names it reads."""
    y = torch.arange(len(student)) % student.shape[-1] if y is None else y
    names = term.heads()[0].name if term.heads() else "logits"
    return term({names: student, "s": student, "logits": student}, {"t": teacher, "logits": teacher}, {"y": y})


def pair(kind, *, seed=0, dtype=torch.float64, scale=3.0, shape=None):
    g = torch.Generator().manual_seed(seed)
    shape = shape or LAYER_SHAPES.get(kind, [(6, 5)])[0]
    return tuple((torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(dtype) for _ in range(2))


shapes = [(kind, shape) for kind in TERMS for shape in LAYER_SHAPES.get(kind, [(6, 5), (6, 2)])]


@pytest.mark.parametrize("kind", TERMS)
def test_it_builds_with_its_defaults_and_knows_its_name(kind):
    term = made(kind)
    assert TERMS[term.kind] is type(term)
    assert term.needs().student
    assert hash(term) == hash(made(kind))


@pytest.mark.parametrize(("kind", "shape"), shapes)
def test_one_value_per_example_with_a_gradient(kind, shape):
    s, t = pair(kind, shape=shape)
    s.requires_grad_()
    value = call(made(kind), s, t)
    assert value.shape == (6,)
    value.sum().backward()
    assert torch.isfinite(s.grad).all()
    assert s.grad.abs().max() > 0


@pytest.mark.parametrize("kind", TERMS)
def test_needs_are_honest(kind):
    """It reads the names it says and no others."""

    class Spy(dict):
        def __getitem__(self, key):
            read.add(key)
            return super().__getitem__(key)

    s, t = pair(kind)
    term = made(kind)
    heads = {request.name: request.source for request in term.heads()}
    for side in ("student", "teacher", "batch"):
        read = set()
        sides = {
            "student": {**dict.fromkeys(term.needs().student, s), **dict.fromkeys(heads, s)},
            "teacher": dict.fromkeys(term.needs().teacher, t),
            "batch": dict.fromkeys(term.needs().batch, torch.zeros(6, dtype=torch.int64)),
        }
        sides[side] = Spy(sides[side])
        term(**sides)
        assert {heads.get(name, name) for name in read} == getattr(term.needs(), side)


@pytest.mark.parametrize("kind", ZERO_AT_EQUALITY)
@given(seed=st.integers(0, 1000))
def test_zero_at_equality_and_above_it_elsewhere(kind, seed):
    s, t = pair(kind, seed=seed)
    assert call(made(kind), s, s.clone()).abs().max() < 1e-12
    assert (call(made(kind), s, t) > 0).all()


@pytest.mark.parametrize("kind", BLIND_TO_SHIFT)
@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_blind_to_a_constant_added_to_all_logits(kind, seed, shift):
    s, t = pair(kind, seed=seed)
    assert torch.allclose(call(made(kind), s + shift, t - shift), call(made(kind), s, t), atol=1e-9)


@pytest.mark.parametrize("kind", TERMS)
def test_duplicating_the_batch_changes_no_value(kind):
    s, t = pair(kind)
    y = torch.arange(6) % 5
    twice = call(made(kind), torch.cat([s, s]), torch.cat([t, t]), torch.cat([y, y]))
    assert torch.equal(twice, call(made(kind), s, t, y).repeat(2))


@pytest.mark.parametrize("kind", TERMS)
def test_masked_equals_sliced_and_order_does_not_matter(kind):
    s, t = pair(kind)
    y = torch.arange(6) % 5
    keep = torch.tensor([4, 0, 3])
    assert torch.allclose(call(made(kind), s, t, y)[keep], call(made(kind), s[keep], t[keep], y[keep]), rtol=1e-12)


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_double(kind, dtype):
    s, t = pair(kind, dtype=dtype, scale=1.0)
    value = call(made(kind), s, t)
    assert value.dtype == torch.float32
    assert torch.allclose(value.double(), call(made(kind), s.double(), t.double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [2, 5])
def test_finite_with_finite_gradient_at_extreme_logits(kind, dtype, columns):
    s = torch.tensor([1e4, -1e4, 0.0, 1e4, -1e4])[:columns].repeat(2, 1).to(dtype).requires_grad_()
    t = torch.tensor([-1e4, 1e4, 1e4, 0.0, -1e4])[:columns].repeat(2, 1).to(dtype)
    value = call(made(kind), s, t)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("kind", TERMS)
def test_the_gradient_is_exact(kind):
    s, t = pair(kind, shape=LAYER_SHAPES.get(kind, [(3, 4)])[0])
    assert torch.autograd.gradcheck(lambda x: call(made(kind), x, t), s.requires_grad_())


@pytest.mark.parametrize("kind", TERMS)
def test_one_sample_is_enough(kind):
    s, t = pair(kind)
    assert torch.isfinite(call(made(kind), s[:1], t[:1])).all()


@pytest.mark.parametrize("kind", [k for k in TERMS if k != "label"])
def test_shapes_that_differ_are_refused_with_a_mend(kind):
    s, t = pair(kind)
    with pytest.raises(ValueError, match=r"student is .*, teacher is(.|\n)*To mend"):
        call(made(kind), s, t[:, :4])


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("weight", [-1.0, float("nan"), "heavy", True])
def test_impossible_weights_are_refused(kind, weight):
    with pytest.raises(ValueError, match="To mend"):
        made(kind, weight=weight)


def test_terms_of_one_kind_get_names_of_their_own():
    assert term_names([made("kl"), made("hint"), made("hint")]) == ("kl", "hint.0", "hint.1")
