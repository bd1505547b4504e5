"""Students that learn together: what they give, what is kept of them, and who pays for whom."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core.errors import LimbeckError
from limbeck.core.setting import as_plain, build, tagged
from limbeck.models import MLP, MODELS, Peers, PeersOf, kept_setting
from limbeck.objectives import Each, Label, Mutual
from limbeck.train import Optimizer

G = torch.Generator().manual_seed(0)
X = torch.randn(60, 5, generator=G)
Y = torch.randint(0, 3, (60,), generator=G)
DATA = (X, Y)


def net(seed, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, classes))


TOGETHER = (Mutual(), Each(term=Label()))


def run(student, objective=TOGETHER, **settings):
    base = {"epochs": 3, "batch_size": 20, "progress": False, "val": DATA, "test": DATA}
    return lb.distill(student, None, train=DATA, objective=objective, **{**base, **settings})


def test_every_peer_runs_once_and_the_first_gives_the_logits():
    peers, calls = Peers([net(1), net(2), net(3)]), []
    for peer in peers.peer:
        peer.register_forward_hook(lambda *_: calls.append(1))
    said = peers(X)
    assert len(calls) == 3
    assert said["peers"].shape == (60, 3, 3)
    assert torch.equal(said["logits"], net(1)(X))
    assert all(torch.equal(said["peers"][:, i], net(i + 1)(X)) for i in range(3))


def test_the_divergence_of_one_peer_leaves_the_weights_of_the_others_alone():
    """Loss of peer i for parameters of peer j, by autograd on the real module: nothing."""
    peers = Peers([net(1), net(2), net(3)])
    for i in range(3):
        logits = peers(X)["peers"]
        mixed = torch.stack([logits[:, j] if j == i else logits[:, j].detach() for j in range(3)], 1)
        peers.zero_grad()
        Mutual()({"peers": mixed}, {}, {}).sum().backward()
        alone = [p.grad.clone() for p in peers.peer[i].parameters()]
        others = [p.grad for j in range(3) if j != i for p in peers.peer[j].parameters()]
        assert not any(slope.any() for slope in others if slope is not None)
        peers.zero_grad()
        Mutual()({"peers": peers(X)["peers"]}, {}, {}).sum().backward()
        for mine, whole in zip(alone, peers.peer[i].parameters(), strict=True):
            torch.testing.assert_close(mine, whole.grad)


def test_a_step_on_labels_alone_is_each_peers_own_step():
    """No peer sees another through the sum: two together end where each ends alone (no clipping, which they share)."""
    settings = {"optimizer": Optimizer(rate=0.1), "clip": None}
    together = Peers([net(1), net(2)])
    run(together, Each(term=Label()), **settings)
    for i in range(2):
        alone = run(net(i + 1), Label(), **settings).student
        for mine, own in zip(together.peer[i].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-6)


def test_the_first_is_the_student_and_the_spread_is_told(tmp_path):
    student = Peers([net(1), net(2), net(3)])
    first = run(student, out=tmp_path / "run")
    assert first.student is student.peer[0]
    told = first.scores["student"]["peers"]
    assert len(told) == 3
    assert told[0] == pytest.approx(first.scores["student"]["accuracy"])
    for i in range(3):
        assert told[i] == pytest.approx(lb.evaluate(student.peer[i], DATA)["accuracy"])
    assert any("peers" in note and "chosen before" in note for note in first.document["notes"])
    saved = lb.load(tmp_path / "run", into=net(9))
    assert torch.equal(saved(X), first.student(X))
    again = run(Peers([net(1), net(2), net(3)]), out=tmp_path / "run")
    assert torch.equal(again.student(X), first.student(X))
    assert again.scores == first.scores
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["arms"]["student"]["runs"][0]["scores"]["peers"]


def test_peers_come_closer_than_they_would_apart():
    def apart(objective):
        student = Peers([net(1), net(2)])
        run(student, objective, epochs=10)
        with torch.no_grad():
            return Mutual()({"peers": student(X)["peers"]}, {}, {}).mean().item()

    assert apart(TOGETHER) < apart(Each(term=Label()))


def test_the_setting_builds_them_with_the_first_as_it_would_be_alone():
    setting = PeersOf(student=MLP(hidden=(4,)), count=3)
    torch.manual_seed(0)
    peers = setting.build((5,), 3)
    torch.manual_seed(0)
    alone = MLP(hidden=(4,)).build((5,), 3)
    assert torch.equal(peers.peer[0].linear.weight, alone.linear.weight)
    assert not torch.equal(peers.peer[1].linear.weight, alone.linear.weight)
    assert build(tagged(MODELS), as_plain(setting), "x") == setting
    assert kept_setting(setting) == MLP(hidden=(4,))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Peers([net(1)]), "nobody to learn from"),
        (lambda: Peers([net(1)] * 2), "shares parameters"),
        (lambda: PeersOf(student=MLP(), count=1), "peers.count"),
        (lambda: run(Peers([net(1), net(2, classes=4)])), "the same classes"),
        (lambda: run(net(1)), "'peers'"),
        (lambda: build(tagged(MODELS), {"kind": "peers", "student": {"kind": "peers"}}, "x"), "nothing is called"),
    ],
)
def test_what_cannot_be_is_refused_before_training(make, said):
    with pytest.raises(LimbeckError, match=said):
        make()


def test_an_exit_at_a_layer_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(LimbeckError, match=r"hidden9(.|\n)*hidden1"):
        run(MLP(hidden=(4,)).build((5,), 3), (Label(), lb.Exits(taps=("hidden9",))))
