"""`limbeck remember`, killed at any moment, goes on: complete, nothing doubled, byte-identical to one that was not."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file

from limbeck.models import Conv
from warm import Started, limbeck

VIEWS = 40


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A recipe on small images with a teacher that is loaded, and targets that nobody disturbed."""
    home = tmp_path_factory.mktemp("remember")
    draw = np.random.default_rng(0)
    held = {}
    for part, rows in (("train", 60), ("test", 12)):
        held[f"{part}_images"] = draw.integers(0, 256, (rows, 8, 8, 3)).astype(np.uint8)
        held[f"{part}_labels"] = np.arange(rows) % 3
    np.savez(home / "images.npz", **held)
    torch.manual_seed(0)
    save_file(Conv(channels=(4, 4)).build((3, 8, 8), 3).state_dict(), home / "teacher.safetensors")
    recipe = tiny.plain({"kind": "npz", "path": str(home / "images.npz"), "val": 10})
    recipe["teacher"] = {
        "model": {"kind": "conv", "channels": [4, 4]}, "weights": str(home / "teacher.safetensors"),
    }  # fmt: skip
    recipe["student"] = {"kind": "conv", "channels": [2, 2]}
    recipe["augment"] = {"crop": 1, "flip": True}
    recipe["targets"] = {"views": VIEWS, "batch_size": 8}
    tiny.written(home, recipe)
    finish(home, home / "undisturbed")
    return home


def start(home: Path, out: Path, *more: str) -> Started:
    return Started("remember", home / "tiny.yaml", "--out", out, *more)


def finish(home: Path, out: Path, *more: str) -> str:
    process = start(home, out, *more)
    told, said = process.communicate(timeout=60)
    assert process.wait(60) == 0, said
    return told


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def files(folder: Path) -> int:
    return sum(1 for _ in folder.glob("logits/*.safetensors"))


def kill(home: Path, out: Path, after: int, number: signal.Signals) -> tuple[int, str]:
    """Start it, and send the signal within a few milliseconds of its `after`-th new file."""
    before = files(out)
    process = start(home, out)
    end = time.monotonic() + 60
    while files(out) < before + after and process.poll() is None:
        assert time.monotonic() < end
    time.sleep(random.Random(before).uniform(0, 0.004))
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.wait(60), said


def killed_often(home: Path, out: Path, times: int) -> int:
    """How many of the kills came before the end."""
    moments = random.Random(times)
    codes = [kill(home, out, moments.choice((0, 1, 1, 2)), signal.SIGKILL)[0] for _ in range(times)]
    finish(home, out)
    assert content(out) == content(home / "undisturbed")
    return codes.count(-signal.SIGKILL)


def test_killed_three_times_it_ends_byte_identical(home):
    assert killed_often(home, home / "thrice", 3) == 3
    assert files(home / "thrice") == VIEWS


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_byte_identical(home):
    assert killed_often(home, home / "often", 20) == 20


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_asked_to_end_it_says_that_it_goes_on(home, number, code):
    out = home / f"asked{code}"
    ended, said = kill(home, out, 2, number)
    assert ended == code
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    told = finish(home, out)
    assert content(out) == content(home / "undisturbed")
    assert f"{VIEWS} views" in told


def test_parts_fill_one_folder_in_any_order(home):
    out = home / "parts"
    assert "not sealed" in finish(home, out, "--shard", "3/3")
    both = [start(home, out, "--shard", part) for part in ("1/3", "2/3")]
    assert [process.wait(60) for process in both] == [0, 0]
    assert content(out) == content(home / "undisturbed")
    for process in both:
        process.communicate()


BAD = {
    "a part that is none": (("--shard", "4/3"), "count from 1/n to n/n"),
    "no part": (("--shard", "some"), "write I/N"),
    "another seed": (("--set", "seed=7"), "`seed`"),
    "another crop": (("--set", "augment.crop=2"), "augmentation.crop"),
    "another codec": (("--set", "targets.codec.dtype=float32"), "codec.dtype"),
    "other weights": (("--set", "teacher.weights=gone.pth"), "there is no file"),
    "a teacher to be trained": (("--set", "teacher.weights=null"), "teacher.weights"),
    "no views": (("--views", "0"), "targets.views"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_in_words_and_nothing_is_touched(home, case):
    more, says = BAD[case]
    before = content(home / "undisturbed")
    process = start(home, home / "undisturbed", *more)
    _, said = process.communicate(timeout=60)
    assert process.wait(60) == 2
    assert says in said
    assert "Traceback" not in said
    assert content(home / "undisturbed") == before


def test_a_run_reads_them_and_the_page_says_so(home):
    out = home / "run"
    line = ["run", home / "tiny.yaml", "--set", f"targets.path={home / 'undisturbed'}", "--out", out]
    ended = limbeck(*line)
    assert ended.returncode == 0, ended.stderr
    assert f"{VIEWS} views of 50 samples" in ended.stdout
    assert "remembered" in (out / "scores.json").read_text()
    shown = limbeck("show", home / "undisturbed").stdout
    assert "sealed" in shown
    assert "50 samples" in shown
