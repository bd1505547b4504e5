"""Laws over training: batches may be cut as memory asks, runs repeat, and what is killed goes on."""

import copy
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core.errors import NonFiniteError
from limbeck.core.schedules import Constant, Linear
from limbeck.objectives import as_objective
from limbeck.train import Engine, Optimizer, State, Student, combine, counted, fit
from warm import fresh

G = torch.Generator().manual_seed(0)
X = torch.randn(70, 5, generator=G, dtype=torch.float64)
Y = torch.randint(0, 3, (70,), generator=G)
VALID = torch.rand(70, generator=G) > 0.3


def net(seed=1, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3)).double()


class Ragged:
    """Batches whose `valid` is ragged; the last one is short."""

    def __init__(self, size, x=X, y=Y, valid=VALID):
        self.size, self.x, self.y, self.valid = size, x, y, valid

    def __len__(self):
        return (len(self.x) + self.size - 1) // self.size

    def epoch(self, epoch, start=0):
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(epoch))
        for at in order.split(self.size)[start:]:
            yield {"id": at, "valid": self.valid[at], "x": self.x[at], "y": self.y[at]}


OBJECTIVE = (lb.KL(temperature=3.0, weight=Linear(start=0.9, end=0.2)), lb.Label(), lb.Hint(student="0", teacher="0"))


def trained(batches, *, accumulate=1, epochs=3, clip=0.5, seed=1, state=None, halt=lambda: None):
    model, master = net(seed), lb.teacher(net(2, width=6))
    example = next(batches.epoch(0))
    answers = master.open(["logits", "0"], example)
    torch.manual_seed(5)
    student = Student.build(model, as_objective(OBJECTIVE), example, answers).double()
    optimizer = Optimizer(rate=0.05).build(student)
    fit(
        student, master, batches, OBJECTIVE, optimizer, epochs=epochs, engine=Engine(device="cpu"),
        schedule=lb.schedules.OneCycle(), accumulate=accumulate, clip=clip, state=state, halt=halt,
    )  # fmt: skip
    return torch.cat([p.detach().flatten() for p in student.parameters()])


def test_four_micro_batches_equal_one_batch_though_valid_is_ragged_and_the_last_batch_short():
    whole, cut = trained(Ragged(64)), trained(Ragged(16), accumulate=4)
    assert torch.allclose(whole, cut, atol=1e-12)
    assert not torch.allclose(whole, trained(Ragged(64), seed=3), atol=1e-6)


def test_invalid_samples_have_no_say():
    other = X.clone()
    other[~VALID] = 1e3
    assert torch.allclose(trained(Ragged(64)), trained(Ragged(64, x=other)), atol=1e-12)


def test_duplicating_the_batch_changes_no_loss():
    one = {"id": torch.arange(8), "valid": VALID[:8], "x": X[:8], "y": Y[:8]}
    two = {k: torch.cat([v, v]) for k, v in one.items()}
    values = []
    for batch in (one, two):
        signals = {"logits": batch["x"][:, :3], "0": batch["x"], "hint:0>0": batch["x"] * 2}
        answers = {"logits": batch["x"][:, 1:4], "0": batch["x"].flip(-1)}
        counts = counted(OBJECTIVE, batch)
        total, parts = combine(OBJECTIVE, signals, answers, batch, progress=0.5, counts=counts)
        values.append([total, *(p / batch["valid"].sum() for p in parts)])
    assert torch.allclose(torch.stack(values[0]), torch.stack(values[1]), atol=1e-12)


def distilled(seed=0, epochs=2, out=None, **settings):
    model = net().float()
    model.insert(1, nn.Dropout(0.2))
    teacher = net(2, width=16).float()
    data = (X.float(), Y)
    settings = {"batch_size": 16, "checkpoint_seconds": 0, "log_steps": 2, **settings}
    torch.seed()  # whatever was drawn before has no say
    run = lb.distill(model, teacher, train=data, val=data, epochs=epochs, seed=seed, out=out, **settings)
    return run, torch.cat([p.detach().flatten() for p in model.parameters()])


def test_two_runs_with_one_seed_give_identical_weights_and_another_seed_others():
    assert torch.equal(distilled()[1], distilled()[1])
    assert not torch.equal(distilled()[1], distilled(seed=1)[1])


def test_a_batch_cut_in_micro_batches_is_the_same_run_through_the_public_call():
    def plain(**settings):
        model = net().float()
        lb.distill(model, None, train=(X.float(), Y), val=(X.float(), Y), epochs=2, batch_size=32, **settings)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.allclose(plain(), plain(accumulate=4), atol=1e-6)


