"""The command itself in two processes: a recipe with targets, all arms, one folder, one voice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from launching import ended, launch, pair
from safetensors.torch import load_file, save_file

from limbeck.models import Conv
from limbeck.recipes import read, run_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("recipe")
    draw, held = np.random.default_rng(0), {}
    for part, rows in (("train", 61), ("test", 13)):
        held[f"{part}_images"] = draw.integers(0, 256, (rows, 8, 8, 3)).astype(np.uint8)
        held[f"{part}_labels"] = np.arange(rows) % 3
    np.savez(home / "images.npz", **held)
    torch.manual_seed(0)
    save_file(Conv(channels=(4, 4)).build((3, 8, 8), 3).state_dict(), home / "teacher.safetensors")
    plain = {
        "title": "two", "story": "A network teaches a smaller one.",
        "data": {"kind": "npz", "path": str(home / "images.npz"), "val": 10},
        "teacher": {"model": {"kind": "conv", "channels": [4, 4]}, "weights": str(home / "teacher.safetensors")},
        "student": {"kind": "conv", "channels": [2, 2]},
        "arms": {
            "plain": {"label": "Plain", "objective": [{"kind": "label"}]},
            "distilled": {"label": "Distilled", "objective": [{"kind": "kl"}, {"kind": "label"}]},
        },
        "training": {"epochs": 3, "batch_size": 10, "log_steps": 1},
        "augment": {"crop": 1, "flip": True},
        "targets": {"views": 3, "batch_size": 8},
        "seeds": 1,
    }  # fmt: skip
    (home / "two.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return home / "two.yaml"


@pytest.fixture(scope="module")
def choosing(recipe) -> Path:
    """The same teacher and form of student, enough samples to choose on, and an arm that does."""
    draw, held = np.random.default_rng(1), {}
    for part, rows in (("train", 160), ("test", 20)):
        labels = np.arange(rows) % 3
        images = draw.integers(0, 128, (rows, 8, 8, 3)) + 40 * labels[:, None, None, None]
        held[f"{part}_images"], held[f"{part}_labels"] = images.astype(np.uint8), labels
    np.savez(recipe.parent / "more.npz", **held)
    plain = yaml.safe_load(recipe.read_text())
    soft = {"soft": [{"kind": "kl", "temperature": 2.0}, {"kind": "label"}], "hard": [{"kind": "kl", "weight": 0.1}]}
    plain["arms"] = {
        "plain": {"label": "Plain", "objective": [{"kind": "label"}]},
        "chosen": {"label": "Chosen", "auto": {"candidates": soft}},
    }
    plain["data"] |= {"path": str(recipe.parent / "more.npz"), "val": 40}
    del plain["targets"]
    (recipe.parent / "choosing.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return recipe.parent / "choosing.yaml"


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


@pytest.mark.slow
def test_a_recipe_with_targets_is_the_run_of_one_process(recipe, tmp_path):
    done = launch("torchrun", "-m", "limbeck", "run", recipe, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Page: ") == 1
    assert done.stdout.count("accuracy ") == 4  # teacher, two arms, the head of the table
    run_recipe(read(recipe.read_text(), "two.yaml"), tmp_path / "one", show=False)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4, atol=1e-5)
    one, two = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
    files = [sorted(f.name for f in (tmp_path / n / "targets" / "logits").iterdir()) for n in ("one", "two")]
    assert files[0] == files[1]
    for name in files[0]:
        assert len({(tmp_path / n / "targets" / "logits" / name).read_bytes() for n in ("one", "two")}) == 1


@pytest.mark.slow
def test_two_processes_choose_what_one_chooses(choosing, tmp_path):
    done = launch("torchrun", "-m", "limbeck", "run", choosing, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    run_recipe(read(choosing.read_text(), "choosing.yaml"), tmp_path / "one", show=False)
    one, two = (json.loads((tmp_path / name / "evidence.json").read_text())["trials"] for name in ("one", "two"))
    told = [[(t["candidate"], t["round"], t["steps"], t["kept"]) for t in trials] for trials in (one, two)]
    assert told[0] == told[1]
    assert len(told[0]) == 3
    np.testing.assert_allclose([t["nll"] for t in two], [t["nll"] for t in one], rtol=1e-3)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_bad_input_is_one_message_however_many_processes_have_it(recipe, tmp_path):
    done = launch("torchrun", "-m", "limbeck", "run", recipe, "--set", "training.epochs=0", "--out", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.count("is not a whole number of at least 1") == 1
    assert "limbeck: " in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_one_alone_has_to_say_is_said_with_its_number(recipe, tmp_path):
    both = ended(pair("run", recipe, "--set", "training.epochs=0"))
    assert [code for code, _ in both] == [2, 2]
    assert both[0][1].startswith("limbeck: ")
    assert both[1][1].startswith("limbeck (process 2): ")
