"""A teacher with other classes than the student: chosen, ordered, merged."""

import pytest
import torch
from scipy.special import softmax
from torch import nn

import limbeck as lb
from limbeck.core.errors import ModelError
from limbeck.teachers.signal import check_classes, pick_classes

LOGITS = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
BATCH = {"valid": torch.ones(3, dtype=torch.bool), "x": torch.randn(3, 4)}


def picked(classes):
    return pick_classes({"logits": LOGITS, "hidden": LOGITS}, check_classes(classes))


def test_no_choice_changes_nothing_and_a_plain_choice_only_picks():
    assert torch.equal(picked(None)["logits"], LOGITS)
    assert torch.equal(picked((4, 1))["logits"], LOGITS[:, [4, 1]])
    assert torch.equal(picked(((4,), 1))["logits"], LOGITS[:, [4, 1]])
    assert check_classes(((4,), 1)).tolist() == [4, 1]
    assert torch.equal(picked(((4, 1), 0))["hidden"], LOGITS)


def test_the_classes_of_a_group_have_the_sum_of_their_probabilities():
    p = softmax(LOGITS.numpy(), axis=-1)
    expected = torch.from_numpy(p[:, [0, 1, 2]]).clone()
    expected[:, 0] += torch.from_numpy(p[:, 3])
    expected[:, 2] += torch.from_numpy(p[:, 4])
    got = picked(((0, 3), (1,), (2, 4)))["logits"]
    torch.testing.assert_close(got.softmax(-1), expected)
    assert torch.equal(got[:, 1], LOGITS[:, 1])
    three = picked(((0, 1, 2), 3, 4))["logits"].softmax(-1)
    torch.testing.assert_close(three[:, 0], torch.from_numpy(p[:, :3].sum(-1)))


def test_a_group_is_finite_at_extreme_logits_and_keeps_further_axes():
    wild = torch.tensor([[1e4, 1e4, -1e4, -1e4], [-1e4, -1e4, 1e4, 0.0]]).repeat(3, 1, 1)
    got = pick_classes(
        {"logits": wild},
        check_classes(
            (
                (0, 1),
                (2, 3),
            )
        ),
    )["logits"]
    assert got.shape == (3, 2, 2)
    assert torch.isfinite(got).all()
    assert got[0, 0, 0] == pytest.approx(1e4 + 0.693, abs=1e-2)


@pytest.mark.parametrize("classes", [(), (0, 0), (-1, 2), ((0, 1), 1), ((), 1), ((0, -3),)])
def test_what_names_no_class_or_one_twice_is_refused(classes):
    with pytest.raises(ModelError, match=r"are not distinct class numbers(.|\n)*once, from 0"):
        check_classes(classes)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: lambda x: m(x)], ids=["module", "function"])
def test_both_kinds_of_teacher_take_groups_and_their_fingerprint_follows(wrap):
    torch.manual_seed(0)
    model = nn.Linear(4, 5)
    plain = model(BATCH["x"]).softmax(-1)
    made = wrap(model)
    grouped = lb.teacher(made, classes=((0, 3), 1, (2, 4)))
    torch.testing.assert_close(grouped(BATCH)["logits"].softmax(-1)[:, 0], plain[:, 0] + plain[:, 3])
    choices = (None, (0, 1, 2), ((0, 3), 1, 2), ((0, 3), 1, (2, 4)), ((0, 4), 1, (2, 3)))
    assert len({lb.teacher(made, classes=each).fingerprint() for each in choices}) == len(choices)
    assert lb.teacher(made, classes=((0,), 1)).fingerprint() == lb.teacher(made, classes=(0, 1)).fingerprint()
    long, other = list(range(2000)), list(range(2000))
    other[900], other[901] = other[901], other[900]
    first, second = (lb.teacher(made, classes=tuple(each)).fingerprint() for each in (long, other))
    assert first != second


def test_a_class_in_a_group_that_the_teacher_has_not_is_refused():
    with pytest.raises(ModelError, match="class 9 is asked for, the teacher has 5"):
        lb.teacher(nn.Linear(4, 5), classes=((0, 9), 1)).open(["logits"], BATCH)
