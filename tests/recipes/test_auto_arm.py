"""An arm that chooses its objective, beside arms whose objectives are picked by hand."""

from __future__ import annotations

import dataclasses

import pytest

from limbeck.auto import Auto
from limbeck.core.errors import ConfigError
from limbeck.data import Digits
from limbeck.models import MLP
from limbeck.objectives import KL, Label
from limbeck.recipes import Arm, Master, Recipe, find, override, read, run_recipe, show
from limbeck.train import Training

pytest.importorskip("sklearn")


def recipe(**changes) -> Recipe:
    soft, hot = (KL(temperature=2.0), Label()), (KL(temperature=8.0), Label(weight=0.1))
    arms = {
        "plain": Arm(label="P", objective=(Label(),)),
        "hot": Arm(label="H", objective=hot),
        "soft": Arm(label="S", objective=soft),
        "auto": Arm(label="A", auto=Auto(candidates={"soft": soft, "hot": hot})),
    }
    given = {
        "title": "choice",
        "story": "",
        "data": Digits(),
        "teacher": Master(model=MLP(hidden=(32,)), training=Training(epochs=2, batch_size=60)),
        "student": MLP(hidden=(8,)),
        "arms": arms,
        "training": Training(epochs=3, batch_size=60),
        "seeds": 2,
        "evidence": None,
    }
    return Recipe(**{**given, **changes})


def test_the_arm_is_trained_as_the_one_it_chose_and_every_trial_is_on_record(tmp_path):
    outcome = run_recipe(recipe(), tmp_path / "run", show=False)
    trials = outcome.evidence["trials"]
    assert {(trial["arm"], trial["seed"]) for trial in trials} == {("auto", 0), ("auto", 1)}
    runs = {name: arm["runs"] for name, arm in outcome.document["arms"].items()}
    for seed in (0, 1):
        said = next(note for note in outcome.document["notes"] if note.startswith(f"auto, seed {seed}: "))
        name = "plain" if "was kept" in said else said.split("validation: ")[1].split(";")[0]
        mine, theirs = runs["auto"][seed], runs[name][seed]
        assert mine["steps"] == theirs["steps"]
        # Stored answers are float16, the other arms ask the teacher.
        assert mine["scores"]["nll"] == pytest.approx(theirs["scores"]["nll"], rel=0.02)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What was tried" in page
    assert "auto@1-" not in page
    again = run_recipe(recipe(), tmp_path / "run", show=False)
    assert again.evidence["trials"] == trials
    assert [run["scores"] for run in again.document["arms"]["auto"]["runs"]] == [run["scores"] for run in runs["auto"]]


def test_other_rates_keep_what_was_chosen(tmp_path):
    outcome = run_recipe(recipe(seeds=1, rates=(0.5,)), tmp_path / "run", show=False)
    assert [len(entries) for entries in outcome.evidence["rates"]["auto"].values()] == [2, 2, 2, 2]
    folders = {file.parent.name for file in (tmp_path / "run" / "checkpoints").glob("auto*/done.json")}
    assert {name for name in folders if "-" not in name.partition("@")[2].removesuffix("-0")} == {
        "auto-0", "auto@0.5-0"
    }  # fmt: skip
    assert len(folders) == 2 + 3  # one round: plain and two candidates


def test_answers_that_the_recipe_keeps_serve_the_trials(tmp_path):
    kept = override(recipe(seeds=1), ["targets.views=1"], "x")
    outcome = run_recipe(kept, tmp_path / "run", show=False)
    assert outcome.evidence["trials"]
    assert {path.name for path in (tmp_path / "run" / "targets").iterdir()} == {"0"}


def test_what_contradicts_itself_is_refused():
    with pytest.raises(ConfigError, match="has an objective, and auto as well"):
        Arm(label="A", objective=(Label(),), auto=Auto())
    with pytest.raises(ConfigError, match="holds no term"):
        Arm(label="A")
    arms = {"auto": Arm(label="A", auto=Auto())}
    with pytest.raises(ConfigError, match="has a teacher"):
        recipe(arms=arms, baseline="auto")
    with pytest.raises(ConfigError, match="larger share"):
        run_recipe(dataclasses.replace(recipe(arms=arms, baseline=None), training=Training(epochs=1)), None)


def test_the_setting_is_its_yaml_and_takes_changes():
    found = override(find("digits-auto"), ["arms.auto.auto.share=0.5", "arms.auto.auto.margin=2"], "x")
    assert found.arms["auto"].auto == Auto(share=0.5, margin=2)
    assert read(show(found), "x") == found
    assert read(show(recipe()), "x") == recipe()
