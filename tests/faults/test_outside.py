"""What happens to a run from outside ends in one readable message, and the run goes on from where it was."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from safetensors.torch import load_file

from limbeck.core.folder import RunFolder
from limbeck.core.lock import Lock
from limbeck.train import checkpoint
from warm import Started

SCRIPT = Path(small.__file__)


def start(out: Path, **settings: Any) -> Started:
    return Started(out, *(f"{key}={json.dumps(value)}" for key, value in settings.items()), script=SCRIPT)


def finish(process: Started) -> tuple[int, str]:
    _, said = process.communicate(timeout=120)
    return process.wait(120), said


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


def records(out: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read]


def same(out: Path, whole: Path) -> None:
    mine, theirs = weights(out), weights(whole)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert records(out) == records(whole)
    scores = [json.loads((each / "scores.json").read_text())["arms"] for each in (out, whole)]
    runs = [{name: arm["runs"][0]["scores"] for name, arm in each.items()} for each in scores]
    assert runs[0] == runs[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert finish(start(out)) == (0, "")
    return out


# A disk that is full --------------------------------------------------------------------------------------------------


def test_a_file_size_limit_ends_the_run_with_one_message_and_the_checkpoint_before_it_still_loads(tmp_path, whole):
    """The first checkpoint fits into the limit; those with the optimizer's numbers, twice as large, do not."""
    out = tmp_path / "run"
    process = start(out)
    end = time.monotonic() + 60
    while len(list(out.glob("checkpoints/step-*"))) < 2:
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    finish(process)
    before = checkpoint.latest(out / "checkpoints")
    assert before is not None
    size = (before / "tensors.safetensors").stat().st_size
    left = set(out.glob("checkpoints/.step-*"))  # by the one that was killed, if it was saving
    code, said = finish(start(out, file_bytes=size // 2))
    assert code == 2
    assert said.startswith(f"refused: {out / 'checkpoints'}: a checkpoint of ")
    assert " MB cannot be written (File too large)" in said or "cannot be written" in said
    assert "To mend: free space there" in said
    assert "Traceback" not in said
    assert checkpoint.latest(out / "checkpoints") == before
    assert set(out.glob("checkpoints/.step-*")) == left
    assert finish(start(out)) == (0, "")
    same(out, whole)


def test_best_weights_that_do_not_fit_are_one_message_too(tmp_path):
    """Larger than the limit from the first epoch on, which ends before any checkpoint is due."""
    settings = {"keep": "best", "checkpoint_seconds": 1000, "log_steps": 1000, "width": 512}
    code, said = finish(start(tmp_path / "run", file_bytes=8192, **settings))
    assert code == 2, said
    assert said.startswith(f"refused: {tmp_path / 'run' / 'checkpoints'}: the best weights of 0.1 MB cannot be written")
    assert "Traceback" not in said


def test_a_folder_that_cannot_be_written_is_refused_before_any_step():
    for out in (Path("/proc/limbeck"), Path("/dev/null/run")):
        code, said = finish(start(out))
        assert code == 2, said
        assert said.startswith(f"refused: {out}: ")
        assert "To mend: choose a folder that can be written" in said


# Two runs in one folder -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_while_the_first_lives_and_not_after_it_was_killed(tmp_path, whole):
    out = tmp_path / "run"
    first = start(out, epochs=400)
    end = time.monotonic() + 60
    while not list(out.glob("checkpoints/step-*")):
        assert time.monotonic() < end
    code, said = finish(start(out, epochs=400))
    assert code == 2
    assert said.startswith(f"refused: {out}: another run is writing here")
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    finish(first)
    code, said = finish(start(out))  # not the folder's run any more, but nobody holds it
    assert "another run is writing here" not in said
    assert "`training.epochs` is not the same" in said


def test_a_lock_is_gone_with_its_folder_object_and_in_children(tmp_path):
    with RunFolder(tmp_path / "run", {"a": 1}):
        with pytest.raises(BlockingIOError):
            Lock(tmp_path / "run")
        child = os.fork()
        if not child:  # a data worker, which outlives its parent for some seconds
            time.sleep(20)
            os._exit(0)
    try:
        Lock(tmp_path / "run").release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with RunFolder(tmp_path / "run", {"a": 1}):
        pass


# Data workers, clocks -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_data_worker_that_dies_ends_the_run_with_one_message_and_it_goes_on(tmp_path):
    out = tmp_path / "run"
    code, said = finish(start(out, workers=1, dies=True))
    assert code == 2, said
    assert said.startswith("refused: workers: a process that reads data is gone (DataLoader worker (pid")
    assert "the same command goes on from the last checkpoint" in said
    assert "Traceback" not in said
    assert finish(start(out, workers=1)) == (0, "")


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch, whole):
    jump = iter([3e9, 1.0, 2e9, 5.0] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(jump))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small.run(tmp_path / "run")
    torch.set_num_threads(threads)
    same(tmp_path / "run", whole)


# Killed ---------------------------------------------------------------------------------------------------------------


def killed(out: Path, times: int, **settings: Any) -> list[bool]:
    """Kill a run at so many random moments; for each, whether a checkpoint was being written then."""
    draw, saving = random.Random(times), []
    for _ in range(times):
        process, before, end = start(out, **settings), count(out), time.monotonic() + 60
        while count(out) in (before, 0) and process.poll() is None:  # a resumed run first takes lines back
            assert time.monotonic() < end
        time.sleep(draw.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        code, said = finish(process)
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
        saving.append(bool(list(out.glob("checkpoints/.step-*"))))
    return saving


def count(out: Path) -> int:
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def test_killed_at_three_moments_and_resumed_it_ends_bit_for_bit_as_undisturbed(tmp_path, whole):
    assert len(killed(tmp_path / "run", 3)) == 3
    assert finish(start(tmp_path / "run")) == (0, "")
    same(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_at_20_random_moments_of_two_epochs_while_saving_too_it_ends_bit_for_bit_as_undisturbed(tmp_path):
    """Thirty-two steps an epoch, each saved."""
    long = {"batch_size": 2, "ema": 0.9, "keep": "best", "checkpoints": 3}
    assert finish(start(tmp_path / "whole", **long)) == (0, "")
    saving = killed(tmp_path / "run", 20, **long)
    assert len(saving) == 20
    assert any(saving)
    assert finish(start(tmp_path / "run", **long)) == (0, "")
    same(tmp_path / "run", tmp_path / "whole")


# Nothing grows --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_files_and_threads_are_level_from_step_300_to_step_3000(tmp_path, monkeypatch):
    seen: dict[int, tuple[float, int, int]] = {}
    real = RunFolder.log

    def log(self: RunFolder, **line: Any) -> None:
        real(self, **line)
        if line["kind"] == "step" and line["step"] in (300, 3000):
            status = dict(
                word.split(":\t") for word in Path("/proc/self/status").read_text().splitlines() if ":\t" in word
            )
            files = len(list(Path("/proc/self/fd").iterdir()))
            seen[line["step"]] = (float(status["VmRSS"].split()[0]), files, int(status["Threads"]))

    monkeypatch.setattr(RunFolder, "log", log)
    small.run(tmp_path / "run", epochs=750, log_steps=20, checkpoint_seconds=0.2, width=64)
    (early, *counts), (late, *later) = seen[300], seen[3000]
    assert late <= early * 1.02
    assert counts == later
