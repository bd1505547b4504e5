"""`objective="auto"`: what it spends, what it returns when nothing beats plain, and that a killed one goes on."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.choosing import Score, ahead, shortened, steps_of
from limbeck.core.errors import ConfigError, DataError, LimbeckError
from limbeck.core.folder import RunFolder
from limbeck.core.records import read_object
from limbeck.data import as_source
from limbeck.job import Job
from limbeck.objectives import Label
from limbeck.teachers import as_teacher

G = torch.Generator().manual_seed(0)
X = torch.randn(400, 6, generator=G)
Y = X[:, :3].argmax(1)
TRAIN, VAL, TEST = (X[:200], Y[:200]), (X[200:300], Y[200:300]), (X[300:], Y[300:])
HOW = {"val": VAL, "test": TEST, "epochs": 16, "batch_size": 20, "progress": False}
TWO = lb.Auto(candidates={"soft": (lb.KL(temperature=2.0), lb.Label()), "hard": (lb.KL(temperature=1.0, weight=0.5),)})


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    """Latencies, which every run measures for a second, are not what is asked here."""
    monkeypatch.setattr("limbeck.evidence._SECONDS", 0.01)


def net(width=8, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


class Right(nn.Module):
    """A teacher that is right and says how near the others are."""

    def forward(self, x):
        return 4 * x[:, :3]


class Wrong(nn.Module):
    """A teacher that is sure of the wrong class."""

    def forward(self, x):
        return -20 * x[:, :3]


def weights(run):
    return torch.cat([value.flatten() for value in run.student.state_dict().values()])


def job(train=TRAIN, **training):
    settings = lb.Training(**{"epochs": 16, "batch_size": 20, **training})
    sides = [as_source(side, where="x") for side in (train, VAL, TEST)]
    return Job(net(), as_teacher(Right()), *sides, (Label(),), settings)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_trials_and_training_cost_what_is_stated(share, tmp_path):
    auto = lb.Auto(candidates=TWO.candidates, share=share)
    lb.distill(net(), Right(), train=TRAIN, objective=auto, out=tmp_path, **HOW)
    taken = {file.parent.name: read_object(file)["state"]["step"] for file in tmp_path.glob("checkpoints/**/done.json")}
    trials = {name: steps for name, steps in taken.items() if "@" in name}
    assert len(trials) == 3  # two candidates and plain
    assert sum(trials.values()) <= share * 160
    assert sum(taken.values()) - sum(trials.values()) <= 160


def test_a_wrong_teacher_leaves_the_plain_student_as_it_would_be_without_one(tmp_path):
    run = lb.distill(net(), Wrong(), train=TRAIN, objective="auto", out=tmp_path / "auto", **HOW)
    plain = lb.distill(net(), None, train=TRAIN, **HOW)
    assert torch.equal(weights(run), weights(plain))
    assert run.document["notes"][0].startswith("The plain student was kept: nothing beat it.")
    assert run.document["arms"]["student"]["role"] == "plain"
    assert "The plain student was kept" in (tmp_path / "auto" / "report.html").read_text()


def test_a_right_teacher_of_few_labels_is_learned_from_and_the_student_is_that_of_its_objective():
    y = torch.where(torch.arange(200) < 8, Y[:200], -1)
    run = lb.distill(net(), Right(), train=(X[:200], y), objective=TWO, **HOW)
    chosen = run.document["notes"][0].split(": ")[1].split(";")[0]
    direct = lb.distill(net(), Right(), train=(X[:200], y), objective=TWO.candidates[chosen], **HOW)
    assert run.scores["student"]["accuracy"] > lb.distill(net(), None, train=(X[:8], Y[:8]), **HOW | {
        "epochs": 160, "batch_size": 8}).scores["student"]["accuracy"]  # fmt: skip
    assert torch.allclose(weights(run), weights(direct), atol=2e-2)  # the stored answers are float16


def test_the_choice_never_sees_the_test_samples():
    def chosen(test):
        run = lb.distill(net(), Right(), train=TRAIN, objective="auto", **HOW | {"test": test})
        return run.evidence["trials"], weights(run)

    one, other = chosen(TEST), chosen((X[300:], 2 - Y[300:]))
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    how = {**HOW, "log_steps": 4, "checkpoint_seconds": 0.0}
    return lb.distill(net(), Right(), train=TRAIN, objective="auto", out=tmp_path_factory.mktemp("whole"), **how), how


@pytest.mark.parametrize("share", [0.15, 0.4, 0.8])
def test_killed_in_any_training_and_called_again_it_ends_as_if_nothing_had_been(
    share, whole_run, tmp_path, monkeypatch
):
    whole, how = whole_run
    true, written = RunFolder.log, []

    def log(folder, **line):
        true(folder, **line)
        written.append((line["arm"], line["step"]))
        if len(written) == round(share * len(whole.folder.lines)):
            raise SystemExit(137)

    def run():
        return lb.distill(net(), Right(), train=TRAIN, objective="auto", out=tmp_path, **how)

    monkeypatch.setattr(RunFolder, "log", log)
    with pytest.raises(SystemExit):
        run()
    monkeypatch.undo()
    again = run()
    assert torch.equal(weights(whole), weights(again))
    assert whole.evidence["trials"] == again.evidence["trials"]
    assert whole.scores == again.scores
    told = [{k: v for k, v in line.items() if k != "seconds"} for line in again.folder.lines if line["kind"] == "epoch"]
    assert told == [
        {k: v for k, v in line.items() if k != "seconds"} for line in whole.folder.lines if line["kind"] == "epoch"
    ]
    assert ("@" in written[-1][0]) == (share < 0.5)  # in a trial of either round, and in the training


def test_what_was_tried_is_on_record(tmp_path):
    run = lb.distill(net(), Right(), train=TRAIN, objective=TWO, out=tmp_path, **HOW)
    trials = json.loads((tmp_path / "evidence.json").read_text())["trials"]
    assert trials == run.evidence["trials"]
    assert {trial["candidate"] for trial in trials} == {"plain", "soft", "hard"}
    plain = next(trial for trial in trials if trial["candidate"] == "plain")
    assert plain["kept"]
    assert plain["objective"] == ["label weight 1.0"]
    assert 0 < plain["accuracy"] <= 1
    assert plain["samples"] == 100
    assert plain["share"] == pytest.approx(plain["steps"] / 160, abs=1e-4)


def test_without_labels_it_says_that_there_is_no_plain_student():
    run = lb.distill(net(), Right(), train=X[:200], objective="auto", **HOW | {"val": X[200:300], "test": TEST})
    assert "there is no plain student" in run.document["notes"][0]
    assert "plain" not in {trial["candidate"] for trial in run.evidence["trials"]}
    assert not any("label" in phrase for trial in run.evidence["trials"] for phrase in trial["objective"])


def test_the_plain_student_of_a_trial_sees_labelled_samples_alone_for_as_many_steps():
    y = torch.where(torch.arange(200) < 30, Y[:200], -1)
    sparse = job((X[:200], y))
    for steps in (160, 47, 7):
        plain, taught = (shortened(sparse, terms, steps) for terms in ((Label(),), (lb.KL(),)))
        assert len(plain.train) <= 30
        assert bool((plain.train.labels >= 0).all())
        assert steps_of(plain) <= steps_of(taught) <= steps
        assert steps_of(plain) >= steps_of(taught) - 1
        assert plain.teacher is None


def test_trials_of_one_length_share_the_start_the_seed_and_the_samples():
    whole_job = job()
    few = [shortened(whole_job, terms, 7) for terms in ((Label(),), (lb.KL(),))]
    assert torch.equal(few[0].train.ids, few[1].train.ids)
    assert len(few[0].train) == 140
    assert few[0].seed == few[1].seed
    assert shortened(whole_job, (Label(),), 160).train is whole_job.train


def test_a_moving_average_is_that_of_the_whole_training_to_scale():
    half = shortened(job(ema=0.99, max_seconds=60.0), (Label(),), 80).training
    assert half.ema == pytest.approx(0.99**2)
    assert half.max_seconds == pytest.approx(30)


def scores(right, nll):
    return Score(torch.tensor(right, dtype=torch.float64), torch.tensor(nll, dtype=torch.float64))


def test_ahead_is_beyond_the_noise_of_paired_samples():
    n = 100
    plain = scores([1.0] * 50 + [0.0] * 50, [0.5] * n)
    # 9 gained, 4 lost: 5 points; the paired error is sqrt(0.13 - 0.05^2) / 10, or 3.6 points (and n - 1: 3.59).
    more = scores([0.0] * 4 + [1.0] * 46 + [1.0] * 9 + [0.0] * 41, [0.5] * n)
    assert ahead(more, plain, 1.0)
    assert ahead(more, plain, 1.39)
    assert not ahead(more, plain, 1.40)
    assert not ahead(plain, more, 0.0)
    assert not ahead(plain, plain, 0.0)
    surer = scores([1.0] * 50 + [0.0] * 50, [0.4, 0.2] * 50)
    assert ahead(surer, plain, 1.0)  # level in accuracy, and clearly likelier
    assert not ahead(
        scores([0.0] * 2 + [1.0] * 48 + [0.0] * 50, [0.1] * n), plain, 1.0
    )  # likelier, and less often right
    nothing = scores([], [])
    assert ahead(plain, nothing, 1.0)
    assert not ahead(nothing, plain, 1.0)


def test_a_trial_that_breaks_down_is_out_and_not_run_again(tmp_path):
    wild = lb.Auto(candidates={"wild": (lb.KL(weight=1e30), lb.Label()), "soft": (lb.KL(), lb.Label())})
    how = HOW | {"clip": None}
    run = lb.distill(net(), Right(), train=TRAIN, objective=wild, out=tmp_path, **how)
    wild_one = next(trial for trial in run.evidence["trials"] if trial["candidate"] == "wild")
    assert wild_one["accuracy"] is None
    assert not wild_one["kept"]
    again = lb.distill(net(), Right(), train=TRAIN, objective=wild, out=tmp_path, **how)
    assert again.evidence["trials"] == run.evidence["trials"]


FAULTS = {
    "stages": ({"stages": (lb.Stage(name="a", epochs=1),)}, ConfigError, "stages.*\n.*of its own for each stage"),
    "itself as a teacher": ({"teacher": lb.SelfTeacher(epochs=1)}, ConfigError, "answers change at every step"),
    "no teacher": ({"teacher": None}, ConfigError, "there is none"),
    "a word": ({"objective": "best"}, ConfigError, "'best' is no objective"),
    "small validation": ({"val": (X[:20], Y[:20])}, DataError, "20 labelled samples cannot tell"),
    "small share": ({"objective": lb.Auto(share=0.05)}, ConfigError, "share: 8 steps(.|\\n)*larger share"),
    "numbers": ({"train": (X[:200], X[:200, 0]), "val": (X[200:300], X[200:300, 0])}, LimbeckError, "real numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_chosen_is_refused_before_a_folder_is_made(name, tmp_path):
    changed, kind, words = FAULTS[name]
    given = {"teacher": Right(), "train": TRAIN, "objective": "auto", **HOW, **changed}
    with pytest.raises(kind, match=words):
        lb.distill(net(), given.pop("teacher"), out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"share": 0}, "auto.share"),
        ({"keep": 1.0}, "auto.keep"),
        ({"margin": -1}, "auto.margin"),
        ({"views": -1}, "auto.views"),
        ({"candidates": {}}, "there are none"),
        ({"candidates": {"plain": (lb.KL(),)}}, "always there"),
        ({"candidates": {"a": (lb.Label(),)}}, "none of its terms needs a teacher"),
        ({"candidates": {"a": ("kll",)}}, "no term is called 'kll'.*\n.*did you mean 'kl'"),
        ({"candidates": {"a": ("kl",)}}, "name of a term, and no term"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        lb.Auto(**wrong)


def test_layers_add_hints_and_a_wrong_path_is_told_before_training():
    assert "kl-2-hint" in lb.Auto(layers=(("0", "0"),)).objectives(labels=True)
    with pytest.raises(LimbeckError, match="'nowhere'"):
        lb.distill(net(), net(16), train=TRAIN, objective=lb.Auto(layers=(("nowhere", "0"),)), **HOW)


def test_the_student_is_trained_in_place_and_the_teacher_is_left_as_it_was():
    student, teacher = net(), net(16, 1)
    before = copy.deepcopy(teacher.state_dict())
    run = lb.distill(student, teacher, train=TRAIN, objective="auto", **HOW)
    assert run.student is student
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
