"""A search over real networks: what it ends with, that it goes on, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
import signal
import sys
import time
from functools import partial
from itertools import islice

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.cli import main
from limbeck.compress import MergeUnits, Prune, replay
from limbeck.core.errors import CheckpointError, ConfigError, ModelError
from limbeck.data import Batches, Digits
from limbeck.evaluation.latency import Latency
from limbeck.export.integers import quantize
from limbeck.models import MLP
from limbeck.recipes import SQUEEZES, find_squeeze, show
from limbeck.recipes.base import read
from limbeck.recipes.squeeze import Squeeze, squeeze_recipe
from limbeck.report import render
from limbeck.search import Budget
from warm import Started

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


@pytest.fixture(scope="module")
def original(digits):
    torch.manual_seed(0)
    model = MLP(hidden=(64,)).build((1, 8, 8), 10)
    lb.distill(model, None, train=digits.train, val=digits.val, epochs=12, progress=False)
    return model.eval()


def conv():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pictures(digits):
    model = conv()
    lb.distill(model, None, train=digits.train, val=digits.val, epochs=4, progress=False)
    return model.eval()


def squeezed(model, digits, budget, **settings):
    settings = {"epochs": 1, "progress": False, **settings}
    return lb.squeeze(model, train=digits.train, val=digits.val, test=digits.test, budget=budget, **settings)


def test_what_is_scored_has_batch_statistics_of_its_own(pictures, digits):
    found = squeezed(pictures, digits, Budget(parameters=0.6, drop=0.9), ops=(Prune(ratio=0.5),), epochs=0)
    less = replay(pictures, found.plans)
    stale = lb.evaluate(less, digits.test)["accuracy"]
    batches = islice(Batches(digits.train, batch_size=128, shuffle=False).epoch(0), 4)
    fresh = lb.compress.reestimate(less, batches, forward=lambda model, batch: model(batch["x"]))
    own = lb.evaluate(fresh, digits.test)["accuracy"]
    assert own > stale + 0.05
    assert found.scores["model"]["accuracy"] == own
    assert torch.equal(found.model[1].running_mean, fresh[1].running_mean)


def test_a_budget_is_met_and_the_original_is_left_as_it_was(original, digits, tmp_path):
    before = copy.deepcopy(original.state_dict())
    found = squeezed(original, digits, Budget(parameters=0.6, drop=0.05), out=tmp_path / "out")
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert found.met
    assert not original.training
    small = sum(p.numel() for p in found.model.parameters())
    assert small <= 0.6 * sum(p.numel() for p in original.parameters())
    assert small == found.costs["model"]["parameters"]
    assert found.scores["model"]["accuracy"] >= 0.9
    assert found.scores["original"]["macro_f1"] == lb.evaluate(original, digits.test)["macro_f1"]
    assert found.scores["model"]["accuracy"] == lb.evaluate(found.model, digits.test)["accuracy"]
    saved = lb.load(tmp_path / "out" / "student", into=MLP(hidden=(64,)).build((1, 8, 8), 10))
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(saved.eval()(x), found.model.eval()(x))
    rebuilt = replay(original, found.plans)
    assert [p.shape for p in rebuilt.parameters()] == [p.shape for p in found.model.parameters()]
    assert (tmp_path / "out" / "report.html").exists()
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert [row["number"] for row in evidence["attempts"]] == list(range(len(found.attempts)))


def test_a_network_of_layers_is_cut_where_it_hurts_least(pictures, digits):
    heard = []
    found = squeezed(pictures, digits, Budget(macs=0.6, drop=0.05), say=heard.append)
    assert found.met, found.words
    assert len(heard) == len(found.attempts)
    widths = [layer.out_channels for layer in found.model if isinstance(layer, nn.Conv2d)]
    kept = [width / whole for width, whole in zip(widths, (12, 16, 16), strict=True)]
    assert len(set(kept)) > 1, "every layer lost the same share, whatever it hurts"


def test_units_are_looked_for_once_in_each_model_that_cuts_begin_with(pictures, digits, monkeypatch):
    from limbeck.core.proof import couple

    asked = []
    monkeypatch.setattr("limbeck.compress.units.couple", lambda model, *rest, **how: asked.append(model) or couple(
        model, *rest, **how))  # fmt: skip
    found = squeezed(pictures, digits, Budget(macs=0.6, drop=0.05))
    begun = {attempt["parent"] for attempt in found.attempts[1:]}
    assert len(asked) == len(begun) == 1


def test_calls_are_timed_on_so_many_threads_and_a_file_is_made_once(pictures, digits, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from limbeck import workshop

    threads, made = [], []

    def timed(models, **how):
        threads.append(how["threads"])
        size = {name: float(sum(p.numel() for p in model.parameters()) or model.bytes) for name, (model, _) in
                models.items()}  # fmt: skip
        return {name: Latency(p50=x, p10=x, p90=x, low=x, high=x, batch=1, threads=1, repeats=1) for name, x in
                size.items()}  # fmt: skip

    def kept(model, batches, path, **how):
        made.append(path.name)
        return quantize(model, batches, path, **how)

    monkeypatch.setattr(workshop, "compare_latency", timed)
    monkeypatch.setattr(workshop, "quantize", kept)
    budget, settings = Budget(latency=0.5, drop=0.9), {"ops": [Prune(ratio=0.3), "quantize"], "epochs": 0, "tries": 0}
    found = squeezed(pictures, digits, budget, **settings, latency_threads=3, out=tmp_path / "out")
    assert set(threads) == {3}
    assert any(word.startswith("A call of 1 sample on 3 threads takes ") for word in found.words)
    assert found.file is not None
    assert len(made) == len(set(made)) > 1
    assert found.evidence["calls"] == {"batch": 1, "threads": 3}
    with pytest.raises(CheckpointError, match=r"latency\.threads"):
        squeezed(pictures, digits, budget, **settings, latency_threads=2, out=tmp_path / "out")


def test_a_floor_that_cannot_be_met_gives_the_best_and_says_what_was_missed(original, digits):
    found = squeezed(original, digits, Budget(parameters=0.02, drop=0.001), tries=2)
    assert not found.met
    assert any(word.startswith("Missed: ") for word in found.words)
    assert found.attempts[0]["lever"] == "original"
    val = lb.evaluate(original, digits.val)["accuracy"]
    assert lb.evaluate(found.model, digits.val)["accuracy"] >= val - 0.001 - 1e-9


def test_it_is_said_when_the_original_has_nothing_wrong_on_what_attempts_are_scored_on(original, digits):
    known = digits.val.subset((predicted(original, digits.val) == digits.val.labels).nonzero().view(-1))
    assert 0 < len(known) < len(digits.val)
    settings = {"budget": Budget(parameters=0.6, drop=0.05), "ops": [MergeUnits(ratio=0.5)], "epochs": 0}
    told = {}
    for name, val in (("known", known), ("all", digits.val)):
        found = lb.squeeze(original, train=digits.train, val=val, test=digits.test, progress=False, **settings)
        told[name] = [word for word in found.words if "every validation sample" in word]
    assert len(told["known"]) == 1
    assert "trained on them" in told["known"][0]
    assert told["all"] == []


def predicted(model, source):
    return model(source.fetch(torch.arange(len(source)))["x"]).argmax(-1)


def test_units_are_merged_and_a_share_that_hurts_is_taken_back(original, digits):
    found = squeezed(original, digits, Budget(parameters=0.3, drop=0.0), ops=[MergeUnits(ratio=0.9)], tries=3, epochs=0)
    strengths = [attempt["strength"] for attempt in found.attempts[1:]]
    assert strengths[:2] == [0.9, 0.45]
    assert all(not attempt["repaired"] for attempt in found.attempts)


def test_eight_bits_come_last_and_the_result_is_a_file(pictures, digits, tmp_path):
    pytest.importorskip("onnxruntime")
    found = squeezed(pictures, digits, Budget(bytes=0.6, drop=0.05), ops=["prune", "quantize"], out=tmp_path / "out")
    assert found.met, found.words
    assert found.file is not None
    assert found.file.path == tmp_path / "out" / "student" / "model.int8.onnx"
    assert found.costs["model"]["bytes"] == found.file.bytes
    assert found.scores["model"]["accuracy"] == lb.evaluate(found.file, digits.test)["accuracy"]


def test_pruning_in_rounds_trains_in_between(original, digits):
    found = squeezed(original, digits, Budget(parameters=0.6, drop=0.05), ops=[Prune(ratio=0.5, rounds=2)])
    repaired = [attempt for attempt in found.attempts if attempt["repaired"]]
    assert repaired
    assert len(found.plans) in (1, 2)


STOPPED = """
import sys, torch, limbeck as lb
from pathlib import Path
from limbeck.data import Batches, Digits
from limbeck.evaluation.latency import Latency
from limbeck.export.integers import quantize
from limbeck.models import MLP
from safetensors.torch import load_model
d = Digits().load()
model = MLP(hidden=(64,)).build((1, 8, 8), 10)
load_model(model, sys.argv[1])
done = lb.squeeze(model, train=d.train, val=d.val, test=d.test, budget=lb.Budget(parameters=0.3, drop=0.02), epochs=3,
                  tries=3, out=sys.argv[2], progress=False, checkpoint_seconds=0.0, say=lambda s: print(s, flush=True))
