"""Recipes of students that teach each other or themselves: what is kept, what is refused, and that they end."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import limbeck as lb
from limbeck.core.errors import LimbeckError
from limbeck.core.setting import build
from limbeck.models import MLP
from limbeck.objectives import KL, Label
from limbeck.recipes import Arm, find, run_recipe
from limbeck.recipes.arms import teacher_of
from limbeck.teachers.own import SelfTeacher, SelfTeaching

pytest.importorskip("sklearn")
QUICK = ["seeds=1", "training.epochs=2", "teacher.training.epochs=1"]
BOTH = (KL(), Label())


def test_the_student_of_peers_is_saved_alone_and_their_spread_is_told(tmp_path):
    done = run_recipe(find("digits-mutual", QUICK), tmp_path / "run", show=False)
    arms = done.document["arms"]
    assert len(arms["four"]["runs"][0]["scores"]["peers"]) == 4
    assert sum("peers is the student" in note for note in done.document["notes"]) == 2
    # What is kept of peers is a network of the plain student's size, also in what is measured of it.
    assert arms["four"]["footprint"]["parameters"] == arms["plain"]["footprint"]["parameters"]
    model = lb.load(tmp_path / "run")
    assert type(model).__name__ == "Perceptron"
    splits = find("digits-mutual").data.load()
    assert lb.evaluate(model, splits.test)["accuracy"] == pytest.approx(arms["two"]["runs"][0]["scores"]["accuracy"])
    again = run_recipe(find("digits-mutual", QUICK), tmp_path / "run", show=False)
    assert again.document["arms"]["two"]["runs"] == arms["two"]["runs"]


def test_the_first_peer_begins_where_the_plain_student_begins():
    from limbeck.recipes.arms import student_of

    recipe = find("digits-mutual")
    splits = recipe.data.load()
    plain, peers = (student_of(recipe, name, splits, {}, seed=0) for name in ("plain", "four"))
    assert torch.equal(plain.linear.weight, peers.peer[0].linear.weight)


def test_an_arm_may_be_its_own_teacher():
    recipe = find("digits-self")
    own = teacher_of(recipe, "average", None, None, {})
    assert isinstance(own, SelfTeacher)
    assert own.how == SelfTeaching(decay=0.97)
    assert teacher_of(recipe, "exits", None, None, {}) is None
    done = run_recipe(find("digits-self", QUICK), None, show=False)
    plain, *others = (done.document["arms"][name]["runs"][0]["scores"] for name in recipe.arms)
    assert all(other["nll"] != plain["nll"] for other in others)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Arm(label="x", objective=(Label(),), own=SelfTeaching(epochs=1)), "no term reads one"),
        (lambda: Arm(label="x", objective=BOTH, own=SelfTeaching(epochs=1), teacher="teacher"), "by itself and by"),
        (lambda: build(SelfTeaching, {"decay": 2.0}, "x"), "no decay"),
        (lambda: find("digits-mutual", ["arms.two.student.count=1"]), "peers.count"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(LimbeckError, match=said):
        make()


def test_an_exit_at_no_layer_is_refused_before_anything_is_trained(tmp_path):
    recipe = dataclasses.replace(find("digits-self", QUICK), student=MLP(hidden=(8,)))
    with pytest.raises(LimbeckError, match=r"hidden2(.|\n)*hidden1"):
        run_recipe(recipe, tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()


def test_the_plain_student_teaches_the_noisy_one_which_teaches_the_next():
    from limbeck.recipes.arms import needs, order

    recipe = find("digits-noisy-student")
    assert [arm for arm in order(recipe) if arm != "calm"] == ["plain", "first", "second"]
    assert list(needs(recipe, "calm")) == ["plain"]
    assert recipe.arms["first"].student.dropout > 0
    splits = recipe.data.load()
    assert int((splits.train.labels >= 0).sum()) == 60
    done = run_recipe(find("digits-noisy-student", [*QUICK, "arms.plain.epochs=4"]), None, show=False)
    assert set(done.document["arms"]) == {"teacher", *recipe.arms}


@pytest.mark.slow
def test_defensive_distillation_hides_from_an_attack_on_the_loss_and_not_from_one_on_the_margin():
    done = run_recipe(find("digits-defensive", ["seeds=1"]), None, show=False)

    def under(name, attack):
        (found,) = done.evidence["arms"][name]
        return found["robustness"]["attacks"][attack]["accuracy"][-1]

    assert under("defensive", "pgd") > under("defensive", "margin") + 0.03
    assert abs(under("plain", "pgd") - under("plain", "margin")) < 0.02
    assert under("defensive", "margin") < under("plain", "margin")
