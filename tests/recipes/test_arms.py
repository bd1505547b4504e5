"""Arms are a graph: who teaches whom, in which order, and what is refused before anything is trained."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from limbeck.core.errors import ConfigError, LimbeckError
from limbeck.data import Digits
from limbeck.job import evaluation
from limbeck.models import MLP
from limbeck.objectives import KL, Hint, Label
from limbeck.recipes import Arm, Master, Recipe, read, run_recipe, show
from limbeck.recipes.arms import order, student_of, teacher_of
from limbeck.recipes.build import built
from limbeck.recipes.members import _Seed
from limbeck.recipes.run import Outcome
from limbeck.teachers import ModuleTeacher
from limbeck.train import Stage, Training, Tuning, checkpoint

SMALL, BIG = MLP(hidden=(8,)), MLP(hidden=(24, 24))
SHORT = Training(epochs=2, batch_size=200, log_steps=50)
PLAIN = Arm(label="Plain", objective=(Label(),))


def recipe(seeds: int = 1, student: MLP = SMALL, **arms: Arm) -> Recipe:
    return Recipe(
        title="graph",
        story="a graph of arms",
        data=Digits(),
        teacher=Master(model=BIG, training=SHORT),
        student=student,
        arms={"plain": PLAIN, **arms},
        training=SHORT,
        seeds=seeds,
        evidence=None,
    )


def taught(by=None, **more) -> Arm:
    return Arm(label="Taught", objective=(KL(),), teacher=by, **more)


def weights(out, name, seed=0):
    home = out / "checkpoints" / f"{name}-{seed}"
    tensors = load_file(checkpoint.latest(home) / "tensors.safetensors")
    prefix = "student/reader.model."
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def ran(made: Recipe, out=None) -> Outcome:
    return run_recipe(made, out, show=False)


CHAIN = {"third": taught("second"), "second": taught("first"), "first": taught()}


def test_arms_are_trained_after_those_that_they_learn_from(tmp_path):
    assert order(recipe(**CHAIN)) == ["plain", "first", "second", "third"]
    ran(recipe(**CHAIN), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["arm"] for line in lines)) == ["teacher", "plain", "first", "second", "third"]
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert list(scores["arms"]) == ["teacher", "plain", "third", "second", "first"]  # as the recipe names them


def test_the_teacher_of_a_chain_is_the_earlier_arms_student_bit_for_bit(tmp_path, monkeypatch):
    seen = {}
    real = _Seed._tried

    def spy(self, job):
        result = real(self, job)
        if job.teacher is not None:
            model = job.teacher.model
            seen[job.arm, job.seed] = {name: value.clone() for name, value in model.state_dict().items()}
        return result

    monkeypatch.setattr(_Seed, "_tried", spy)
    ran(recipe(seeds=2, **CHAIN), tmp_path / "run")
    for name, elder in (("first", "teacher"), ("second", "first"), ("third", "second")):
        for seed in (0, 1):
            mine, theirs = seen[name, seed], weights(tmp_path / "run", elder, seed)
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_several_teachers_answer_with_the_mean_of_their_logits():
    made = recipe(one=PLAIN, two=PLAIN, both=taught(("one", "two", "teacher")))
    splits = made.data.load()
    nets = {name: built(SMALL, splits.train, i, name) for i, name in enumerate(("one", "two"))}
    own = ModuleTeacher(built(BIG, splits.train, 0, "teacher"))
    joined = teacher_of(made, "both", own, own, nets)
    batch = next(iter(evaluation(splits.test).epoch(0)))
    joined.open(("logits",), batch)
    with torch.no_grad():
        mean = sum(model.eval()(batch["x"]) for model in (*nets.values(), own.model)) / 3
    torch.testing.assert_close(joined(batch)["logits"], mean, rtol=1e-4, atol=1e-5)
    joined.close()


def test_an_arm_has_a_network_of_its_own_and_may_begin_where_another_ended(tmp_path):
    frozen = Tuning(learn=("*.bias",))
    made = recipe(
        assistant=taught(student=MLP(hidden=(16,))),
        own=Arm(label="Own", objective=(Label(),), student=BIG, start="teacher", tuning=frozen),
        again=Arm(label="Again", objective=(Label(),), start="plain", tuning=frozen),
    )
    outcome = ran(made, tmp_path / "run")
    for name, elder in (("own", "teacher"), ("again", "plain")):
        mine, theirs = weights(tmp_path / "run", name), weights(tmp_path / "run", elder)
        for n in mine:
            assert torch.equal(mine[n], theirs[n]) == n.endswith("weight"), n
    size = {n: entry["footprint"]["parameters"] for n, entry in outcome.document["arms"].items()}
    assert size["plain"] < size["assistant"] < size["own"] == size["teacher"]


def test_fresh_weights_differ_and_random_ones_do_not():
    starts = {"a": "random", "b": "random", "c": "fresh", "d": "fresh"}
    made = recipe(**{name: replace(PLAIN, start=start) for name, start in starts.items()})
    splits = made.data.load()
    a, b, c, d = (student_of(made, name, splits, {}, seed=0).linear.weight for name in starts)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(c, d)
    again = student_of(made, "c", splits, {}, seed=1).linear.weight
    assert not torch.equal(c, again)


def test_stages_of_an_arm_and_a_note_where_their_budget_is_another(tmp_path):
    hints = Stage(name="hints", epochs=1, objective=(Hint(student="hidden1", teacher="hidden1"),))
    made = recipe(
        equal=taught(stages=(hints, Stage(name="outputs", epochs=1))),
        longer=Arm(label="Longer", objective=(KL(),), stages=(hints, Stage(name="outputs", epochs=4))),
    )
    outcome = ran(made, tmp_path / "run")
    notes = [note for note in outcome.document["notes"] if "stages" in note]
    assert notes == ["Longer: the stages have 5 epochs in all, where the recipe gives 2."]
    assert outcome.document["arms"]["longer"]["runs"][0]["epochs"] == 5
    assert "in stages: hints for 1 epochs, outputs for 4 epochs" in outcome.document["arms"]["longer"]["describe"]


def test_the_student_that_is_kept_is_one_that_no_other_arm_needs():
    outcome = ran(recipe(assistant=taught(student=MLP(hidden=(16,))), assisted=taught("assistant")))
    assert outcome.document["arms"]["assistant"]["role"] == "teacher"
    assert outcome.document["arms"]["assisted"]["role"] == "distilled"
    assert {row["arm"] for row in outcome.document["comparisons"]} == {"assisted"}


REFUSED = {
    "a circle": (
        {"a": taught("b"), "b": taught("c"), "c": taught("a")},
        r"wait for each other \(a → b → c → a\)",
    ),
    "itself": ({"a": taught("a")}, r"wait for each other \(a → a\)"),
    "a circle through a start": ({"a": taught("b"), "b": taught(start="a")}, r"\(a → b → a\)"),
    "nobody of that name": ({"first": taught("frist")}, "no arm 'frist'.*did you mean 'first'"),
    "no start of that name": ({"first": taught(start="techer")}, "no arm 'techer'.*did you mean 'teacher'"),
    "no teacher at all": ({"first": taught(())}, r"teachers are \[\]"),
    "one teacher twice": ({"a": taught(), "b": taught(("a", "a"))}, "each once"),
    "weights of another network": ({"a": taught(start="teacher")}, "weights of 'teacher' do not fit"),
    "a layer that the assistant has not": (
        {"a": PLAIN, "b": Arm(label="B", objective=(Hint(student="1", teacher="layer9"),), teacher="a")},
        "layer9",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_trained(case, tmp_path):
    arms, said = REFUSED[case]
    with pytest.raises(LimbeckError, match=f"(?s){said}"):
        ran(recipe(**arms), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_arm_is_its_yaml():
    stage = Stage(
        name="hints", epochs=1, objective=(Hint(student="hidden1", teacher="hidden1"),), tuning=Tuning(freeze=("0",))
    )
    made = recipe(a=taught(("teacher", "plain"), start="fresh", student=BIG, stages=(stage,)), b=taught("a"))
    assert read(show(made), "x") == made


@pytest.mark.parametrize("name", ["teacher", "random", "fresh", "inherit"])
def test_words_with_a_meaning_of_their_own_name_no_arm(name):
    with pytest.raises(ConfigError, match="taken"):
        recipe(**{name: PLAIN})


def test_what_needs_an_arm_that_broke_down_is_left_out_and_said():
    from limbeck.train import Optimizer

    wild = replace(SHORT, optimizer=Optimizer(rate=1e30, options={"momentum": 0.0}), clip=None)
    made = replace(recipe(first=taught(), second=taught("first")), baseline=None)
    broken = replace(made, arms={"first": made.arms["first"], "second": made.arms["second"]}, training=wild)
    with pytest.raises(LimbeckError, match=r"broke down|left out"):
        ran(broken)


def test_a_killed_chain_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    ran(recipe(**CHAIN), whole)
    real, calls = checkpoint.save, iter(range(1, 100))

    def cut(*args, **kwargs):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        ran(recipe(**CHAIN), tmp_path / "cut")
    monkeypatch.setattr(checkpoint, "save", real)
    ran(recipe(**CHAIN), tmp_path / "cut")
    for name in CHAIN:
        mine, theirs = weights(tmp_path / "cut", name), weights(whole, name)
        assert all(torch.equal(mine[n], theirs[n]) for n in theirs)