"""


@pytest.mark.parametrize(
    ("number", "places"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGKILL, 6, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 3, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_end(original, tmp_path, number, places):
    from safetensors.torch import save_model

    save_model(original, str(tmp_path / "model.safetensors"))
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    start = partial(Started, tmp_path / "model.safetensors", script=script)
    lines = finished(start(tmp_path / "whole"))
    assert len(lines) > 2
    for place in [1 + (len(lines) - 1) * i // places for i in range(places)]:
        out = tmp_path / f"cut-{place}"
        child = start(out)
        ended, end = False, time.monotonic() + 120
        while child.said("out").count("\n") < place:
            assert not ended, child.said("err")
            assert time.monotonic() < end
            ended = child.poll() is not None
            time.sleep(0.001)
        time.sleep(0.02 * place)
        child.send_signal(number)
        child.communicate(60)
        assert finished(start(out)) == lines
        for name in ("scores.json", "evidence.json"):
            assert said(out / name) == said(tmp_path / "whole" / name), name
        same = [home / "student" / "model.safetensors" for home in (out, tmp_path / "whole")]
        assert same[0].read_bytes() == same[1].read_bytes()


def finished(process):
    """The lines it wrote."""
    out, err = process.communicate(300)
    assert process.wait(1) == 0, err
    return out.splitlines()


def said(path):
    """What a file says but times, and the folder's own name."""
    plain = json.loads(path.read_text())
    plain.pop("title", None)
    for arm in plain.get("arms", {}).values():
        arm.pop("footprint", None)
    return plain


