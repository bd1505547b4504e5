"""Laws over how a step is computed: precision, compiling, averages, memory that runs out, steps that go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core import chip
from limbeck.core.errors import ConfigError, NonFiniteError
from limbeck.core.schedules import Constant
from limbeck.data import as_source
from limbeck.train import Engine, Training, checkpoint
from limbeck.train.followers import Average

G = torch.Generator().manual_seed(0)
X = torch.randn(70, 5, generator=G)
Y = torch.randint(0, 3, (70,), generator=G)
DATA = (X, Y)


def net(seed=1, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


OBJECTIVE = (lb.KL(), lb.Label(), lb.Hint(student="0", teacher="0"))


def distilled(model=None, *, objective=OBJECTIVE, **settings):
    settings = {"epochs": 3, "batch_size": 16, "progress": False, **settings}
    data = settings.pop("data", DATA)
    return lb.distill(
        model or net(), net(2, width=12), train=data, val=DATA, test=DATA, objective=objective, **settings
    )


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.student.parameters()])


def lines(run, kind):
    return [line for line in run.folder.lines if line["kind"] == kind]


# The average ----------------------------------------------------------------------------------------------------------


def test_the_average_is_its_closed_form():
    """Σ_k (1 − d_k) Π_{j>k} d_j · w_k, the start at Π d_j."""
    module = nn.BatchNorm1d(2)
    average = Average(module, 0.9)
    draw = np.random.default_rng(0)
    values, decays = [module.weight.detach().numpy().copy()], []
    for step in range(1, 40):
        values.append(draw.normal(size=2))
        decays.append(min(0.9, (1 + step) / (10 + step)))
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(values[-1]))
            module.num_batches_tracked.fill_(step)
        average.follow(step)
    shares = [np.prod(decays)] + [(1 - d) * np.prod(decays[i + 1 :]) for i, d in enumerate(decays)]
    assert sum(shares) == pytest.approx(1)
    expected = sum(share * value for share, value in zip(shares, values, strict=True))
    np.testing.assert_allclose(average.plain()["weight"].numpy(), expected, rtol=1e-5)
    assert int(average.plain()["num_batches_tracked"]) == 39
    own = module.weight.detach().clone()
    average.swap()
    np.testing.assert_allclose(module.weight.detach().numpy(), expected, rtol=1e-5)
    average.swap()
    assert torch.equal(module.weight, own)


def test_a_run_is_scored_with_the_average_and_ends_with_it():
    run = distilled(ema=0.95, epochs=4)
    plain = distilled(epochs=4)
    assert not torch.allclose(weights(run), weights(plain))
    assert lb.evaluate(run.student, DATA)["nll"] == pytest.approx(run.scores["student"]["nll"], rel=1e-5)
    last = lines(run, "epoch")[-1]["validation"]["nll"]
    assert last == pytest.approx(run.scores["student"]["nll"], rel=1e-5)
    steps = [[line["loss"] for line in lines(each, "step")] for each in (run, plain)]
    assert steps[0] == steps[1]  # training goes on with the weights themselves


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_finished_run_with_an_average_is_read_back_as_it_ended(tmp_path, keep):
    first = distilled(ema=0.9, keep=keep, out=tmp_path / "run")
    again = distilled(ema=0.9, keep=keep, out=tmp_path / "run")
    assert torch.equal(weights(first), weights(again))
    assert lb.evaluate(again.student, DATA)["nll"] == pytest.approx(first.scores["student"]["nll"], rel=1e-5)


# Precision and compilation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_ends_near_float32(precision):
    runs = [distilled(precision=each, epochs=4) for each in ("float32", precision)]
    losses = [[line["loss"] for line in lines(run, "step")] for run in runs]
    assert runs[1].student[0].weight.dtype == torch.float32
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert not torch.equal(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_only_where_the_chip_multiplies_it_and_the_record_says_which(monkeypatch, native):
    monkeypatch.setattr(chip, "multiplies_bfloat16", lambda device: native)
    auto, fixed = (distilled(precision=each, epochs=1) for each in ("auto", "bfloat16" if native else "float32"))
    assert torch.equal(weights(auto), weights(fixed))
    used = "bfloat16" if native else "float32"
    assert [(line["asked"], line["used"]) for line in lines(auto, "precision")] == [("auto", used)]
    assert any(used in note for note in auto.document["notes"])
    assert not lines(fixed, "precision")


def test_a_run_that_imitates_bfloat16_says_that_it_is_slow(monkeypatch):
    monkeypatch.setattr(chip, "multiplies_bfloat16", lambda device: False)
    run = distilled(precision="bfloat16", epochs=1)
    assert any("imitates" in note for note in run.document["notes"])


def test_a_scale_that_is_too_large_is_halved_and_the_weights_wait():
    engine = Engine(device="cpu", precision="float16")
    layer = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    layer(torch.full((1, 4), 1e38)).sum()  # the gradient, 1e38 · 65536, is no float32
    engine.backward(layer(torch.full((1, 4), 1e38)).sum())
    assert not torch.isfinite(engine.norm(optimizer, 1.0))
    assert engine.settling
    engine.step(optimizer)
    assert torch.equal(layer.weight, before)
    assert engine.scaler is not None
    assert engine.scaler.get_scale() == 32768
    held = Engine(device="cpu", precision="float16")
    held.restore(json.loads(json.dumps(engine.plain())))
    assert held.scaler is not None
    assert held.scaler.get_scale() == 32768


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it loads its compiler
def test_a_compiled_student_is_the_same_taps_heads_and_a_short_last_batch_included():
    objective = (lb.KL(), lb.Label(), lb.Hint(student="0", teacher="0"), lb.Similarity(student="2", teacher="2"))
    runs = [distilled(objective=objective, compile=each) for each in (False, True)]
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=1e-4, atol=1e-5)


# Memory ---------------------------------------------------------------------------------------------------------------


class Big(nn.Module):
    """Runs out of memory in training with more than eight samples at a time; with `from_call`, only from then on."""

    def __init__(self, most: int = 8, from_call: int = 0):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.most, self.from_call, self.calls, self.sizes = most, from_call, 0, []

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.calls += 1
            if len(x) > self.most and self.calls > self.from_call:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
            self.sizes.append(len(x))
        return self.inner(x)


def big(**how):
    torch.manual_seed(3)
    return Big(**how)


@pytest.mark.parametrize("out", [None, "run"])
@pytest.mark.parametrize("from_call", [0, 7])
def test_where_memory_runs_out_micro_batches_are_halved_until_they_fit_and_the_weights_are_the_same(
    tmp_path, from_call, out
):
    folder = tmp_path / out if out else None
    objective = (lb.Label(),)
    how = {"objective": objective, "batch_size": 32, "checkpoint_seconds": 0, "log_steps": 1}
    run = distilled(big(from_call=from_call), accumulate="auto", out=folder, **how)
    assert max(run.student.sizes[-5:]) <= 8
    given = distilled(big(most=99), accumulate=4, **how)
    torch.testing.assert_close(weights(run), weights(given), rtol=1e-5, atol=1e-6)
    assert [line["accumulate"] for line in lines(run, "memory")][-2:] == [2, 4]
    steps = [line["step"] for line in lines(run, "step")]
    assert steps == list(range(1, 10))


def test_one_sample_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"memory runs out with 1 samples at a time(.|\n)*To mend"):
        distilled(big(most=0), objective=(lb.Label(),), accumulate="auto", batch_size=16)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    class Broken(Big):
        def forward(self, x):
            if self.training and torch.is_grad_enabled() and len(x):
                raise RuntimeError("something else")
            return super().forward(x)

    with pytest.raises(RuntimeError, match="something else"):
        distilled(Broken(), objective=(lb.Label(),), accumulate="auto", batch_size=16)


# Steps that are not finite --------------------------------------------------------------------------------------------


class Sour(nn.Module):
    """Gives NaN for the samples whose first feature is above 1.6."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x):
        return self.inner(x) * torch.where((x[:, :1] > 1.6) & self.training, float("nan"), 1.0)


