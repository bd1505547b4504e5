"""What is masked stays zero through training, in a file that holds the rest alone."""

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.utils import parametrizations

import limbeck as lb
from limbeck.compress import Bake, Evidence, Mask, apply, bake, plan, replay, stored_bytes
from limbeck.compress.base import lean
from limbeck.core.errors import ConfigError
from limbeck.export import save_model


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()


def images(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=3), nn.Flatten(), nn.Linear(12, 2))


X = torch.randn(32, 40, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 40)
DATA = Evidence(batch={"x": X[:4]}, batches=lambda: iter([{"x": X[:20]}, {"x": X[20:]}]))
P = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.1, 3, 8).view(8, 1, 1)
PICTURES = Evidence(batch={"x": P}, batches=lambda: iter([{"x": P}]))


def masked(model, op, data=DATA):
    return apply(model, plan(model, op, data))


def zeros(layer):
    return layer.weight.detach() == 0


def test_the_smallest_of_each_layer_go():
    base = net()
    model = masked(base, Mask(sparsity=0.3))
    for i in (0, 2, 4):
        size = np.abs(base[i].weight.detach().numpy()).ravel()
        gone = zeros(model[i]).numpy().ravel()
        assert gone.sum() == int(0.3 * size.size)
        assert size[gone].max() <= size[~gone].min()
        assert torch.equal(model[i].weight[~zeros(model[i])], base[i].weight[~zeros(model[i])])
        assert torch.equal(model[i].bias, base[i].bias)


def test_the_smallest_of_all_layers_go():
    base = net()
    base[2].weight.data *= 0.01
    model = masked(base, Mask(sparsity=0.5, scope="global"))
    every = np.concatenate([np.abs(base[i].weight.detach().numpy()).ravel() for i in (0, 2, 4)])
    gone = np.concatenate([zeros(model[i]).numpy().ravel() for i in (0, 2, 4)])
    assert gone.sum() == int(0.5 * every.size)
    assert every[gone].max() <= every[~gone].min()
    assert zeros(model[2]).float().mean() > 0.8  # nearly all of the 3456 that go, of 4096
    assert zeros(model[0]).float().mean() < 0.1


def test_by_inputs_it_is_wanda_by_hand():
    base = net()
    model = masked(base, Mask(sparsity=0.5, by="inputs"))
    norm = np.linalg.norm(X.double().numpy(), axis=0)
    score = np.abs(base[0].weight.detach().numpy()) * norm[None]
    for row, gone in zip(score, zeros(model[0]).numpy(), strict=True):
        assert set(np.flatnonzero(gone)) == set(np.argsort(row)[:20])
    hidden = torch.relu(base[0](X)).detach().double().numpy()
    score = np.abs(base[2].weight.detach().numpy()) * np.linalg.norm(hidden, axis=0)[None]
    assert all(
        set(np.flatnonzero(g)) == set(np.argsort(r)[:32]) for r, g in zip(score, zeros(model[2]).numpy(), strict=True)
    )


def test_by_inputs_the_outputs_of_a_layer_change_less():
    base = net()
    error = {}
    for by in ("magnitude", "inputs"):
        model = masked(base, Mask(sparsity=0.5, by=by, include=("0",)))
        error[by] = float((model[0](X) - base[0](X)).detach().norm())
    assert error["inputs"] < 0.8 * error["magnitude"]


def test_by_inputs_a_grouped_convolution_reads_the_norms_of_its_own_group():
    base = images()
    model = masked(base, Mask(sparsity=0.5, by="inputs"), PICTURES)
    with torch.no_grad():
        hidden = torch.relu(base[0](P)).double().numpy()
    norm = np.sqrt((hidden**2).sum((0, 2, 3)))  # 12 channels, 4 a group
    for out, (weight, gone) in enumerate(zip(base[2].weight.detach().numpy(), zeros(model[2]).numpy(), strict=True)):
        group = out // 4
        score = (np.abs(weight) * norm[4 * group : 4 * group + 4, None, None]).ravel()
        assert set(np.flatnonzero(gone.ravel())) == set(np.argsort(score)[:18])


@pytest.mark.parametrize("by", ["magnitude", "inputs"])
@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_n_of_m_neighbours_along_the_inputs_are_kept(pattern, n, m, by):
    base = net()
    model = masked(base, Mask(pattern=pattern, by=by))
    for i in (0, 2, 4):
        groups = model[i].weight.detach().reshape(-1, m)
        assert ((groups != 0).sum(1) == n).all()
    if by == "magnitude":
        before = base[0].weight.detach().reshape(-1, m).abs()
        assert torch.allclose(model[0].weight.reshape(-1, m).abs().sum(1), before.topk(n).values.sum(1))


