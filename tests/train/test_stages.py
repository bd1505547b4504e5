"""A training in stages is as if it were one: laws, records, and a kill in any stage."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core.errors import ConfigError, LimbeckError, ModelError
from limbeck.core.setting import as_plain, build
from limbeck.train import Optimizer, Stage, Tuning, checkpoint

G = torch.Generator().manual_seed(0)
X = torch.randn(120, 6, generator=G)
Y = X[:, :3].argmax(1)
PLAIN = Optimizer(rate=0.1, options={"momentum": 0.0})


def net(width: int = 8, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def run(model, teacher=None, **settings):
    given = {"epochs": 3, "batch_size": 50, "schedule": lb.schedules.Constant(), "optimizer": PLAIN, "seed": 3}
    return lb.distill(model, teacher, train=(X, Y), val=(X, Y), progress=False, **{**given, **settings})


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_stages_that_change_nothing_are_one_training_bit_for_bit():
    whole, parts = net(), net()
    once = run(whole, epochs=5)
    twice = run(parts, stages=(Stage(name="a", epochs=2), Stage(name="b", epochs=3)))
    assert same(whole, parts)
    assert (once.state.step, once.state.epoch) == (twice.state.step, twice.state.epoch)
    steps = [[(x["step"], x["epoch"], x["loss"]) for x in r.folder.lines if x["kind"] == "step"] for r in (once, twice)]
    assert steps[0] == steps[1]


def test_one_stage_frozen_and_one_free_is_a_part_that_is_thawed():
    thawed, parts = net(), net()
    run(thawed, tuning=Tuning(thaw={"0": 2, "1": 2}))
    run(parts, stages=(Stage(name="head", epochs=2, tuning=Tuning(freeze=("0", "1"))), Stage(name="all", epochs=1)))
    assert same(thawed, parts)


def test_a_stage_has_its_own_terms_parts_and_rate():
    teacher, student = net(16, seed=1), net()
    start = copy.deepcopy(student.state_dict())
    hints = Stage(name="hints", epochs=2, objective=(lb.Hint(student="1", teacher="1"),))
    first = run(copy.deepcopy(student), teacher, stages=(hints,))
    assert torch.equal(first.student.state_dict()["3.weight"], start["3.weight"])  # no term reached it
    assert not torch.equal(first.student.state_dict()["0.weight"], start["0.weight"])
    head = Stage(name="outputs", epochs=1, objective=(lb.KL(),), tuning=Tuning(learn=("3",)), rate=0.01)
    both = run(student, teacher, stages=(hints, head))
    assert torch.equal(both.student.state_dict()["0.weight"], first.student.state_dict()["0.weight"])
    lines = [line for line in both.folder.lines if line["kind"] == "step"]
    assert [line["step"] for line in lines] == list(range(3, 10, 3))
    assert [(line["stage"], line["rate"], list(line["terms"])) for line in lines] == [
        ("hints", 0.1, ["hint"]), ("hints", 0.1, ["hint"]), ("outputs", 0.01, ["kl"]),
    ]  # fmt: skip
    assert [line["epoch"] for line in both.folder.lines if line["kind"] == "epoch"] == [1, 2, 3]
    assert len(both.document["arms"]["student"]["objective"]) == 2


def test_a_stage_ends_early_and_the_next_goes_on():
    early = Stage(name="a", epochs=9, monitor="nll", target=1e9)
    done = run(net(), stages=(early, Stage(name="b", epochs=2)))
    assert (done.state.epoch, done.state.stopped_by) == (3, "epochs")


STAGES = (
    Stage(name="hints", epochs=2, objective=(lb.Hint(student="1", teacher="1"),), rate=0.05),
    Stage(name="outputs", epochs=2, objective=(lb.KL(), lb.Label()), tuning=Tuning(anchor=0.1)),
    Stage(name="end", epochs=1, tuning=Tuning(learn=("3",))),
)


def staged(out):
    torch.manual_seed(9)
    settings = {"optimizer": Optimizer(name="AdamW", rate=0.01), "schedule": lb.schedules.OneCycle(), "ema": 0.9}
    return run(net(), net(16, seed=1), stages=STAGES, out=out, checkpoint_seconds=0, log_steps=1, **settings)


def told(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("stages") / "run"
    return staged(out).student, told(out)


@pytest.mark.parametrize("at", [1, 6, 7, 10, 16, 17])
def test_a_run_killed_in_any_stage_resumes_there(at, undisturbed, tmp_path, monkeypatch):
    whole, records = undisturbed
    real, calls = checkpoint.save, iter(range(1, 100))

    def cut(*args, **kwargs):
        number = next(calls)
        if number < at:
            return real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        staged(tmp_path / "run")
    monkeypatch.setattr(checkpoint, "save", real)
    finished = sorted((tmp_path / "run").glob("checkpoints/*/done.json"))
    before = [file.stat().st_mtime_ns for file in finished]
    again = staged(tmp_path / "run")
    assert same(again.student, whole)
    assert told(tmp_path / "run") == records
    assert [file.stat().st_mtime_ns for file in finished] == before  # what was done is not done again
    assert len(list((tmp_path / "run").glob("checkpoints/stage-*/done.json"))) == 3
    assert same(staged(tmp_path / "run").student, whole)


def test_the_page_of_a_staged_run_reads(tmp_path):
    staged(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "hint" in page
    assert "Validation accuracy by step" in page


REFUSED = {
    "two of a name": ((Stage(name="a", epochs=1), Stage(name="a", epochs=1)), ConfigError, "two are called 'a'"),
    "no stage": (("hints",), ConfigError, "is no stage"),
    "a later one needs a teacher": (
        (Stage(name="a", epochs=1), Stage(name="b", epochs=1, objective=(lb.KL(),))),
        ConfigError,
        "needs a teacher",
    ),
    "a later one names a layer that is not there": (
        (Stage(name="a", epochs=1), Stage(name="b", epochs=1, tuning=Tuning(freeze=("fc",)))),
        ConfigError,
        "matches no part",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_the_first_stage(case, tmp_path):
    stages, kind, said = REFUSED[case]
    with pytest.raises(kind, match=said):
        run(net(), stages=stages, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["", "a/b", ".."])
def test_a_stage_has_a_name_that_can_be_a_folder(name):
    with pytest.raises(ConfigError, match="names no stage"):
        Stage(name=name, epochs=1)


def test_a_folder_refuses_other_stages(tmp_path):
    run(net(), stages=(Stage(name="a", epochs=1),), out=tmp_path / "run")
    with pytest.raises(LimbeckError, match="holds another run"):
        run(net(), stages=(Stage(name="a", epochs=1), Stage(name="b", epochs=1)), out=tmp_path / "run")


def test_a_stage_is_its_plain_data():
    for stage in STAGES:
        assert build(Stage, as_plain(stage), "x") == stage


def test_hints_for_a_layer_that_the_student_has_not_are_refused():
    hints = Stage(name="a", epochs=1, objective=(lb.Hint(student="nowhere", teacher="1"),))
    with pytest.raises(ModelError, match="nowhere"):
        run(net(), net(16), stages=(hints,))
