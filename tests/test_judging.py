"""A teacher is asked once for the samples that students are scored on, and the scores are the same."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.data import DatasetSource, as_source
from limbeck.job import evaluation
from limbeck.judging import Heard
from limbeck.recipes import find, run_recipe
from limbeck.teachers import ModuleTeacher, as_teacher

G = torch.Generator().manual_seed(0)
X = torch.randn(377, 6, generator=G)
Y = X[:, :3].argmax(1)
TRAIN, VAL, TEST = (X[:200], Y[:200]), (X[200:300], Y[200:300]), (X[300:], Y[300:])
HOW = {"val": VAL, "test": TEST, "epochs": 2, "batch_size": 20, "progress": False}
ASKED: Counter[int] = Counter()


class Counting(nn.Module):
    """A teacher that counts its calls by the number of samples, copies of it too."""

    def __init__(self, classes=3):
        super().__init__()
        self.layer = nn.Linear(6, classes)

    def forward(self, x):
        ASKED[len(x)] += 1
        return self.layer(x)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    ASKED.clear()
    monkeypatch.setattr("limbeck.evidence._SECONDS", 0.01)


def opened(model, source):
    teacher = as_teacher(model)
    teacher.open(("logits",), next(iter(evaluation(source).epoch(0))))
    return teacher


def answers(heard, model, source):
    """What is answered, and how often the model was called for it."""
    ask, before = heard.by(opened(model, source), source), ASKED.total()
    with torch.no_grad():
        told = torch.cat([ask(batch)["logits"] for batch in evaluation(source).epoch(0)])
    return told, ASKED.total() - before


def test_a_run_asks_its_teacher_for_the_test_samples_once(monkeypatch):
    torch.manual_seed(0)
    teacher, student = Counting(), nn.Linear(6, 3)
    begun = {name: value.clone() for name, value in student.state_dict().items()}
    run = lb.distill(student, teacher, train=TRAIN, **HOW)
    assert ASKED[77] == 1
    monkeypatch.setattr(Heard, "by", lambda _self, teacher, _source: teacher)
    student.load_state_dict(begun)
    again = lb.distill(student, teacher, train=TRAIN, **HOW)
    assert ASKED[77] == 3  # once to score the student beside it, once to score itself
    for name in ("student", "teacher"):
        assert dict(run.scores[name]) == dict(again.scores[name])


def test_all_trainings_of_a_recipe_share_what_a_teacher_answered(tmp_path, monkeypatch):
    asked = Counter()
    answer = ModuleTeacher.__call__

    def counted(self, batch):
        asked[len(batch["y"])] += 1
        return answer(self, batch)

    monkeypatch.setattr(ModuleTeacher, "__call__", counted)
    settings = ["seeds=1", "rates=[0.5]", "training.epochs=1", "teacher.training.epochs=1", "evidence=null"]
    recipe = find("digits", settings)
    done = run_recipe(recipe, tmp_path / "run", show=False)
    assert "agreement" in done.document["arms"]["distilled"]["runs"][0]["scores"]
    assert (asked[500], asked[len(recipe.data.load().test) - 500]) == (1, 1)  # in batches of 500


def test_the_answers_are_those_of_the_teacher_and_follow_its_weights():
    heard, model, source, other = Heard(), Counting(), as_source(TEST), as_source(VAL)
    first, calls = answers(heard, model, source)
    assert calls == 1
    again, calls = answers(heard, model, source)
    assert calls == 0
    assert torch.equal(again, first)
    with torch.no_grad():
        model.layer.weight.mul_(2)
        assert torch.equal(answers(heard, model, source)[0], model(TEST[0]))
        assert torch.equal(answers(heard, model, other)[0], model(VAL[0]))


def test_a_pass_that_was_cut_off_leaves_nothing():
    heard, model, source = Heard(), Counting(), as_source((torch.randn(1200, 6), torch.arange(1200) % 3))
    heard.by(opened(model, source), source)(next(iter(evaluation(source).epoch(0))))
    told, calls = answers(heard, model, source)
    assert calls == 3
    with torch.no_grad():
        assert torch.equal(told, model(source.columns["x"]))


def test_what_changes_or_is_too_much_is_asked_each_time(monkeypatch):
    source = as_source(TEST)
    own = lb.SelfTeacher(decay=0.9)
    assert Heard().by(own, source) is own
    among = as_teacher([nn.Linear(6, 3), nn.Linear(6, 3)])
    assert Heard().by(among, source) is not among
    drawn = DatasetSource([(torch.randn(6), 0) for _ in range(10)])
    teacher = as_teacher(nn.Linear(6, 3))
    assert Heard().by(teacher, drawn) is teacher
    monkeypatch.setattr("limbeck.judging._MOST", 4 * 3 * 76)
    heard, model = Heard(), Counting()
    answers(heard, model, source)
    assert answers(heard, model, source)[1] == 1


def test_no_more_is_held_than_may_be_kept(monkeypatch):
    """Neither while a teacher is listened to, nor of many teachers together: the oldest go first."""
    monkeypatch.setattr("limbeck.judging._MOST", 4 * 3 * 1000)
    heard, model, source = Heard(), Counting(), as_source((torch.randn(1200, 6), torch.arange(1200) % 3))
    ask = heard.by(opened(model, source), source)
    for batch in evaluation(source).epoch(0):
        ask(batch)
        assert sum(part.nbytes for part in ask.told) <= 4 * 3 * 1000
    parts = [as_source((torch.randn(400, 6), torch.arange(400) % 3)) for _ in range(3)]
    assert [answers(heard, model, part)[1] for part in parts] == [1, 1, 1]
    assert [answers(heard, model, part)[1] for part in parts[1:]] == [0, 0]
    assert answers(heard, model, parts[0])[1] == 1