def sour():
    torch.manual_seed(4)
    return Sour()


BAD = (X[:, 0] > 1.6).nonzero().flatten().tolist()


def test_a_step_that_is_not_finite_is_left_out_where_asked_and_its_samples_are_on_record(tmp_path):
    assert len(BAD) == 2
    run = distilled(
        sour(), objective=(lb.KL(), lb.Label()), non_finite="skip", batch_size=7, epochs=2, log_steps=1,
        out=tmp_path / "run", data=(X, Y),
    )  # fmt: skip
    faults = lines(run, "fault")
    assert len(faults) in (2, 4)
    assert all(fault["what"] == "loss" and fault["terms"] == ["kl", "label"] for fault in faults)
    assert all(fault["done"] == "skipped" and len(fault["ids"]) == 7 for fault in faults)
    ids = [set(fault["ids"]) for fault in faults]
    known = {int(i) for i in as_source((X, Y), where="train").ids[BAD]}
    assert all(each & known for each in ids)
    assert run.state.skipped == len(faults)
    assert lines(run, "step")[-1]["skipped"] == len(faults)
    assert torch.isfinite(weights(run)).all()
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{len(faults)} steps" in page


def test_a_step_that_is_not_finite_stops_the_run_by_default_and_is_on_record(tmp_path):
    with pytest.raises(NonFiniteError, match="the loss became NaN or infinite"):
        distilled(sour(), objective=(lb.Label(),), batch_size=7, out=tmp_path / "run")
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    fault = next(line for line in told if line["kind"] == "fault")
    assert fault["done"] == "stopped"
    assert len(fault["ids"]) == 7


