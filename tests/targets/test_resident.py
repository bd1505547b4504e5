"""Law: what is kept on a device whole is what is gathered from disk."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.targets.resident import Resident, size_of
from limbeck.teachers import stored

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
ONE = torch.device("cpu")


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def jitter(sample):
    return sample + torch.randn(sample.shape)


CODECS = ["float32", "float16", "bfloat16", "int8", lb.TopK(k=3), lb.Sampled(draws=4)]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_it_gives_what_the_disk_gives_for_any_order_and_views(tmp_path, codec):
    augment = lb.Transform(jitter)
    how = {"logits": codec} if isinstance(codec, str) else codec
    made = lb.remember(
        model(), X, out=tmp_path / "t", views=3, outputs=["logits", "2@weight"], codec=how, augment=augment,
        batch_size=8, progress=False,
    )  # fmt: skip
    names = sorted(made.store.names)
    draw = torch.Generator().manual_seed(2)
    at = torch.randint(0, 50, (20,), generator=draw)
    views = torch.randint(0, 3, (20,), generator=draw)
    ids = made.store.ids[at]
    held, there = Resident(made.store, names, ONE)(ids, views), made.store.gather(ids, views, names)
    assert held.keys() == there.keys()
    for name, value in there.items():
        assert held[name].dtype == value.dtype
        assert torch.equal(held[name], value), name


def test_its_size_is_that_of_its_tables(tmp_path):
    made = lb.remember(model(), X, out=tmp_path / "t", codec="float16", outputs=["logits", "1"], progress=False)
    held = Resident(made.store, ("1", "logits"), ONE)
    assert size_of(made.store, ["logits", "1"]) == 50 * (5 + 8) * 2
    assert sum(x.numel() * x.element_size() for x in held._tables.values()) == 50 * (5 + 8) * 2


def test_targets_use_it_where_it_fits_and_train_the_same(tmp_path, monkeypatch):
    y = torch.randint(0, 5, (50,), generator=torch.Generator().manual_seed(3))
    lb.remember(model(), X, out=tmp_path / "t", progress=False)
    ends, used = [], []
    real = Resident.__call__

    def call(self, *given):
        used.append(1)
        return real(self, *given)

    monkeypatch.setattr(Resident, "__call__", call)
    for room in (0, 10**9):
        monkeypatch.setattr(stored, "_room", lambda device, room=room: room)
        torch.manual_seed(4)
        student = nn.Linear(6, 5)
        lb.distill(
            student, lb.Targets(tmp_path / "t"), train=(X, y), val=(X, y), objective=lb.KL(), epochs=2, batch_size=16,
            progress=False,
        )  # fmt: skip
        ends.append(student.weight.detach().clone())
        assert bool(used) == bool(room)
    assert torch.equal(*ends)
