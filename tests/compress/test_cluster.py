"""Weights that share values go on sharing them, zeros stay zero, and the file is as small as the arithmetic says."""

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.cluster import KMeans
from torch import nn

import limbeck as lb
from limbeck.compress import Cluster, Evidence, Mask, apply, bake, plan, stored_bytes
from limbeck.core.errors import ConfigError
from limbeck.export import save_model


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).eval()


DATA = Evidence(batch={"x": torch.randn(32, 40, generator=torch.Generator().manual_seed(1))})


def done(model, *ops):
    plans = []
    for op in ops:
        plans.append(plan(model, op, DATA))
        model = apply(model, plans[-1])
    return model, plans


def train(model, optimizer, steps=20):
    torch.manual_seed(3)
    model.train()
    for _ in range(steps):
        x = torch.randn(32, 40)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
    return model.eval()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


def test_each_weight_becomes_the_nearest_centre_and_the_error_is_k_means():
    base = net()
    model, _ = done(base, Cluster(levels=8, include=("2",)))
    before, after = base[2].weight.detach().flatten().double(), model[2].weight.detach().flatten().double()
    centres = after.unique()
    assert len(centres) == 8
    nearest = centres[(before[:, None] - centres[None]).abs().argmin(1)]
    assert torch.allclose(after, nearest, atol=1e-6)
    theirs = KMeans(8, n_init=5, random_state=0).fit(before.numpy()[:, None]).inertia_
    assert float((before - after).square().sum()) <= theirs * 1.01
    assert torch.equal(model[0].weight, base[0].weight)


def test_a_codebook_for_each_channel():
    base = net()
    model, _ = done(base, Cluster(levels=4, per="channel"))
    rows = model[2].weight.detach()
    assert all(len(row.unique()) <= 4 for row in rows)
    assert len(rows.unique()) > 4
    whole, _ = done(base, Cluster(levels=4))
    error = [(m[2].weight - base[2].weight).norm() for m in (model, whole)]
    assert error[0] < error[1]


def test_a_layer_with_no_more_values_than_levels_keeps_its_answers():
    base = net()
    for layer in (base[0], base[2], base[4]):
        layer.weight.data = (layer.weight.data * 20).round() / 20
    model, plans = done(base, Cluster(levels=16))
    assert len(plans[0].changes) == 3
    assert torch.equal(model(DATA.batch["x"]), base(DATA.batch["x"]))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_keeps_shared_weights_shared(kind):
    model, _ = done(net(), Cluster(levels=8))
    codes = model[2].parametrizations.weight[0].indices.clone()
    before = model[2].weight.detach().clone()
    train(model, OPTIMIZERS[kind](model.parameters()))
    after = model[2].weight.detach()
    assert not torch.allclose(after, before)
    assert len(after.unique()) <= 8
    for code in codes.unique():
        assert len(after.view(codes.shape)[codes == code].unique()) == 1


def test_the_gradient_of_a_shared_value_is_the_sum_of_its_weights():
    base = net()
    model, _ = done(base, Cluster(levels=8, include=("2",)))
    plain = bake(model)
    for m in (model, plain):
        m(DATA.batch["x"]).square().mean().backward()
    codes = model[2].parametrizations.weight[0].indices.view(-1).long()
    summed = torch.zeros(8).index_add_(0, codes, plain[2].weight.grad.view(-1))
    assert torch.allclose(model[2].parametrizations.weight.original.grad[0], summed, atol=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_a_mask_is_kept_by_clustering_and_by_training_after_it(kind, per):
    masked, _ = done(net(), Mask(sparsity=0.75))
    zero = masked[2].weight.detach() == 0
    model, _ = done(masked, Cluster(levels=8, per=per))
    assert torch.equal(model[2].weight == 0, zero)
    train(model, OPTIMIZERS[kind](model.parameters()))
    assert (model[2].weight[zero] == 0).all()
    assert (model[2].weight[~zero] != 0).any()


def file_bytes(path):
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118 - it is no dict


@pytest.mark.parametrize(
    ("levels", "per"), [(2, "tensor"), (5, "tensor"), (256, "tensor"), (2, "channel"), (16, "channel")]
)
def test_the_file_weighs_what_the_arithmetic_says(levels, per, tmp_path):
    base = nn.Sequential(nn.Linear(500, 900), nn.Linear(900, 300)).eval()
    data = Evidence(batch={"x": torch.randn(4, 500)})
    found = plan(base, Cluster(levels=levels, per=per), data)
    model = apply(base, found)
    save_model(tmp_path, model, lineage={"base": {}}, card="", operations=[found])
    expected = 4 * (900 + 300)
    for out, width in ((900, 500), (300, 900)):
        books = out if per == "channel" else 1
        expected += books * levels * 4 + math.ceil(out * width * math.ceil(math.log2(levels)) / 8)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert file_bytes(tmp_path / "model.safetensors") == expected == stored_bytes(model)
    assert size == pytest.approx(expected, rel=0.01)
    again = lb.load(tmp_path, into=base)
    assert torch.equal(again(data.batch["x"]), model(data.batch["x"]))


def test_after_training_it_is_saved_and_loaded_the_same(tmp_path):
    base = net()
    model, plans = done(base, Mask(sparsity=0.5), Cluster(levels=7, per="channel"))
    train(model, OPTIMIZERS["adamw"](model.parameters()))
    save_model(tmp_path, model, lineage={"base": {}}, card="", operations=plans)
    again = lb.load(tmp_path, into=net(seed=9)).eval()
    assert torch.equal(again(DATA.batch["x"]), model(DATA.batch["x"]))


def test_baked_it_is_a_plain_model_with_the_same_answers():
    model, _ = done(net(), Cluster(levels=8))
    plain = bake(model)
    assert type(plain[0]) is nn.Linear
    assert plain.state_dict().keys() == net().state_dict().keys()
    assert torch.equal(plain(DATA.batch["x"]), model(DATA.batch["x"]))
    assert len(model[0].weight.unique()) == 8  # the other one is as it was


def test_what_is_left_alone_says_why():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out, self.small = nn.Embedding(40, 8), nn.Linear(8, 40), nn.Linear(40, 1)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(40, 40))
            self.out.weight = self.embed.weight

        def forward(self, x):
            return self.small(self.normed(self.out(self.embed(x)).mean(1)))

    data = Evidence(batch={"x": torch.zeros(2, 3, dtype=torch.long)})
    found = plan(Tied(), Cluster(levels=256), data)
    why = {left.at: left.why for left in found.left}
    assert "tied" in why["embed"]
    assert "tied" in why["out"]
    assert "no fewer bytes" in why["small"]
    assert "another parametrisation" in why["normed"]
    shared, _ = done(net(), Cluster(levels=8))
    assert all("shared already" in left.why for left in plan(shared, Cluster(levels=4), DATA).left)


@pytest.mark.parametrize("levels", [0, 1, 257])
def test_levels_that_mean_nothing_are_refused(levels):
    with pytest.raises(ConfigError, match="2 to 256"):
        Cluster(levels=levels)


def test_a_new_weight_is_taken_as_the_nearest_that_shares():
    model, _ = done(net(), Cluster(levels=8, include=("2",)))
    codes = model[2].parametrizations.weight[0].indices.view(-1).numpy()
    new = torch.randn(64, 64)
    model[2].weight = new
    means = np.array([new.view(-1).double().numpy()[codes == code].mean() for code in range(8)])
    assert np.allclose(model[2].weight.detach().view(-1).numpy(), means[codes], atol=1e-6)