def test_a_step_is_left_out_in_float16_too_and_training_goes_on():
    run = distilled(sour(), objective=(lb.Label(),), non_finite="skip", batch_size=7, epochs=3, precision="float16")
    assert run.state.skipped >= 3
    assert run.state.step == 30
    assert torch.isfinite(weights(run)).all()


def test_a_step_that_is_left_out_leaves_no_trace_in_batch_statistics():
    """Infinity goes in at the front, so that the norm's running mean would never be a number again."""

    class Front(Sour):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

        def forward(self, x):
            return self.inner(self.norm(torch.where((x[:, :1] > 1.6) & self.training, float("inf"), x)))

    torch.manual_seed(4)
    run = distilled(Front(), objective=(lb.Label(),), non_finite="skip", batch_size=7, epochs=3)
    assert run.state.skipped >= 3
    assert torch.isfinite(run.student.norm.running_mean).all()
    assert int(run.student.norm.num_batches_tracked) == 30 - run.state.skipped


def test_a_run_that_is_lost_stops_though_steps_may_be_left_out():
    class Lost(Sour):
        def forward(self, x):
            return self.inner(x) * (float("nan") if self.training and torch.is_grad_enabled() else 1.0)

    with pytest.raises(NonFiniteError, match=r"21 steps in a row"):
        distilled(Lost(), objective=(lb.Label(),), non_finite="skip", epochs=20)


# Checkpoints and trackers ---------------------------------------------------------------------------------------------


def test_as_many_checkpoints_are_kept_as_asked_while_the_run_goes_on(tmp_path, monkeypatch):
    seen = []
    real = checkpoint.prune

    def prune(folder, *, keep):
        real(folder, keep=keep)
        seen.append(len(list(Path(folder).glob("step-*"))))

    monkeypatch.setattr(checkpoint, "prune", prune)
    distilled(checkpoints=4, checkpoint_seconds=0, log_steps=1, out=tmp_path / "run")
    assert max(seen) == 4
    assert seen[-1] == 1


def test_numbers_go_to_tensorboard_beside_the_records(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = distilled(trackers=("tensorboard",), out=tmp_path / "run", log_steps=2)
    read = EventAccumulator(str(tmp_path / "run" / "tracking" / "student-0"))
    read.Reload()
    told = [(event.step, event.value) for event in read.Scalars("loss")]
    expected = [(line["step"], line["loss"]) for line in lines(run, "step")]
    assert [step for step, _ in told] == [step for step, _ in expected]
    np.testing.assert_allclose([v for _, v in told], [v for _, v in expected], rtol=1e-6)
    assert "validation/accuracy" in read.Tags()["scalars"]


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("ema", 1.0, "decay"),
        ("ema", -0.1, "decay"),
        ("non_finite", "ignore", "non_finite"),
        ("parallel", "pipeline", "parallel"),
        ("precision", "float8", "precision"),
        ("checkpoints", 0, "checkpoints"),
        ("trackers", ("paper",), "trackers"),
    ],
)
def test_impossible_settings_are_refused_by_name(setting, value, word):
    with pytest.raises(ConfigError, match=rf"{word}(.|\n)*To mend"):
        Training(**{setting: value})


def test_settings_of_how_may_differ_when_a_run_goes_on_and_settings_of_what_may_not(tmp_path):
    distilled(out=tmp_path / "run")
    distilled(out=tmp_path / "run", parallel="replicate", checkpoints=5, checkpoint_seconds=3.0, device="cpu")
    with pytest.raises(lb.LimbeckError, match=r"training\.ema"):
        distilled(out=tmp_path / "run", ema=0.9)


def test_the_schedule_of_a_run_does_not_depend_on_how_its_steps_are_cut():
    runs = [distilled(accumulate=pieces, schedule=Constant(), objective=(lb.Label(),)) for pieces in (1, 2)]
    assert [line["step"] for line in lines(runs[0], "step")] == [line["step"] for line in lines(runs[1], "step")]


def test_a_tracker_that_cannot_start_is_one_message(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils import tensorboard

    def broken(*_args, **_how):
        raise OSError("no such server\nand a long tale")

    monkeypatch.setattr(tensorboard, "SummaryWriter", broken)
    with pytest.raises(ConfigError, match=r"'tensorboard' cannot start \(OSError: no such server\)(.|\n)*To mend"):
        distilled(trackers=("tensorboard",), out=tmp_path / "run")


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.train.trackers.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'mlflow' needs the package(.|\n)*pip install mlflow"):
        distilled(trackers=("mlflow",), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