SCRIPT = """
import sys, torch, os, signal
sys.path.insert(0, {here!r})
import test_runner as t
from limbeck.core.folder import RunFolder
real = RunFolder.log
def log(self, **line):
    real(self, **line)
    if line["kind"] == "epoch" and line["epoch"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
RunFolder.log = log
t.distilled(epochs=4, out={out!r})
"""


def test_two_and_two_epochs_with_a_sigkill_between_equal_four_bit_for_bit(tmp_path):
    """The process dies hearing of the third epoch's end, before that is saved."""
    script = SCRIPT.format(here=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    dead = fresh(script, tmp_path)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    run, weights = distilled(epochs=4, out=tmp_path / "killed")
    whole, expected = distilled(epochs=4, out=tmp_path / "whole")
    assert torch.equal(weights, expected)
    assert run.scores == whole.scores
    steps = [[line["step"] for line in r.folder.lines if line["kind"] == "step"] for r in (run, whole)]
    assert steps[0] == steps[1]


def test_a_finished_run_is_read_and_not_trained_again(tmp_path):
    first, weights = distilled(out=tmp_path / "run")
    again, same = distilled(out=tmp_path / "run")
    assert torch.equal(weights, same)
    assert dict(again.scores["student"]) == dict(first.scores["student"])
    assert again.state.step == first.state.step


class Bomb(nn.Module):
    """Its weights leave the finite numbers after some steps."""

    def __init__(self):
        super().__init__()
        self.inner = net().float()
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return self.inner(x) * (float("nan") if self.calls > 7 else 1.0)


def test_a_loss_that_is_not_finite_stops_the_run_names_step_and_term_and_keeps_the_last_good_checkpoint(tmp_path):
    model = Bomb()
    data = (X.float(), Y)
    with pytest.raises(
        NonFiniteError, match=r"the loss became NaN or infinite at step 8, in the term 'label'(.|\n)*To mend"
    ):
        lb.distill(
            model, None, train=data, val=data, batch_size=16, epochs=3, out=tmp_path / "run", checkpoint_seconds=0
        )
    assert all(torch.isfinite(p).all() for p in model.parameters())
    kept = sorted((tmp_path / "run" / "checkpoints").rglob("tensors.safetensors"))
    assert kept
    from safetensors.torch import load_file

    assert all(torch.isfinite(v).all() for file in kept for v in load_file(file).values() if v.is_floating_point())


def test_the_step_counter_counts_updates_and_not_micro_batches():
    state = State()
    trained(Ragged(16), accumulate=4, epochs=2, state=state)
    assert (state.step, state.epoch, state.micro) == (4, 2, 0)


def test_halting_in_the_middle_of_an_epoch_and_going_on_is_the_same_run():
    state, seen = State(), []

    def halt():
        seen.append(1)
        return "enough" if len(seen) == 3 else None

    model, master = net(), lb.teacher(net(2, width=6))
    batches = Ragged(16)
    answers = master.open(["logits", "0"], next(batches.epoch(0)))
    torch.manual_seed(5)
    student = Student.build(model, as_objective(OBJECTIVE), next(batches.epoch(0)), answers).double()
    optimizer = Optimizer(rate=0.05).build(student)
    settings = {"epochs": 3, "engine": Engine(device="cpu"), "schedule": lb.schedules.OneCycle(), "clip": 0.5}
    fit(student, master, batches, OBJECTIVE, optimizer, state=state, halt=halt, **settings)
    assert (state.stopped_by, state.micro) == ("enough", 3)
    state.stopped_by = ""
    fit(student, master, batches, OBJECTIVE, optimizer, state=state, **settings)
    weights = torch.cat([p.detach().flatten() for p in student.parameters()])
    assert torch.equal(weights, trained(batches))


def test_heads_are_trained_and_clipped_and_gone_afterwards():
    model, teacher = net().float(), net(2, width=16).float()
    objective = (lb.Hint(student="0", teacher="0"),)
    before = copy.deepcopy(model.state_dict())
    run = lb.distill(model, teacher, train=(X.float(), Y), objective=objective, epochs=2, batch_size=16)
    assert set(run.student.state_dict()) == set(before)
    assert not torch.equal(run.student[0].weight, before["0.weight"])
    assert not any(m._forward_hooks for m in [*model.modules(), *teacher.modules()])


def test_every_trained_number_is_in_the_optimizer_in_the_checkpoint_and_moves():
    batches, master = Ragged(16), lb.teacher(net(2, width=6))
    example = next(batches.epoch(0))
    student = Student.build(net(), as_objective(OBJECTIVE), example, master.open(["logits", "0"], example)).double()
    before = {name: value.clone() for name, value in student.named_parameters()}
    assert any(name.startswith("heads.") for name in before)
    optimizer = Optimizer(rate=0.05).build(student)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    fit(
        student, master, batches, OBJECTIVE, optimizer, epochs=1, engine=Engine(device="cpu"),
        schedule=Constant(), clip=0.5,
    )  # fmt: skip
    for name, value in student.named_parameters():
        assert id(value) in held
        assert name in student.state_dict()
        assert not torch.equal(value, before[name]), name


def test_patience_stops_and_best_is_kept(tmp_path):
    data = (X.float(), Y)
    model = net().float()
    run = lb.distill(
        model, None, train=data, val=data, epochs=50, batch_size=16, patience=2, keep="best", monitor="nll",
        optimizer=lb.Optimizer(rate=0.5), schedule=Constant(), out=tmp_path / "run",
    )  # fmt: skip
    assert run.state.stopped_by == "patience"
    assert run.state.epoch < 50
    losses = [line["validation"]["nll"] for line in run.folder.lines if line["kind"] == "epoch"]
    assert run.scores["student"]["nll"] == pytest.approx(min(losses), rel=1e-5)


def test_a_time_limit_ends_the_run_with_scores():
    data = (X.float(), Y)
    run = lb.distill(net().float(), None, train=data, val=data, epochs=100_000, batch_size=16, max_seconds=0.5)
    assert run.state.stopped_by == "time"
    assert run.scores["student"]["samples"] == 70


def test_terms_that_ask_for_the_same_head_share_it_and_different_ones_under_one_name_are_refused():
    example = next(Ragged(8).epoch(0))
    answers = {"logits": torch.zeros(8, 3), "0": torch.zeros(8, 6)}
    same = (lb.Hint(student="0", teacher="0"), lb.Hint(student="0", teacher="0", weight=0.5))
    assert len(Student.build(net(), same, example, answers).heads) == 1
    forms = (lb.Hint(student="0", teacher="0"), lb.Hint(student="0", teacher="0", head="mlp"))
    assert len(Student.build(net(), forms, example, answers).heads) == 2
    hot = (lb.KL(temperature=lb.Curriculum()), lb.KL(temperature=lb.Curriculum(start=6.0)))
    with pytest.raises(ValueError, match=r"want different heads(.|\n)*To mend"):
        Student.build(net(), hot, example, answers)


def test_values_with_further_axes_are_averaged_over_them():
    """A term on tokens without `Tokens` around it: each sample weighs the same, and is the mean over its tokens."""
    g = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(4, 5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    batch = {"valid": torch.tensor([True, True, False, True])}
    objective = (lb.KL(temperature=2.0),)
    signals = {"logits": student}, {"logits": teacher}
    total, _ = combine(objective, *signals, batch, progress=0.0, counts=counted(objective, batch))
    each = lb.functional.kl(student, teacher, temperature=2.0, reduction="none").mean(1)
    torch.testing.assert_close(total, each[batch["valid"]].mean())


def test_each_term_is_divided_by_its_own_count():
    """A mean over tokens and a mean over samples, in one objective and cut in two micro-batches."""
    g = torch.Generator().manual_seed(4)
    student, teacher = (torch.randn(4, 5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    words = torch.randint(0, 3, (4, 5), generator=g)
    words[0, 2:] = -100
    y = torch.tensor([0, 1, 2, 0])
    objective = (lb.Tokens(term=lb.KL(on="words"), column="following", shift=0), lb.Label())

    def part(rows):
        batch = {"valid": torch.ones(len(y[rows]), dtype=torch.bool), "following": words[rows], "y": y[rows]}
        return {"words": student[rows], "logits": student[rows, -1]}, {"words": teacher[rows]}, batch

    parts = [part(slice(0, 1)), part(slice(1, 4))]
    counts = sum(counted(objective, batch) for _, _, batch in parts)
    total = sum(combine(objective, *each, progress=0.0, counts=counts)[0] for each in parts)
    tokens = lb.functional.kl(student, teacher, temperature=2.0, reduction="none")[words != -100].mean()
    torch.testing.assert_close(total, tokens + lb.functional.label_cross_entropy(student[:, -1], y))