def test_n_of_m_in_a_convolution_runs_along_its_channels_and_what_does_not_part_is_left():
    model = images()
    found = plan(model, Mask(pattern="4:8"), PICTURES)
    assert [change.at for change in found.changes] == ["0"]
    assert {left.at for left in found.left} == {"2", "4"}
    kept = (apply(model, found)[0].weight != 0).sum(1)
    assert (kept == 4).all()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_with_momentum_and_decay_keeps_the_mask(kind):
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    model = masked(model, Mask(sparsity=0.8))
    gone = zeros(model[2])
    optimizer = OPTIMIZERS[kind](model.parameters())
    before = model[2].weight.detach().clone()
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), torch.arange(32) % 4).backward()
        optimizer.step()
    assert (model[2].weight[gone] == 0).all()
    assert (model[2].weight[~gone] != before[~gone]).float().mean() > 0.5
    assert torch.equal(bake(model)[2].weight, model[2].weight)


def test_an_optimizer_s_memory_of_a_time_before_does_not_bring_weights_back():
    model = masked(net(), Mask(sparsity=0.8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)
    gone = zeros(model[2])
    model(X).mean().backward()
    optimizer.step()
    assert (model[2].weight[gone] == 0).all()


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_the_file_weighs_what_the_arithmetic_says(sparsity, tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(500, 900), nn.Linear(900, 300)).eval()
    data = Evidence(batch={"x": torch.randn(4, 500)})
    found = plan(base, Mask(sparsity=sparsity), data)
    model = apply(base, found)
    save_model(tmp_path, model, lineage={"base": {}}, card="", operations=[found])
    expected = 4 * 1200
    for size in (450_000, 270_000):
        expected += 4 * (size - int(sparsity * size)) + math.ceil(size / 8)
    file = tmp_path / "model.safetensors"
    with safe_open(file, "pt") as opened:
        held = sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118 - it is no dict
    assert held == expected == stored_bytes(model)
    assert file.stat().st_size == pytest.approx(expected, rel=0.01)
    again = lb.load(tmp_path, into=nn.Sequential(nn.Linear(500, 900), nn.Linear(900, 300))).eval()
    assert torch.equal(again(data.batch["x"]), model(data.batch["x"]))


def test_masked_again_and_baked_it_is_loaded_by_its_whole_lineage(tmp_path):
    base, plans = net(), []
    model = base
    for op in (Mask(sparsity=0.3), Mask(sparsity=0.6, by="inputs"), Bake(), Mask(sparsity=0.7)):
        plans.append(plan(model, op, DATA))
        model = apply(model, plans[-1])
    assert zeros(model[2]).float().mean() == pytest.approx(0.7, abs=0.01)
    first = masked(base, Mask(sparsity=0.3))
    assert zeros(model[2])[zeros(first[2])].all()
    save_model(tmp_path, model, lineage={"base": {}}, card="", operations=plans)
    assert torch.equal(lb.load(tmp_path, into=net(seed=4))(X), model(X))
    assert "values" not in str(lean(plans[1])["changes"])
    assert torch.equal(replay(net(), plans and [lean(p) for p in plans[:1]])[2].weight, first[2].weight)


def test_a_copy_that_is_baked_leaves_the_others_whole():
    model = masked(net(), Mask(sparsity=0.5))
    before = model(X)
    plain = bake(model)
    assert type(plain[0]) is nn.Linear
    assert list(plain.state_dict()) == list(net().state_dict())
    assert torch.equal(model(X), before)
    assert torch.equal(plain(X), before)


def test_a_weight_with_another_parametrisation_is_left_alone_and_survives_bake():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(40, 40)), nn.Linear(40, 40)).eval()
    found = plan(model, Mask(sparsity=0.5), DATA)
    assert [change.at for change in found.changes] == ["1"]
    assert "another parametrisation" in found.left[0].why
    plain = bake(apply(model, found))
    assert hasattr(plain[0], "parametrizations")
    assert type(plain[1]) is nn.Linear


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"sparsity": 1.0}, {"sparsity": -0.1}, {"sparsity": float("nan")}, {"pattern": "4:2"}, {"pattern": "two"},
        {"pattern": "0:4"}, {"sparsity": 0.5, "pattern": "2:4"}, {"pattern": "2:4", "scope": "global"},
        {"sparsity": 0.5, "by": "inputs", "scope": "global"},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match="To mend"):
        Mask(**wrong)


def test_equal_weights_are_cut_to_the_exact_number():
    base = nn.Sequential(nn.Linear(40, 10))
    base[0].weight.data.fill_(0.5)
    assert int(zeros(masked(base, Mask(sparsity=0.25))[0]).sum()) == 100
    assert int(zeros(masked(base, Mask(sparsity=0.25, scope="global"))[0]).sum()) == 100
