"""Parts of a student that are frozen, thawed, slowed or anchored, held to closed forms and to plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core.errors import ConfigError
from limbeck.train import Optimizer, Training, Tuner, Tuning, checkpoint

G = torch.Generator().manual_seed(0)
X = torch.randn(120, 6, generator=G)
Y = X[:, :3].argmax(1)
PLAIN = Optimizer(rate=0.1, weight_decay=0.0, options={"momentum": 0.0})


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU()),
        nn.Linear(8, 3),
    )


def trained(model, tuning=None, **settings):
    given = {"epochs": 3, "batch_size": 40, "schedule": lb.schedules.Constant(), "optimizer": PLAIN, "clip": None}
    lb.distill(model, None, train=(X, Y), val=(X, Y), progress=False, tuning=tuning, **{**given, **settings})
    return model.state_dict()


def same(a, b, prefix=""):
    return all(torch.equal(a[name], b[name]) for name in a if name.startswith(prefix))


@pytest.mark.parametrize("tuning", [Tuning(freeze=("0",)), Tuning(learn=("1", "2"))], ids=["freeze", "learn"])
def test_a_frozen_part_is_bit_identical_afterwards_with_its_batch_statistics(tuning):
    model = net()
    before = copy.deepcopy(model.state_dict())
    after = trained(model, tuning, optimizer=Optimizer(rate=0.1), ema=0.9)
    assert same(before, after, "0.")
    assert not same(before, after, "1.0")
    assert not torch.equal(before["1.1.running_mean"], after["1.1.running_mean"])
    assert all(value.requires_grad for value in model.parameters())


def test_a_linear_probe_leaves_even_norms_without_weights():
    model = net()
    before = copy.deepcopy(model.state_dict())
    after = trained(model, Tuning(learn=("2",)))
    assert same(before, after, "0.")
    assert same(before, after, "1.")
    assert not same(before, after, "2.")


def test_a_tuning_that_says_nothing_changes_nothing():
    assert same(trained(net(), Tuning()), trained(net()))


def test_what_is_thawed_stands_still_until_then_and_learns_after():
    start = copy.deepcopy(net().state_dict())
    tuning = Tuning(thaw={"0": 2, "1": 1})
    whole = trained(net(), tuning)
    assert not any(same(whole, start, part) for part in ("0.", "1.", "2."))
    early = trained(net(), tuning, max_seconds=1e-9)  # one step
    assert same(early, start, "0.")
    assert same(early, start, "1.")
    assert not same(early, start, "2.")


def by_hand(model, factors, pulls, steps, rate=0.1):
    """Plain PyTorch: whole batches, a factor and a pull for each weight by name."""
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(X), Y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, value), grad in zip(model.named_parameters(), grads, strict=True):
                value -= rate * factors(name) * (grad + pulls(name) * (value - start[name]))
    return model.state_dict()


def test_rates_and_anchor_are_those_of_a_loop_by_hand():
    tuning = Tuning(rates={"*": 0.5, "0": 0.25, "2.bias": 2.0}, anchor={"0": 3.0, "2": 0.5})
    ours = trained(net(), tuning, epochs=4, batch_size=120)
    factors = {"0": 0.25, "1": 0.5, "2": 0.5}
    hand = by_hand(
        net(),
        lambda name: 2.0 if name == "2.bias" else factors[name[0]],
        lambda name: {"0": 3.0, "1": 0.0, "2": 0.5}[name[0]],
        4,
    )
    for name, value in hand.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)


def test_decay_halves_the_rate_from_layer_to_layer():
    ours = trained(net(), Tuning(decay=0.5), epochs=2, batch_size=120)
    hand = by_hand(net(), lambda name: {"0": 0.25, "1": 0.5, "2": 1.0}[name[0]], lambda _: 0.0, 2)
    for name, value in hand.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)


def test_without_a_gradient_an_anchored_weight_returns_to_its_start_as_the_closed_form_says():
    model = nn.Linear(3, 2, bias=False)
    tuner = Tuner(Tuning(anchor=0.4), model)
    start = model.weight.detach().clone()
    optimizer = Optimizer(rate=0.5, weight_decay=9.0, options={"momentum": 0.0}).build(model, tuner)
    with torch.no_grad():
        model.weight.add_(1.0)
    for _ in range(7):
        model.weight.grad = torch.zeros_like(model.weight)
        tuner.pull()
        optimizer.step()
    assert torch.allclose(model.weight - start, torch.full((2, 3), (1 - 0.5 * 0.4) ** 7), atol=1e-6)


REFUSED = {
    "a slip": ({"freeze": ("bdy",)}, "matches no part"),
    "one pattern as text": ({"freeze": "0"}, "list of patterns"),
    "everything frozen": ({"freeze": ("*",)}, "no part would learn"),
    "everything waits": ({"thaw": {"*": 1}}, "no part would learn"),
    "frozen and thawed": ({"freeze": ("0",), "thaw": {"0": 1}}, "both frozen and to be thawed"),
    "thawed too late": ({"thaw": {"0": 3}}, "would learn after 3 epochs"),
    "no factor": ({"rates": {"0": 0.0}}, "tuning.rates"),
    "no decay": ({"decay": -1.0}, "tuning.decay"),
    "no pull": ({"anchor": -1.0}, "tuning.anchor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_training(case, tmp_path):
    settings, said = REFUSED[case]
    with pytest.raises(ConfigError, match=said):
        trained(net(), Tuning(**settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_slip_is_told_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"did you mean '0\.0\.weight'"):
        trained(net(), Tuning(freeze=("0.0.wieght",)))


@pytest.mark.parametrize("at", [1, 4, 5, 8])
def test_a_killed_run_with_thaw_and_anchor_equals_the_undisturbed(at, tmp_path, monkeypatch):
    tuning = Tuning(thaw={"0": 2, "1": 1}, anchor=0.1, decay=0.7)
    how = {"tuning": tuning, "optimizer": Optimizer(name="AdamW", rate=0.01), "checkpoint_seconds": 0, "log_steps": 1}
    whole = trained(net(), **how, out=tmp_path / "whole")
    real, calls = checkpoint.save, iter(range(1, 100))

    def cut(*args, **kwargs):
        made = real(*args, **kwargs)
        if next(calls) == at:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(checkpoint, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        trained(net(), **how, out=tmp_path / "cut")
    monkeypatch.setattr(checkpoint, "save", real)
    again = net()
    with torch.no_grad():
        for value in again.parameters():  # whatever it is given, the run goes on from its own start
            value.add_(1.0)
    assert same(whole, trained(again, **how, out=tmp_path / "cut"))


@pytest.mark.parametrize(("monitor", "target", "epochs"), [("accuracy", 0.0, 1), ("nll", 1e9, 1), ("nll", 0.0, 3)])
def test_a_run_ends_with_the_epoch_that_reaches_its_target(monitor, target, epochs):
    run = lb.distill(
        net(), None, train=(X, Y), val=(X, Y), epochs=3, batch_size=40, monitor=monitor, target=target, progress=False
    )
    assert run.state.epoch == epochs
    assert run.state.stopped_by == ("target" if epochs == 1 else "epochs")


def test_training_takes_a_tuning_from_plain_data():
    from limbeck.core.setting import as_plain, build

    training = Training(tuning=Tuning(learn=("2",), rates={"0": 0.5}, anchor={"2": 0.1}))
    assert build(Training, as_plain(training), "x") == training
