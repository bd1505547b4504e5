"""Laws over the whole table of terms: a new row is tested on the day it is added. Claims per row are in `rows.py`."""

import inspect
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.core.setting import as_plain, build, tagged
from limbeck.objectives import TERMS, term_names

sys.path.insert(0, str(Path(__file__).parent))
from rows import CASES, ROWS, call, chosen, draw, equal_sides, made, outputs, with_heads

HEADINGS = ("Matches", "Formula", "Source", "Defaults", "Helps", "Cost", "Limits")
BY_CASE = pytest.mark.parametrize(("kind", "number"), CASES)
EVERY = pytest.mark.parametrize("kind", TERMS)


def claims(name):
    return pytest.mark.parametrize(("kind", "number"), [(k, i) for k, i in CASES if getattr(ROWS[k], name)])


@pytest.fixture(autouse=True)
def two_classes_may_warn():
    """A loss that has less to say about two classes says so once; the laws hold all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="dkd: with two classes")
        yield


def test_no_claims_are_left_of_terms_that_are_gone():
    assert set(ROWS) == set(TERMS)


@EVERY
def test_it_builds_knows_its_name_and_comes_back_from_plain_data(kind):
    term = made(kind)
    assert TERMS[term.kind] is type(term)
    assert term.needs().student
    assert hash(term) == hash(made(kind))
    assert build(tagged(TERMS), as_plain(term), "test") == term


@EVERY
def test_it_says_what_it_matches_and_where_it_ends(kind):
    said = inspect.getdoc(TERMS[kind])
    for heading in HEADINGS:
        assert re.search(rf"^{heading}: \S", said, re.M), heading


@BY_CASE
def test_one_value_per_example_with_a_gradient(kind, number):
    case = ROWS[kind].cases[number]
    student, teacher, batch = draw(case)
    for value in student.values():
        value.requires_grad_()
    value = call(made(kind), student, teacher, batch)
    assert value.shape[0] == 6
    assert value.dim() <= 2
    value.sum().backward()
    for name, _ in case.pairs:
        assert torch.isfinite(student[name].grad).all()
        assert student[name].grad.abs().max() > 0


@EVERY
def test_needs_are_honest(kind):
    """It reads the names it says and no others."""

    class Spy(dict):
        def __getitem__(self, key):
            read.add(key)
            return super().__getitem__(key)

    term = made(kind)
    student, teacher, batch = draw(ROWS[kind].cases[0])
    full = with_heads(term, student, teacher, batch)
    needs = term.needs()
    for side in ("student", "teacher", "batch"):
        read = set()
        sides = {"student": Spy(student) if side == "student" else student, "teacher": teacher, "batch": batch}
        if side != "student":
            sides = {"student": full, "teacher": teacher, "batch": batch}
            sides[side] = Spy(sides[side])
            term(sides["student"], sides["teacher"], sides["batch"])
            assert read - {"valid"} <= getattr(needs, side)
            if side == "batch" or not term.heads():
                assert getattr(needs, side) <= read
        else:
            spied = Spy(full)
            term(spied, teacher, batch)
            given_by_heads = set(full) - set(student)
            assert read - given_by_heads <= needs.student
            assert needs.student <= read or given_by_heads


@claims("zero")
@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_zero_at_equality_and_above_it_elsewhere(kind, number, seed):
    case = ROWS[kind].cases[number]
    student, teacher, batch = draw(case, seed=seed)
    term = made(kind)
    same = call(term, student, equal_sides(case, student, teacher), batch)
    assert same.abs().max() < 1e-10
    value = call(term, student, teacher, batch)
    assert value.mean() > 0
    if ROWS[kind].strict:
        assert (value > 0).all()


@claims("zero")
def test_b07_a_step_against_the_gradient_brings_the_sides_together(kind, number):
    case = ROWS[kind].cases[number]
    student, teacher, batch = draw(case, scale=1.0)
    for value in student.values():
        value.requires_grad_()
    term = made(kind)
    before = call(term, student, teacher, batch).mean()
    before.backward()
    norm = sum(v.grad.square().sum() for v in student.values() if v.grad is not None).sqrt()
    moved = {k: v.detach() - 1e-3 * v.grad / norm if v.grad is not None else v.detach() for k, v in student.items()}
    assert call(term, moved, teacher, batch).mean() < before


@claims("shift")
@settings(max_examples=20)
@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_blind_to_a_constant_added_to_all_logits(kind, number, seed, shift):
    student, teacher, batch = draw(ROWS[kind].cases[number], seed=seed)
    moved = {"logits": student["logits"] + shift}, {"logits": teacher["logits"] - shift}
    value = call(made(kind), student, teacher, batch)
    assert torch.allclose(call(made(kind), *moved, batch), value, rtol=1e-7, atol=1e-9)


def along(tensor):
    """Reordered along classes, channels or width."""
    return tensor.roll(1, 1 if tensor.dim() == 4 else -1)


@claims("permutes")
def test_blind_to_an_order_of_classes_or_channels_that_both_sides_share(kind, number):
    case = ROWS[kind].cases[number]
    student, teacher, batch = draw(case)
    sides = [{k: along(v) for k, v in side.items()} for side in (student, teacher)]
    assert torch.allclose(call(made(kind), *sides, batch), call(made(kind), student, teacher, batch))


@claims("scale")
@settings(max_examples=20)
@given(factor=st.floats(0.1, 20))
def test_blind_to_a_positive_factor_on_either_side(kind, number, factor):
    student, teacher, batch = draw(ROWS[kind].cases[number])
    value = call(made(kind), student, teacher, batch)
    larger = [{k: v * factor for k, v in side.items()} for side in (student, teacher)]
    assert torch.allclose(call(made(kind), larger[0], teacher, batch), value, rtol=1e-4, atol=1e-7)
    assert torch.allclose(call(made(kind), student, larger[1], batch), value, rtol=1e-4, atol=1e-7)


@claims("turns")
def test_blind_to_an_orthogonal_turn_of_either_side(kind, number):
    student, teacher, batch = draw(ROWS[kind].cases[number])

    def turned(x):
        flat = x.flatten(1)
        g = torch.Generator().manual_seed(3)
        turn = torch.linalg.qr(torch.randn(flat.shape[1], flat.shape[1], generator=g, dtype=x.dtype)).Q
        return (flat @ turn).view(x.shape)

    value = call(made(kind), student, teacher, batch)
    other = call(made(kind), {k: turned(v) for k, v in student.items()}, teacher, batch)
    assert torch.allclose(other, value, rtol=1e-8, atol=1e-10)


@BY_CASE
def test_duplicating_the_batch_changes_the_mean_as_claimed(kind, number):
    row = ROWS[kind]
    case = row.cases[number]
    student, teacher, batch = draw(case)
    twice = [
        {k: v if k in case.shared else torch.cat([v, v]) for k, v in side.items()} for side in (student, teacher, batch)
    ]
    once, double = call(made(kind), student, teacher, batch), call(made(kind), *twice)
    if not row.batch_wide:
        assert torch.allclose(double, torch.cat([once, once]), rtol=1e-10, atol=1e-12)
    elif row.duplicates is not None:
        assert torch.allclose(double.mean(), row.duplicates * once.mean(), rtol=1e-8)


@BY_CASE
def test_masked_equals_sliced(kind, number):
    """Samples that are not valid have no say, not even in the values of others where samples are related."""
    case = ROWS[kind].cases[number]
    student, teacher, batch = draw(case)
    keep = torch.tensor([0, 2, 3])
    few = [chosen(side, keep, case.shared) for side in (student, teacher, batch)]
    wild = {k: v.clone() for k, v in student.items()}
    valid = torch.zeros(6, dtype=torch.bool).index_fill(0, keep, True)
    for name in set(wild) - set(case.shared):
        wild[name][~valid] = 1e3
    value = call(made(kind), wild, teacher, {**batch, "valid": valid})
    assert torch.allclose(value[keep], call(made(kind), *few), rtol=1e-10, atol=1e-12)


@BY_CASE
def test_the_order_of_samples_does_not_matter(kind, number):
    row = ROWS[kind]
    case = row.cases[number]
    student, teacher, batch = draw(case)
    order = torch.tensor([4, 0, 3, 5, 1, 2])
    mixed = [chosen(side, order, case.shared) for side in (student, teacher, batch)]
    same = torch.allclose(call(made(kind), *mixed), call(made(kind), student, teacher, batch)[order], rtol=1e-9)
    assert same != row.ordered


@BY_CASE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_double(kind, number, dtype):
    student, teacher, batch = draw(ROWS[kind].cases[number], dtype=dtype, scale=1.0)
    value = call(made(kind), student, teacher, batch)
    assert value.dtype == torch.float32
    exact = [{k: v.double() for k, v in side.items()} for side in (student, teacher)]
    assert torch.allclose(value.double(), call(made(kind), *exact, batch), rtol=1e-3, atol=1e-4)


WILD = torch.tensor([1, -1, 0.0, 1, -1, 1e-4, -1])


@BY_CASE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_with_finite_gradient_at_extreme_values(kind, number, dtype):
    case = ROWS[kind].cases[number]
    student, teacher, batch = draw(case)
    size = ROWS[kind].wild

    def wild(named, step):
        return {
            k: (WILD * size).roll(step).repeat(-(-v.numel() // 7))[: v.numel()].view(v.shape).to(dtype)
            for k, v in named.items()
        }

    for left, right in ((0, 2), (1, 1), (3, 0)):
        sides = wild(student, left), wild(teacher, right)
        for value in sides[0].values():
            value.requires_grad_()
        value = call(made(kind), *sides, batch)
        assert torch.isfinite(value).all()
        value.sum().backward()
        for name, _ in case.pairs:
            assert torch.isfinite(sides[0][name].grad).all()


@BY_CASE
def test_finite_where_there_is_nothing_to_tell_apart(kind, number):
    """All zeros, all equal, and the same sample twice."""
    case = ROWS[kind].cases[number]
    student, teacher, batch = draw(case)
    for fill in (0.0, 3.0):
        for flat_teacher in (False, True):
            flat = {k: torch.full_like(v, fill, dtype=torch.float32, requires_grad=True) for k, v in student.items()}
            other = {k: torch.full_like(v, fill) if flat_teacher else v for k, v in teacher.items()}
            value = call(made(kind), flat, {k: v.float() for k, v in other.items()}, batch)
            assert torch.isfinite(value).all()
            value.sum().backward()
            assert all(torch.isfinite(v.grad).all() for v in flat.values() if v.grad is not None)


@claims("gradcheck")
def test_the_gradient_is_exact(kind, number):
    case = ROWS[kind].cases[number]
    student, teacher, batch = draw(case, scale=1.0)
    few = [chosen(side, slice(0, 3), case.shared) for side in (student, teacher, batch)]
    term, names = made(kind), [s for s, _ in case.pairs]

    def loss(*tensors):
        return call(term, {**few[0], **dict(zip(names, tensors, strict=True))}, few[1], few[2])

    assert torch.autograd.gradcheck(loss, [few[0][name].requires_grad_() for name in names])


@BY_CASE
def test_one_sample_is_enough(kind, number):
    case = ROWS[kind].cases[number]
    student, teacher, batch = (chosen(side, slice(0, 1), case.shared) for side in draw(case))
    for value in student.values():
        value.requires_grad_()
    value = call(made(kind), student, teacher, batch)
    assert value.shape[0] == 1
    assert torch.isfinite(value).all()
    value.sum().backward()
    assert all(torch.isfinite(v.grad).all() for v in student.values() if v.grad is not None)


@pytest.mark.parametrize(
    ("kind", "number"), [(k, i) for k, i in CASES if any(len(s) == 4 for s in ROWS[k].cases[i].student.values())]
)
def test_channels_last_maps_give_the_same_values(kind, number):
    student, teacher, batch = draw(ROWS[kind].cases[number])
    value = call(made(kind), student, teacher, batch)
    sides = [
        {k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in side.items()}
        for side in (student, teacher)
    ]
    assert torch.allclose(call(made(kind), *sides, batch), value, rtol=1e-10)


@pytest.mark.parametrize(
    "kind", [k for k in TERMS if ROWS[k].refuses and ROWS[k].teacher and ROWS[k].cases[0] == outputs(6, 5)]
)
def test_classes_that_differ_are_refused_with_a_mend(kind):
    student, teacher, batch = draw(ROWS[kind].cases[0])
    with pytest.raises(ValueError, match=r"student is .*, teacher is(.|\n)*To mend"):
        call(made(kind), student, {"logits": teacher["logits"][:, :4]}, batch)


@EVERY
@pytest.mark.parametrize("weight", [-1.0, float("nan"), "heavy", True])
def test_impossible_weights_are_refused(kind, weight):
    with pytest.raises(ValueError, match="To mend"):
        made(kind, weight=weight)


def test_terms_of_one_kind_get_names_of_their_own():
    assert term_names([made("kl"), made("hint"), made("hint")]) == ("kl", "hint.0", "hint.1")
