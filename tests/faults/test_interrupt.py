"""A run that is stopped, however hard, goes on from where it was and ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from limbeck.train import checkpoint
from warm import Started

CHANGES = ("training.checkpoint_seconds=0", "training.log_steps=2", "teacher.training.epochs=40", "training.epochs=40")
ENDED = "What was done is saved; the same command goes on from there."


def start(recipe: Path, out: Path) -> Started:
    flags = [word for each in (*CHANGES, "teacher.training.checkpoint_seconds=0") for word in ("--set", each)]
    return Started("run", recipe, "--out", out, *flags)


def stop(recipe: Path, out: Path, at: int, number: signal.Signals) -> tuple[int, str]:
    """Start the run, send the signal once the metrics have `at` lines, and return code and message."""
    process = start(recipe, out)
    end = time.monotonic() + 60
    while lines(out) < at:
        assert process.poll() is None, f"it ended before line {at}: {process.communicate()}"
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.wait(60), said


def lines(out: Path) -> int:
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def finish(recipe: Path, out: Path) -> None:
    process = start(recipe, out)
    _, said = process.communicate(timeout=60)
    assert process.wait(60) == 0, said
    assert not said


def records(out: Path) -> list[dict[str, Any]]:
    """The metrics without times."""
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read]


def scores(out: Path) -> dict[str, Any]:
    held = json.loads((out / "scores.json").read_text())["arms"]
    return {name: [run["scores"] for run in arm["runs"]] for name, arm in held.items()}


@pytest.fixture(scope="module")
def stories(tmp_path_factory) -> dict[str, Any]:
    """Three folders of one recipe: never stopped; stopped by Ctrl-C and by SIGTERM; killed at three moments."""
    home = tmp_path_factory.mktemp("interrupt")
    recipe = tiny.written(home)
    moments = sorted(random.Random(7).sample(range(20, 260), 3))

    def asked() -> list[tuple[int, str]]:
        ends = [stop(recipe, home / "asked", 30, signal.SIGINT), stop(recipe, home / "asked", 160, signal.SIGTERM)]
        finish(recipe, home / "asked")
        return ends

    def killed() -> list[tuple[int, str]]:
        # A killed run first takes back what it wrote after its last checkpoint, so later moments count from there.
        ends = [stop(recipe, home / "killed", at, signal.SIGKILL) for at in moments]
        finish(recipe, home / "killed")
        return ends

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(asked), pool.submit(killed)]
        pool.submit(finish, recipe, home / "whole").result()
        return {"home": home, "asked": both[0].result(), "killed": both[1].result()}


def test_ctrl_c_leaves_with_130_and_says_that_all_is_saved(stories):
    code, said = stories["asked"][0]
    assert code == 130
    assert said == f"limbeck: interrupted. {ENDED}\n"


def test_sigterm_leaves_with_143_and_says_that_all_is_saved(stories):
    code, said = stories["asked"][1]
    assert code == 143
    assert said == f"limbeck: terminated. {ENDED}\n"


def test_sigkill_does_kill(stories):
    assert [code for code, _ in stories["killed"]] == [-signal.SIGKILL] * 3


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_the_student_is_bit_identical_to_one_that_was_never_stopped(how, stories):
    whole, other = (load_file(stories["home"] / name / "student" / "model.safetensors") for name in ("whole", how))
    assert whole.keys() == other.keys()
    assert all(torch.equal(whole[name].view(torch.uint8), other[name].view(torch.uint8)) for name in whole)


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_the_records_are_those_of_a_run_that_was_never_stopped(how, stories):
    whole, other = (stories["home"] / name for name in ("whole", how))
    assert records(whole) == records(other)
    assert scores(whole) == scores(other)
    assert len(records(whole)) > 280


@pytest.mark.parametrize("how", ["whole", "asked", "killed"])
def test_the_folder_holds_what_is_promised_and_one_checkpoint_a_member(how, stories):
    home = stories["home"] / how
    names = {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "scores.json",
        "evidence.json",
        "checkpoints",
        "student",
    }
    names.add("report.html")
    assert {path.name for path in home.iterdir()} == names
    assert all(len(list(member.glob("step-*"))) == 1 for member in (home / "checkpoints").iterdir() if member.is_dir())


def test_a_checkpoint_that_was_half_written_is_deleted(tmp_path):
    for name in (".step-00000007.123", "step-00000005", "step-00000006"):
        (tmp_path / name).mkdir()
    checkpoint.prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
