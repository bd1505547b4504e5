"""What follows the weights: closed forms, exact resume, and a teacher that is the student's own earlier self."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core.errors import ConfigError, LimbeckError
from limbeck.core.schedules import Constant, Linear
from limbeck.job import selves
from limbeck.objectives import KL, Label
from limbeck.teachers.own import SelfTeacher
from limbeck.train import Optimizer
from limbeck.train.followers import Average, Snapshot, tensors_of

G = torch.Generator().manual_seed(0)
X = torch.randn(48, 5, generator=G)
Y = torch.randint(0, 3, (48,), generator=G)
DATA = (X, Y)


def net(seed=1, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))


def run(teacher, student=None, **settings):
    base = {"objective": (KL(weight=Linear(start=0.0, end=0.8)), Label()), "epochs": 3, "batch_size": 16}
    base |= {"progress": False, "val": DATA, "test": DATA}
    return lb.distill(student or net(), teacher, train=DATA, **{**base, **settings})


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.student.state_dict().values()])


def test_a_teacher_that_averages_equals_the_closed_form_and_not_the_average_upside_down():
    """t_N = Σ_k (1 − d_k) Π_{j>k} d_j · s_k, the start at Π d_j: with a decay near 1 the teacher hardly moves."""
    student = nn.Linear(2, 1, bias=False)
    teacher = SelfTeacher(decay=0.9)
    teacher.watch(student)
    (follower,) = selves(teacher, student, per_epoch=7).values()
    draw = np.random.default_rng(0)
    values, decays = [student.weight.detach().numpy().copy()], []
    for step in range(1, 60):
        values.append(draw.normal(size=(1, 2)))
        decays.append(min(0.9, (1 + step) / (10 + step)))
        with torch.no_grad():
            student.weight.copy_(torch.from_numpy(values[-1]))
        follower.follow(step)
    shares = [np.prod(decays)] + [(1 - d) * np.prod(decays[i + 1 :]) for i, d in enumerate(decays)]
    wanted = sum(share * value for share, value in zip(shares, values, strict=True))
    np.testing.assert_allclose(teacher.model.weight.numpy(), wanted, rtol=1e-5)
    np.testing.assert_allclose(student.weight.detach().numpy(), values[-1], rtol=1e-6)
    before = teacher.model.weight.clone()
    with torch.no_grad():
        student.weight.fill_(100.0)
    follower.follow(1000)
    torch.testing.assert_close(teacher.model.weight, 0.9 * before + 0.1 * 100.0)


def test_a_snapshot_is_the_student_as_it_was_when_the_epoch_ended():
    student, seen = net(), []
    teacher = SelfTeacher(epochs=2)
    teacher.watch(student)
    (follower,) = selves(teacher, student, per_epoch=3).values()
    start = student[0].weight.detach().clone()
    for step in range(1, 15):
        with torch.no_grad():
            student[0].weight.add_(1.0)
        follower.follow(step)
        seen.append(float((teacher.model[0].weight - start).mean()))
    assert [round(value) for value in seen] == [0] * 5 + [6] * 6 + [12] * 3


@pytest.mark.parametrize("how", [{"decay": 0.9}, {"epochs": 1}])
def test_the_teacher_shares_nothing_with_the_student_and_no_optimizer_has_it(how, monkeypatch):
    given, teacher = [], SelfTeacher(**how)
    build = Optimizer.build

    def spied(self, model, *more):
        optimizer = build(self, model, *more)
        given.append(({p.data_ptr() for g in optimizer.param_groups for p in g["params"]}, teacher.model))
        return optimizer

    monkeypatch.setattr(Optimizer, "build", spied)
    run(teacher)
    assert given
    for optimized, model in given:
        assert not optimized & {p.data_ptr() for p in model.parameters()}
        assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("how", [{"decay": 0.9}, {"epochs": 1}])
def test_it_teaches_what_a_loop_written_out_by_hand_teaches(how):
    """Plain SGD on two terms, with the earlier self kept beside it, step by step."""
    torch.manual_seed(3)
    student = nn.Linear(5, 3)
    mine = nn.Linear(5, 3)
    mine.load_state_dict(student.state_dict())
    old = {name: value.detach().clone() for name, value in mine.state_dict().items()}
    optimizer = Optimizer(name="SGD", rate=0.5, weight_decay=0.0, options={"momentum": 0.0})
    settings = {"objective": (KL(temperature=1.0), Label()), "batch_size": 48, "epochs": 6, "clip": None}
    done = run(SelfTeacher(**how), student, optimizer=optimizer, schedule=Constant(), **settings)
    for step in range(1, 7):
        logits = mine(X)
        told = (X @ old["weight"].t() + old["bias"]).softmax(-1)
        loss = nn.functional.cross_entropy(logits, Y) + ((told * (told.log() - logits.log_softmax(-1))).sum(-1).mean())
        slopes = torch.autograd.grad(loss, list(mine.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(mine.parameters(), slopes, strict=True):
                parameter.sub_(0.5 * slope)
            keep = min(0.9, (1 + step) / (10 + step)) if "decay" in how else 0.0
            for name, value in mine.state_dict().items():
                old[name] = keep * old[name] + (1 - keep) * value
    torch.testing.assert_close(done.student.weight, mine.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{"decay": 0.9}, {"epochs": 1}])
def test_a_run_that_was_stopped_in_the_middle_of_an_epoch_goes_on_bit_for_bit(how, tmp_path):
    class Stop(Exception):
        pass

    def tired(at):
        """A linear layer that breaks down at a call."""
        student = net()
        calls = [0]

        def count(module, _args):
            if module.training:
                calls[0] += 1
                if calls[0] == at:
                    raise Stop

        student[0].register_forward_pre_hook(count)
        return student

    settings = {"checkpoint_seconds": 0, "log_steps": 1, "epochs": 4}
    whole = run(SelfTeacher(**how), out=tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        run(SelfTeacher(**how), tired(9), out=tmp_path / "cut", **settings)
    again = run(SelfTeacher(**how), out=tmp_path / "cut", **settings)
    assert torch.equal(weights(whole), weights(again))
    assert whole.scores == again.scores  # the teacher's too
    told = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in file.read_text().splitlines()]
        for file in (tmp_path / name / "metrics.jsonl" for name in ("whole", "cut"))
    ]
    assert told[0] == told[1]


def test_a_finished_run_is_read_back_with_its_teachers_scores(tmp_path):
    first = run(SelfTeacher(decay=0.9), out=tmp_path / "run")
    again = run(SelfTeacher(decay=0.9), out=tmp_path / "run")
    assert again.scores == first.scores
    assert "teacher" in first.scores


def test_it_goes_with_an_average_of_the_run_and_as_one_of_several_teachers():
    done = run(lb.teacher([SelfTeacher(decay=0.9), net(7)]), ema=0.9)
    plain = run(lb.teacher([SelfTeacher(epochs=1), net(7)]))
    assert not torch.equal(weights(done), weights(plain))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SelfTeacher(), "neither"),
        (lambda: SelfTeacher(decay=0.9, epochs=1), "both"),
        (lambda: SelfTeacher(decay=1.0), "teacher.decay"),
        (lambda: SelfTeacher(decay=0.0), "teacher.decay"),
        (lambda: SelfTeacher(epochs=0), "teacher.epochs"),
        (lambda: lb.evaluate(net(), DATA, teacher=SelfTeacher(epochs=1)), "no student is being trained"),
        (lambda: run(SelfTeacher(decay=0.9), objective=lb.Hint(student="0", teacher="9")), "'9'"),
    ],
)
def test_what_cannot_be_is_refused_with_a_mend(make, said):
    with pytest.raises(LimbeckError, match=said) as caught:
        make()
    assert "To mend" in str(caught.value)


def test_it_cannot_be_stored(tmp_path):
    with pytest.raises(ConfigError, match="no student is being trained"):
        lb.remember(SelfTeacher(decay=0.9), DATA, out=tmp_path / "targets", progress=False)


def test_followers_hold_the_tensors_of_the_module_they_fill():
    one, other = net(), net(2)
    for follower in (Average(one, 0.5, into=other), Snapshot(one, 1, into=other)):
        follower.restore({name: torch.zeros_like(value) for name, value in tensors_of(one).items()})
        assert other[0].weight.abs().max().item() == 0
        follower.follow(1)
        assert other[0].weight.abs().max().item() > 0
        assert set(follower.plain()) == set(tensors_of(one))
