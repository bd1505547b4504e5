"""A run goes on in any number of processes: from two to one and back, after SIGTERM, after one is killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import job
import pytest
import torch
from launching import THREADS, ended, launch, pair
from safetensors.torch import load_file

SCRIPT = Path(job.__file__)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, job.EPOCHS * 4 + 1))
    return [line["loss"] for line in steps]


def same(out: Path, whole: Path) -> None:
    torch.testing.assert_close(losses(out), losses(whole), rtol=1e-5, atol=1e-6)
    mine, theirs = weights(out), weights(whole)
    assert mine.keys() == theirs.keys()
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-6


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """One process that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    job.run(out)
    return out


@pytest.mark.slow
def test_from_two_processes_to_one_and_back_the_loss_goes_on_without_a_jump(tmp_path, whole):
    out = tmp_path / "run"
    both = ended(pair(out, "--stop", "2", script=SCRIPT))  # one is asked to end, and both do, after the same step
    assert [code for code, _ in both] == [143, 143], both
    line = [sys.executable, str(SCRIPT), str(out), "--stop", "4"]
    alone = subprocess.run(line, capture_output=True, text=True, env={**THREADS}, check=False, timeout=120)
    assert alone.returncode == 143, alone.stderr
    done = launch("torchrun", SCRIPT, out, "--shard")
    assert done.returncode == 0, done.stderr
    same(out, whole)


def test_when_one_is_killed_the_other_says_so_and_the_run_goes_on(tmp_path, whole):
    out = tmp_path / "run"
    (first, said), (second, _) = ended(pair(out, "--die", "10", script=SCRIPT))
    assert second == -signal.SIGKILL
    assert first == 1
    assert "another process of the run is gone (this is process 1 of 2; " in said
    assert "the same command goes on from the last checkpoint" in said
    assert "Traceback" not in said
    assert [code for code, _ in ended(pair(out, script=SCRIPT))] == [0, 0]
    same(out, whole)


def test_a_folder_that_the_first_may_not_have_ends_both_with_its_message(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("mine")
    (first, said), (second, also) = ended(pair(tmp_path / "run", script=SCRIPT))
    assert (first, second) == (1, 1)
    assert (said + also).count("refused: ") == 1
    assert "the folder holds other files and no run" in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["letter.txt"]


@pytest.mark.slow
def test_two_processes_killed_at_20_random_moments_end_as_if_nothing_had_been(tmp_path, whole):
    out, draw = tmp_path / "run", random.Random(5)
    kills = 0
    while kills < 20:
        both = pair(out, *(["--shard"] if kills % 2 else []), script=SCRIPT)
        before, end = count(out), time.monotonic() + 60
        wanted = before + draw.randint(0, 1)
        while count(out) < wanted and both[0].poll() is None:
            assert time.monotonic() < end
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03 if wanted > before else 0.5))  # in a step, or while it starts
        if both[0].poll() is not None:
            ended(both)
            break
        for process in both if kills % 3 else both[:1]:
            process.send_signal(signal.SIGKILL)
        time.sleep(draw.uniform(0, 2) if kills % 3 == 0 else 0)  # the other notices, or a launcher ends it
        both[1].send_signal(signal.SIGKILL)
        ended(both)
        kills += 1
    assert kills >= 15
    assert [code for code, _ in ended(pair(out, script=SCRIPT))] == [0, 0]
    same(out, whole)


def count(out: Path) -> int:
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
