"""What is wrong with a call is said before a step is done, before a folder is made, and with the student as it was."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core.errors import LimbeckError

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 10


class Nothing(nn.Module):
    """A student that cannot learn."""

    def forward(self, x):
        return x.repeat(1, 2)[:, :10]


def dense(classes=10, hidden=8, features=6):
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def frozen(model):
    return model.requires_grad_(False)


def nan(x):
    x = x.clone()
    x[7, 2] = float("nan")
    return x


def sharing():
    student = dense()
    return {"student": student, "teacher": nn.Sequential(student[0], nn.ReLU(), nn.Linear(8, 10))}


FAULTS = {
    "class counts differ": ({"teacher": dense(100)}, ("kl: student is (2, 10), teacher is (2, 100)", "classes=")),
    "nothing to train": ({"student": Nothing()}, ("student", "no trainable parameter")),
    "all frozen": ({"student": frozen(dense())}, ("student", "requires_grad_(True)")),
    "no module": ({"student": "resnet18"}, ("student", "str is no torch.nn.Module")),
    "teacher is a path": (
        {"teacher": "resnet18.pth"},
        ("teacher", "'resnet18.pth' is neither a module nor a function"),
    ),
    "teacher shares weights": (sharing(), ("teacher", "shares parameters", "deepcopy")),
    "another width": ({"student": dense(features=5)}, ("student", "x (2, 6) float32")),
    "teacher of another width": ({"teacher": dense(features=5)}, ("teacher", "x (2, 6) float32")),
    "labels out of range": ({"student": dense(5), "teacher": None}, ("train", "label `y` is 5 in row 5, of 5 classes")),
    "unseen label in val": ({"val": (X, Y + 5)}, ("val", "label `y` is 10")),
    "negative label": ({"train": (X, Y - 2)}, ("train", "label `y` is -2 in row 0")),
    "NaN in data": ({"train": (nan(X), Y)}, ("train", "'x' is NaN or infinite in row 7")),
    "NaN in val": ({"val": (nan(X), Y)}, ("val", "row 7")),
    "lengths differ": ({"train": (X, Y[:-1])}, ("train", "x has 40, y has 39")),
    "no samples": ({"train": (X[:0], Y[:0])}, ("train", "no samples")),
    "a word for data": ({"train": "data.csv"}, ("train", "a str holds no data")),
    "no labels for a label term": ({"train": X, "val": X}, ("train", "'label' needs 'y'")),
    "no such layer": ({"objective": lb.Hint(student="7", teacher="0")}, ("student", "'7'", "known: 0, 1, 2, logits")),
    "no such layer in the teacher": ({"objective": lb.Hint(student="0", teacher="fc")}, ("teacher", "'fc'")),
    "no term": ({"objective": ()}, ("objective", "no term")),
    "a class for a term": ({"objective": lb.KL}, ("objective", "limbeck.KL()")),
    "a term without its teacher": ({"teacher": None, "objective": lb.KL()}, ("objective", "'kl' needs a teacher")),
    "batch larger than data": ({"batch_size": 100}, ("batch_size", "100", "give at most 36")),
    "zero epochs": ({"epochs": 0}, ("epochs", "0")),
    "epochs in words": ({"epochs": "ten"}, ("epochs", "'ten'")),
    "unknown setting": ({"epoch": 3}, ("'epoch'", "did you mean 'epochs'?")),
    "rate for an optimizer": ({"optimizer": 0.1}, ("optimizer", "limbeck.Optimizer(")),
    "name for an optimizer": ({"optimizer": "adam"}, ("optimizer", "limbeck.Optimizer(")),
    "unknown option": ({"optimizer": lb.Optimizer(name="AdamW", options={"beta": 1})}, ("optimizer.options", "beta")),
    "name for a schedule": ({"schedule": "cosine"}, ("schedule", "limbeck.schedules")),
    "crops of vectors": ({"augment": lb.Augment(crop=2)}, ("augment", "no input is an image")),
    "micro-batches that do not divide": ({"accumulate": 3}, ("accumulate", "divisor")),
}


def call(out, **changes):
    given = {"student": dense(), "teacher": dense(), "train": (X, Y), "epochs": 1, "batch_size": 10, "progress": False}
    student, teacher, *_ = (given := {**given, **changes}).pop("student"), given.pop("teacher")
    return lb.distill(student, teacher, out=out, **given)


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_call_is_refused_before_anything_is_done(name, tmp_path):
    changes, says = FAULTS[name]
    student = changes.get("student", dense())
    before = copy.deepcopy(student.state_dict()) if isinstance(student, nn.Module) else {}
    with pytest.raises(LimbeckError) as caught:
        call(tmp_path / "run", **{**changes, "student": student})
    said = str(caught.value)
    assert "\n  To mend: " in said
    for words in says:
        assert words in said
    assert not (tmp_path / "run").exists()
    if before:
        assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
        assert not any(module._forward_hooks for module in student.modules())


def test_a_call_that_was_refused_can_be_corrected_in_the_same_folder(tmp_path):
    with pytest.raises(LimbeckError):
        call(tmp_path / "run", batch_size=100)
    assert call(tmp_path / "run", batch_size=20).state.stopped_by == "epochs"


def test_a_refused_call_draws_no_random_number_of_the_user_s():
    objective = lb.Hint(student="0", teacher="0")  # of other widths, so that a head is drawn to try it
    student, teacher = dense(), dense(hidden=16)
    optimizer = lb.Optimizer(options={"beta": 1})
    before = torch.get_rng_state()
    with pytest.raises(LimbeckError, match=r"optimizer\.options"):
        lb.distill(student, teacher, train=(X, Y), batch_size=10, objective=objective, optimizer=optimizer)
    assert torch.equal(torch.get_rng_state(), before)


OTHERS = {
    "evaluate: more classes than outputs": (lambda at: lb.evaluate(dense(5), (X, Y)), ("label 5", "5 classes")),
    "evaluate: another width": (lambda at: lb.evaluate(dense(features=5), (X, Y)), ("x (40, 6) float32",)),
    "evaluate: no labels": (lambda at: lb.evaluate(dense(), X), ("label",)),
    "load: no folder": (lambda at: lb.load(at / "nowhere"), ("nowhere", "no such folder")),
    "load: empty folder": (lambda at: lb.load(at), ("model.safetensors",)),
    "footprint: another width": (lambda at: lb.footprint(dense(), torch.zeros(1, 3)), ("footprint", "1x3")),
    "report: no folder": (lambda at: call(None).report(), ("report", "no folder")),
    "load: a class of one's own": (lambda at: lb.load(at / "r") if call(at / "r") else None, ("Sequential", "into=")),
    "load: into another network": (
        lambda at: lb.load(at / "r", into=dense(7)) if call(at / "r") else None, ("cannot be loaded",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_calls_say_what_is_wrong(name, tmp_path):
    make, says = OTHERS[name]
    with pytest.raises(LimbeckError, match=r"\n  To mend: ") as caught:
        make(tmp_path)
    for words in says:
        assert re.search(re.escape(words), str(caught.value))
