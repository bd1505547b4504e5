"""A study is its seeds, however many processes train them; it grows, goes on, and tells a broken training."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from limbeck.core.errors import CheckpointError, ConfigError
from limbeck.data import Digits
from limbeck.evaluation import Timing
from limbeck.examining import Evidence
from limbeck.metrics.stability import diverged
from limbeck.models import MLP
from limbeck.objectives import KL, Label
from limbeck.recipes import Arm, Master, Recipe
from limbeck.recipes.base import show
from limbeck.recipes.members import job_of
from limbeck.recipes.study import study_recipe
from limbeck.train import Optimizer, Training

TRAINING = Training(epochs=3, batch_size=200, optimizer=Optimizer(rate=0.1), log_steps=1)
EVIDENCE = Evidence(samples=60, attributed=20, timing=Timing(batches=(1, 5), threads=(1,), seconds=0.2))


def small(**changes):
    arms = {
        "plain": Arm(label="Plain", objective=(Label(),)),
        "taught": Arm(label="Taught", objective=(KL(),), ema=0.5),
    }
    recipe = Recipe(title="small", story="s", data=Digits(), teacher=Master(model=MLP(hidden=(16,)), training=TRAINING),
                    student=MLP(hidden=(8,)), arms=arms, training=TRAINING, seeds=3, rates=(1.0, 3.0),
                    evidence=EVIDENCE)  # fmt: skip
    return dataclasses.replace(recipe, **changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    heard = []
    out = tmp_path_factory.mktemp("study") / "out"
    return study_recipe(small(), out, say=heard.append, bars=False), out, heard


def scores_of(document):
    return {name: [run["scores"]["nll"] for run in arm["runs"]] for name, arm in document["arms"].items()}


def test_it_holds_every_seed_and_what_was_measured(done):
    outcome, out, heard = done
    assert [run["seed"] for run in outcome.document["arms"]["plain"]["runs"]] == [0, 1, 2]
    evidence = json.loads((out / "evidence.json").read_text())
    assert set(evidence["churn"]) == {"teacher", "plain", "taught"}
    assert len(evidence["churn"]["plain"]["pairs"]) == 3
    assert evidence["rates"]["taught"]["rate"] == pytest.approx([0.1, 0.3])
    assert evidence["rates"]["taught"]["runs"] == [3, 3]
    measures = {row["measure"] for row in evidence["comparisons"]}
    assert measures == {"gap", "jitter_loss", "jitter_grad_norm", "input_noise", "weight_noise", "corruption", "pgd",
                        "attribution", "churn"}  # fmt: skip
    assert {row["arm"] for row in evidence["comparisons"]} == {"taught"}
    assert all(row["least_p"] == 0.25 for row in evidence["comparisons"])
    entry = evidence["arms"]["taught"][0]
    assert sum(entry["reliability"]["count"]) == sum(map(sum, entry["confusion"])) == 539
    assert "predictions" not in entry
    assert len(heard) == 3 * (1 + 2 * 2)
    page = (out / "report.html").read_text()
    assert "Learning rates" in page
    # Only our own script, which the policy names by its hash, and records that no browser executes.
    [records, script] = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.S)
    assert records[0] == ' type="application/json" id="records"'
    assert json.loads(records[1])["evidence"]["churn"] == evidence["churn"]
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert script[0] == ""
    assert f"default-src 'none'; script-src 'sha256-{digest}';" in page


def test_costs_are_measured_once_of_all_arms_and_kept(done):
    outcome, out, _ = done
    costs = json.loads((out / "evidence.json").read_text())["costs"]
    assert costs == outcome.evidence["costs"]
    assert list(costs) == ["teacher", "plain", "taught"]
    assert costs["teacher"]["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert costs["taught"]["disk"] == (out / "student" / "model.safetensors").stat().st_size
    assert [(row["batch"], row["threads"]) for row in costs["plain"]["latency"]] == [(1, 1), (5, 1)]
    assert [path.parent.parent for path in out.rglob("costs.json")] == [out]


@pytest.mark.slow
def test_processes_give_what_one_process_gives(done, tmp_path):
    outcome, _, _ = done
    heard = []
    other = study_recipe(small(), tmp_path / "out", jobs=3, say=heard.append, bars=False)
    assert scores_of(other.document) == scores_of(outcome.document)
    assert other.evidence["comparisons"] == outcome.evidence["comparisons"]
    assert len(heard) == 3 * (1 + 2 * 2)


def test_two_processes_give_the_scores_of_one_process(done, tmp_path):
    heard = []
    two = small(seeds=2, rates=(), evidence=None)
    other = scores_of(study_recipe(two, tmp_path / "out", jobs=2, say=heard.append, bars=False).document)
    assert other == {arm: scores[:2] for arm, scores in scores_of(done[0].document).items()}
    assert len(heard) == 2 * (1 + 2)


def test_the_same_seeds_share_what_they_start_from(done):
    _, out, _ = done
    firsts = {}
    for seed in range(3):
        lines = [json.loads(line) for line in (out / "seeds" / str(seed) / "metrics.jsonl").read_text().splitlines()]
        for arm in ("plain", "plain@3"):
            firsts[arm, seed] = next(x["loss"] for x in lines if x["kind"] == "step" and x["arm"] == arm)
    assert all(firsts["plain", seed] == firsts["plain@3", seed] for seed in range(3))
    assert len({firsts["plain", seed] for seed in range(3)}) == 3


def test_a_finished_study_is_read_and_more_seeds_are_trained_alone(done, tmp_path):
    outcome, first, _ = done
    out = tmp_path / "out"
    shutil.copytree(first, out)
    kept = [*out.glob("seeds/*/checkpoints/*/done.json"), *out.glob("seeds/*/checkpoints/*/examined.json")]
    assert len(kept) == 3 * (1 + 2 * 2) + 3 * 3
    times = {path: path.stat().st_mtime_ns for path in kept}
    grown = study_recipe(small(seeds=4), out, bars=False)
    assert scores_of(grown.document)["plain"][:3] == scores_of(outcome.document)["plain"]
    assert len(scores_of(grown.document)["plain"]) == 4
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert grown.evidence["costs"] == outcome.evidence["costs"]


def test_a_study_of_other_settings_is_refused(done):
    _, out, _ = done
    with pytest.raises(CheckpointError, match="`student"):
        study_recipe(small(student=MLP(hidden=(9,))), out, bars=False)


def test_a_training_that_breaks_is_counted_and_left_out(tmp_path):
    wild = {
        "plain": Arm(label="Plain", objective=(Label(),)),
        "wild": Arm(label="Wild", objective=(Label(),), rate=1e4),
    }
    calm = dataclasses.replace(TRAINING, clip=None)
    recipe = small(arms=wild, training=calm, seeds=2, rates=(), evidence=None)
    tamed = dataclasses.replace(
        recipe, arms={**wild, "wild": dataclasses.replace(wild["wild"], rate=0.1)}, rates=(1e6,)
    )
    found = study_recipe(tamed, tmp_path / "tamed", bars=False)
    assert found.evidence["rates"]["wild"]["diverged"] == [0, 2]
    assert len(found.document["arms"]["wild"]["runs"]) == 2


def test_a_student_that_has_learned_nothing_has_broken_though_its_loss_is_flat(tmp_path):
    # At a millionth of the rate the student is what it was drawn as: at chance.
    recipe = small(seeds=1, rates=(1e-6,), evidence=None, training=dataclasses.replace(TRAINING, epochs=8))
    found = study_recipe(recipe, tmp_path / "out", bars=False)
    losses = [x["loss"] for x in found.folder.lines if x["kind"] == "step" and x["arm"] == "plain@1e-06"]
    assert not diverged(losses)
    assert found.evidence["rates"]["plain"]["accuracy"][0][0] < 0.14
    assert found.evidence["rates"]["plain"]["diverged"] == [1, 0]


def test_jobs_must_be_a_number(tmp_path):
    with pytest.raises(ConfigError, match="jobs"):
        study_recipe(small(), tmp_path / "out", jobs=0)
    assert not (tmp_path / "out").exists()


def test_a_seed_that_cannot_be_trained_says_so_in_one_message(tmp_path):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("title: x")
    ended = subprocess.run(
        [sys.executable, "-m", "limbeck.recipes.seed", recipe, tmp_path / "out"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "To mend" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_student_that_is_saved_is_that_of_the_first_seed(done):
    _, out, _ = done
    saved = load_file(out / "student" / "model.safetensors")
    last = next((out / "seeds" / "0" / "checkpoints" / "taught-0").glob("step-*"))
    tensors = load_file(last / "tensors.safetensors")
    assert all(any(torch.equal(value, other) for other in tensors.values() if other.shape == value.shape)
               for value in saved.values())  # fmt: skip


def test_an_arm_has_its_own_rate_and_average():
    recipe, splits = small(), Digits().load()
    plain, taught = (job_of(recipe, name, splits, None, seed=0, show=False) for name in recipe.arms)
    assert (plain.training.ema, taught.training.ema) == (None, 0.5)
    faster = job_of(recipe, "plain", splits, None, seed=0, show=False, factor=3.0)
    assert faster.training.optimizer.rate == pytest.approx(0.3)
    assert faster.arm == "plain@3"


@pytest.mark.slow
def test_an_interrupted_study_saves_and_goes_on_to_the_same_end(done, tmp_path):
    """Ctrl-C in a terminal reaches the whole group of processes at once."""
    outcome, _, _ = done
    recipe, out = tmp_path / "study.yaml", tmp_path / "out"
    recipe.write_text(show(small()))
    command = [sys.executable, "-m", "limbeck", "study", recipe, "--jobs", "2", "--out", out]
    study = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert study.stdout is not None
    study.stdout.readline()
    os.killpg(study.pid, signal.SIGINT)
    _, wrong = study.communicate(timeout=120)
    assert study.returncode == 130
    assert "Traceback" not in wrong
    assert not (out / "scores.json").exists()
    again = study_recipe(small(), out, jobs=2, bars=False)
    assert scores_of(again.document) == scores_of(outcome.document)