class Odd(nn.Module):
    def forward(self, x):
        raise ValueError("no")


@pytest.mark.parametrize(
    ("settings", "error", "names"),
    [
        ({"ops": ["prun"]}, ConfigError, "did you mean"),
        ({"tries": -1}, ConfigError, "tries"),
        ({"latency_threads": 0}, ConfigError, "latency_threads"),
        ({"learning_rate": 1}, ConfigError, "learning_rate"),
        ({"budget": Budget(macs=0.5, drops={"acuracy": 0.1})}, ConfigError, "did you mean 'accuracy'"),
        ({"budget": Budget(parameters=10**9, drop=0.1)}, ConfigError, "more than the original"),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(original, digits, settings, error, names, monkeypatch):
    def never(*_, **__):
        raise AssertionError("something was trained")

    monkeypatch.setattr("limbeck.workshop.train_member", never)
    with pytest.raises(error, match=names):
        squeezed(original, digits, **{"budget": Budget(macs=0.5, drop=0.01), **settings})


def test_a_model_that_cannot_be_called_is_told_before_anything_is_written(digits, tmp_path):
    with pytest.raises(ModelError, match="cannot be called"):
        squeezed(Odd(), digits, Budget(macs=0.5), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match=r"no torch\.nn\.Module"):
        squeezed(3, digits, Budget(macs=0.5))


@pytest.mark.parametrize("name", SQUEEZES)
def test_searches_that_come_along_are_read_as_they_are_shown(name):
    recipe = find_squeeze(name)
    assert read(show(recipe), name, Squeeze) == recipe
    changed = find_squeeze(name, ["budget.drop=0.02", "tries=1"])
    assert (changed.budget.drop, changed.tries) == (0.02, 1)


def test_several_chains_end_with_one_page_that_is_rebuilt_from_records(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = ["limbeck", "squeeze", "digits-squeeze", "--set", "training.epochs=1", "--set", "tries=0"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    pages = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Page: ")]
    assert pages == [f"Page: {out / 'report.html'}"]
    page = (out / "report.html").read_text()
    assert page.count("<h3>Removed</h3>") == page.count("<h3>Merged</h3>") == 1
    assert "digits-squeeze" in page
    (out / "report.html").unlink()
    render(out)
    assert (out / "report.html").read_text() == page
    monkeypatch.setattr(sys, "argv", [*command, "--set", "budget.drop=0.5", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "budget.drop" in capsys.readouterr().err


def test_the_page_of_an_only_chain_has_the_name_of_its_recipe(tmp_path):
    recipe = find_squeeze("digits-squeeze", ["tries=0", "training.epochs=1", "model.training.epochs=1"])
    alone = dataclasses.replace(recipe, chains={"removed": recipe.chains["removed"]})
    done = squeeze_recipe(alone, tmp_path / "out", bars=False)
    assert done.document["title"] == recipe.title
    assert f"<title>{recipe.title}" in done.page.read_text()
