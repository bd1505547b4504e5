"""Losses on sequences, against the golden numbers of the field, scipy and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from limbeck.core.errors import ConfigError, DataError, ShapeError
from limbeck.objectives.divergence import kl, reverse_kl
from limbeck.objectives.sequence import ULD, TopKKL, shifted, token_mask, topk_kl, uld
from limbeck.objectives.temperature import ByEntropy

# Three tokens, of which the last one does not count.
TEACHER = torch.tensor([[2, 1, 0.5, -1, -2], [0, 3, -1, 0.5, 1], [1, 1, 1, 1, 1]], dtype=torch.float64)
STUDENT = torch.tensor([[1, 1.5, 0, -0.5, -1], [0.5, 1, 0, -0.5, 2], [9, 0, 0, 0, 0]], dtype=torch.float64)
TAILS = ["bucket", "renormalize", "teacher", "raw"]


def drawn(*shape, seed=0, scale=3.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def top(teacher, k):
    log_probs, ids = teacher.log_softmax(-1).topk(k)
    return ids, log_probs


@pytest.mark.parametrize(
    ("tail", "golden"),
    [("raw", 0.560820279), ("teacher", 0.803831665), ("renormalize", 0.543064038), ("bucket", 0.500009872)],
)
def test_each_tail_gives_its_golden_number(tail, golden):
    assert topk_kl(STUDENT[:2], *top(TEACHER[:2], 2), tail=tail).item() == pytest.approx(golden, abs=1e-8)


def test_uld_gives_its_golden_number():
    assert uld(STUDENT[:2], TEACHER[:2]).item() == pytest.approx(0.364647668, abs=1e-8)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_topk_kl_is_what_a_loop_over_tokens_and_answers_finds(tail, temperature):
    student, teacher = drawn(3, 7), drawn(3, 7, seed=1)
    ids, log_probs = top(teacher, 3)
    value = topk_kl(student, ids, log_probs, tail=tail, temperature=temperature, reduction="none")
    for row in range(3):
        s, kept = softmax(student[row].numpy() / temperature), ids[row].numpy()
        t = np.exp(log_probs[row].numpy())
        p, q = t ** (1 / temperature), s[kept]
        rest = (1 - t.sum()) ** (1 / temperature)
        if tail == "renormalize":
            p, q = p / p.sum(), q / q.sum()
        elif tail == "teacher":
            p = p / p.sum()
        elif tail == "raw":
            p = p / (p.sum() + rest)
        else:
            p, q = np.append(p, rest) / (p.sum() + rest), np.append(q, 1 - q.sum())
        assert value[row].item() == pytest.approx(temperature**2 * (p * np.log(p / q)).sum(), rel=1e-9)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
def test_the_bucket_never_exceeds_the_full_kl_and_is_never_negative(seed, k):
    student, teacher = drawn(4, 6, seed=seed), drawn(4, 6, seed=seed + 1)
    ids, log_probs = top(teacher, k)
    # What is left of 1 is known to eps, so its logarithm to eps over what is left.
    rounding = 8 * torch.finfo(torch.float64).eps / (1 - log_probs.exp().sum(-1)).clamp_min(1e-12)
    for direction, full in (("forward", kl), ("reverse", reverse_kl)):
        value = topk_kl(student, ids, log_probs, direction=direction, reduction="none")
        assert (value >= -1e-12 - rounding).all()
        assert (value <= full(student, teacher, reduction="none") + 1e-12 + rounding).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bucket_with_every_class_is_kl(temperature, dtype):
    student, teacher = drawn(4, 6).to(dtype), drawn(4, 6, seed=1).to(dtype)
    for direction, full in (("forward", kl), ("reverse", reverse_kl)):
        value = topk_kl(student, *top(teacher, 6), direction=direction, temperature=temperature)
        torch.testing.assert_close(value, full(student, teacher, temperature=temperature))


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "raw"])
def test_topk_kl_is_zero_at_equality(tail):
    same = drawn(4, 6)
    assert topk_kl(same, *top(same, 3), tail=tail, reduction="none").abs().max() < 1e-12


def test_the_teacher_tail_is_not_zero_at_equality():
    same = drawn(4, 6)
    assert (topk_kl(same, *top(same, 3), tail="teacher", reduction="none") > 1e-6).all()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_places_that_are_not_filled_change_nothing(direction):
    student, (ids, log_probs) = drawn(4, 6), top(drawn(4, 6, seed=1), 2)
    more = torch.cat([ids, torch.zeros_like(ids)], -1)
    filled = torch.cat([log_probs, torch.full_like(log_probs, -torch.inf)], -1)
    for tail in TAILS if direction == "forward" else ["bucket"]:
        expected = topk_kl(student, ids, log_probs, tail=tail, direction=direction)
        torch.testing.assert_close(topk_kl(student, more, filled, tail=tail, direction=direction), expected)


def test_a_tiny_rest_of_the_student_is_exact_in_float32():
    student = torch.tensor([[0.0, -30.0, -31.0]])
    ids, log_probs = torch.tensor([[0]]), torch.tensor([[np.log(0.5)]], dtype=torch.float32)
    rest = log_softmax(student.double().numpy())[0, 1:]
    expected = 0.5 * np.log(0.5) - 0.5 * 0 + 0.5 * np.log(0.5) - 0.5 * np.logaddexp(*rest)
    assert topk_kl(student, ids, log_probs).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tail", "direction"), [*((t, "forward") for t in TAILS), ("bucket", "reverse")])
@pytest.mark.parametrize("k", [2, 4])
def test_topk_kl_is_finite_at_extreme_logits(dtype, tail, direction, k):
    student = torch.tensor([[1e4, -1e4, 0.0, 1e4], [-1e4, -1e4, 1e4, 0.0]]).to(dtype).requires_grad_()
    teacher = torch.tensor([[-1e4, 1e4, 1e4, 0.0], [1e4, -1e4, 0.0, 0.0]]).to(dtype)
    log_probs, ids = teacher.float().log_softmax(-1).topk(k)
    value = topk_kl(student, ids, log_probs, tail=tail, direction=direction, reduction="none")
    value.sum().backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("tail", "direction"), [*((t, "forward") for t in TAILS), ("bucket", "reverse")])
@pytest.mark.parametrize("k", [2, 5])
def test_the_gradient_of_topk_kl_is_exact(tail, direction, k):
    given = top(drawn(2, 5, seed=1), k)
    how = {"tail": tail, "direction": direction, "temperature": 1.5}
    assert torch.autograd.gradcheck(lambda s: topk_kl(s, *given, **how), drawn(2, 5).requires_grad_())


@pytest.mark.parametrize("tail", ["renormalize", "teacher", "raw"])
def test_reverse_is_refused_where_the_student_could_move_its_mass_away(tail):
    with pytest.raises(ConfigError, match=r"move its mass(.|\n)*To mend"):
        topk_kl(STUDENT, *top(TEACHER, 2), tail=tail, direction="reverse")
    with pytest.raises(ConfigError, match="move its mass"):
        TopKKL(tail=tail, direction="reverse")


def test_answers_that_do_not_fit_are_refused():
    ids, log_probs = top(TEACHER, 2)
    with pytest.raises(ShapeError, match="K of at most V"):
        topk_kl(STUDENT[:2], ids, log_probs)
    with pytest.raises(ShapeError, match="K of at most V"):
        topk_kl(STUDENT[:, :1], ids, log_probs)
    with pytest.raises(DataError, match=r"torch\.int32"):
        topk_kl(STUDENT, ids.int(), log_probs)
    with pytest.raises(DataError, match="the student has 5 classes"):
        topk_kl(STUDENT, ids + 5, log_probs)


def test_the_term_takes_a_few_answers_or_finds_them():
    ids, log_probs = top(TEACHER, 2)
    student = {"logits": STUDENT}
    sparse = TopKKL()(student, {"logits.ids": ids, "logits.log_probs": log_probs}, {})
    dense = TopKKL(k=2)(student, {"logits": TEACHER}, {})
    assert torch.equal(sparse, dense)
    assert TopKKL().needs().teacher == {"logits.ids", "logits.log_probs"}
    assert TopKKL(k=2).needs().teacher == {"logits"}
    assert torch.equal(TopKKL(k=99)(student, {"logits": TEACHER}, {}), TopKKL(k=5)(student, {"logits": TEACHER}, {}))
    with pytest.raises(ConfigError, match="entropy of the teacher is not known"):
        TopKKL(temperature=ByEntropy())
    assert TopKKL(k=2, temperature=ByEntropy())(student, {"logits": TEACHER}, {}).shape == (3,)


def test_a_position_counts_where_the_next_label_is_there():
    labels = torch.tensor([[-100, 5, -100, 7], [1, 2, 3, -100]])
    assert token_mask(labels).tolist() == [[True, False, True, False], [True, True, False, False]]
    assert token_mask(labels, shift=0).tolist() == [[False, True, False, True], [True, True, True, False]]
    assert token_mask(labels, shift=2).tolist() == [[False, True, False, False], [True, False, False, False]]
    assert not token_mask(labels, shift=9).any()
    assert token_mask(labels, shift=9).shape == (2, 4)
    assert token_mask(torch.tensor([5, 0, 7]), ignore=0).tolist() == [False, True, False]
    assert shifted(labels).tolist() == [[5, -100, 7, -100], [2, 3, -100, -100]]
    with pytest.raises(ConfigError, match="shift"):
        token_mask(labels, shift=-1)


@pytest.mark.parametrize(("left", "right"), [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_uld_compares_sorted_probabilities_of_any_two_vocabularies(left, right, temperature):
    student, teacher = drawn(4, left), drawn(4, right, seed=1)
    value = uld(student, teacher, temperature=temperature, reduction="none")
    for row in range(4):
        s, t = (np.zeros(9) for _ in range(2))
        s[:left] = sorted(softmax(student[row].numpy() / temperature), reverse=True)
        t[:right] = sorted(softmax(teacher[row].numpy() / temperature), reverse=True)
        assert value[row].item() == pytest.approx(np.abs(s - t).sum(), rel=1e-10)


def test_uld_is_blind_to_which_word_is_meant_and_has_an_exact_gradient():
    student, teacher = drawn(3, 5), drawn(3, 7, seed=1)
    torch.testing.assert_close(uld(student.flip(-1), teacher), uld(student, teacher))
    assert uld(student, student.roll(2, -1)).abs() < 1e-12
    assert torch.autograd.gradcheck(lambda s: uld(s, teacher), student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_uld_is_finite_at_extreme_logits(dtype):
    student = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4]]).to(dtype).requires_grad_()
    value = uld(student, torch.tensor([[-1e4, 1e4], [1e4, 1e4]]).to(dtype), reduction="none")
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


def test_the_uld_term_cuts_to_the_shorter_side_and_the_function_does_not():
    student, teacher = drawn(2, 4, 5), drawn(2, 3, 8, seed=1)
    value = ULD()({"logits": student}, {"logits": teacher}, {})
    assert torch.equal(value, uld(student[:, :3], teacher, reduction="none"))
    assert ULD(temperature=ByEntropy())({"logits": student}, {"logits": teacher}, {}).shape == (2, 3)
    with pytest.raises(ShapeError, match="only the vocabularies may differ"):
        uld(student, teacher)
