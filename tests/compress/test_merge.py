"""Layers that amount to one are made one with the same answers, and checkpoints are averaged as by hand."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from limbeck.compress import Cluster, Evidence, Merge, apply, average, plan
from limbeck.core.errors import CheckpointError, ConfigError, ModelError, ShapeError


def trained(model, seed=0):
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    return model.double().eval()


def of(shape, seed=1):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Evidence(batch={"x": x})


def merged(model, shape, op=None):
    """The merged model and its plan, after checking that the answers are the same."""
    data = of(shape)
    found = plan(model, op or Merge(), data)
    small = apply(model, found).eval()
    other = of(shape, seed=2).batch["x"]
    with torch.no_grad():
        for x in (data.batch["x"], other):
            torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    return small, found


def count(model):
    return sum(p.numel() for p in model.parameters())


ROW, IMAGE = (5, 12), (2, 6, 9, 9)
ONE = {
    "norm after a convolution": (lambda: [nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)], IMAGE),
    "norm after a linear layer": (lambda: [nn.Linear(12, 8), nn.BatchNorm1d(8)], ROW),
    "linear, linear": (lambda: [nn.Linear(12, 20), nn.Linear(20, 8)], ROW),
    "linear without biases": (lambda: [nn.Linear(12, 20, bias=False), nn.Linear(20, 8, bias=False)], ROW),
    "linear with one bias": (lambda: [nn.Linear(12, 20), nn.Linear(20, 8, bias=False)], ROW),
    "linear on tokens": (lambda: [nn.Linear(12, 20), nn.Linear(20, 8)], (3, 4, 12)),
    "dropout between": (lambda: [nn.Linear(12, 20), nn.Dropout(), nn.Linear(20, 8)], ROW),
    "three": (lambda: [nn.Linear(12, 20), nn.Linear(20, 30), nn.Linear(30, 8)], ROW),
    "1×1, 3×3": (lambda: [nn.Conv2d(6, 20, 1), nn.Conv2d(20, 7, 3)], IMAGE),
    "1×1 without bias, padded": (lambda: [nn.Conv2d(6, 20, 1, bias=False), nn.Conv2d(20, 7, 3, padding=1)], IMAGE),
    "1×1, same": (lambda: [nn.Conv2d(6, 20, 1, bias=False), nn.Conv2d(20, 7, 3, padding="same")], IMAGE),
    "1×1, reflected": (
        lambda: [nn.Conv2d(6, 20, 1), nn.Conv2d(20, 7, 3, padding=1, padding_mode="reflect", stride=2)], IMAGE,
    ),
    "3×3, 1×1": (lambda: [nn.Conv2d(6, 20, 3, padding=1, stride=2), nn.Conv2d(20, 7, 1)], IMAGE),
    "1×1, 1×1": (lambda: [nn.Conv1d(6, 20, 1), nn.Conv1d(20, 7, 1)], (2, 6, 9)),
    "1×1, norm, 3×3": (lambda: [nn.Conv2d(6, 20, 1), nn.BatchNorm2d(20), nn.Conv2d(20, 7, 3)], IMAGE),
    "3×3, norm, 1×1, norm": (
        lambda: [nn.Conv2d(6, 20, 3, dilation=2), nn.BatchNorm2d(20), nn.Conv2d(20, 7, 1), nn.BatchNorm2d(7)], IMAGE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE)
def test_what_amounts_to_one_layer_becomes_one(case):
    make, shape = ONE[case]
    model = trained(nn.Sequential(*make(), nn.ReLU(), nn.Flatten(1)))
    small, found = merged(model, shape)
    layers = [m for m in small.modules() if list(m.parameters(recurse=False))]
    assert len(layers) == 1
    assert found.after.parameters == count(small) < count(model)


class Wired(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(12, 12), nn.Linear(12, 12), how

    def forward(self, x):
        return self.how(self, x)


KEPT = {
    "activation between": lambda m, x: m.b(m.a(x).relu()),
    "read twice": lambda m, x: m.b(y := m.a(x)) + y,
    "written between": lambda m, x: m.b(m.a(x).add_(1)),
    "called twice": lambda m, x: m.b(m.a(m.a(x))),
    "second called twice": lambda m, x: m.b(m.b(m.a(x))),
    "weight read elsewhere": lambda m, x: m.b(m.a(x)) + m.a.weight.mean(),
    "scaled between": lambda m, x: m.b(2 * m.a(x)),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_not_one_map_stays_two(case):
    small, found = merged(trained(Wired(KEPT[case])), ROW)
    assert found.changes == ()
    assert isinstance(small.b, nn.Linear)


APART = {
    "a bottleneck": ([nn.Linear(12, 3), nn.Linear(3, 12)], ROW, "weigh less"),
    "a bias in front of zeros": ([nn.Conv2d(6, 20, 1), nn.Conv2d(20, 7, 3, padding=1)], IMAGE, "zeros"),
    "groups": ([nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 7, 1)], IMAGE, "grouped"),
    "two kernels": ([nn.Conv2d(6, 6, 3), nn.Conv2d(6, 7, 3)], IMAGE, "1×1"),
    "a 1×1 with stride": ([nn.Conv2d(6, 20, 1, stride=2), nn.Conv2d(20, 7, 3)], IMAGE, "1×1"),
}


@pytest.mark.parametrize("case", APART)
def test_what_is_better_or_only_right_apart_is_left_and_said(case):
    layers, shape, why = APART[case]
    _, found = merged(trained(nn.Sequential(*layers)), shape)
    assert found.changes == ()
    assert why in found.left[0].why


def test_the_kinds_and_the_paths_can_be_chosen():
    model = trained(nn.Sequential(nn.Conv2d(6, 20, 1), nn.BatchNorm2d(20), nn.Conv2d(20, 7, 3), nn.BatchNorm2d(7)))
    assert [c.edit for c in merged(model, IMAGE, Merge(what=("norm",)))[1].changes] == ["fold_norm", "fold_norm"]
    assert [c.at for c in merged(model, IMAGE, Merge(exclude=("2",)))[1].changes] == ["0", "0"]


def test_a_plan_of_another_model_is_refused():
    model = trained(nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 8)))
    found = plan(model, Merge(), of(ROW))
    with pytest.raises(ModelError, match="no layer '1'"):
        apply(nn.Sequential(nn.Linear(12, 20)), found)


def test_checkpoints_are_averaged_as_by_hand(tmp_path):
    nets = [trained(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), seed).float() for seed in range(3)]
    for i, net in enumerate(nets):
        net[1].num_batches_tracked.fill_(7 - i)
        nn.init.normal_(net[0].weight)
    save_file(nets[1].state_dict(), tmp_path / "one.safetensors")
    (tmp_path / "two").mkdir()
    save_file(nets[2].state_dict(), tmp_path / "two" / "model.safetensors")
    given = [nets[0].state_dict(), tmp_path / "one.safetensors", str(tmp_path / "two")]
    mean = average(given)
    by_hand = np.mean([net[0].weight.detach().numpy() for net in nets], axis=0)
    assert np.allclose(mean["0.weight"].numpy(), by_hand, atol=1e-7)
    assert mean["0.weight"].dtype == torch.float32
    assert int(mean["1.num_batches_tracked"]) == 7
    weighed = average(given, [2, 1, 1])
    by_hand = np.average([net[1].running_var.numpy() for net in nets], axis=0, weights=[2, 1, 1])
    assert np.allclose(weighed["1.running_var"].numpy(), by_hand, atol=1e-7)
    same = average([nets[0].state_dict()] * 3)
    assert all(torch.equal(value, nets[0].state_dict()[name]) for name, value in same.items())
    nets[1].load_state_dict(mean)


def test_checkpoints_that_do_not_belong_together_are_refused(tmp_path):
    one = nn.Linear(3, 4).state_dict()
    with pytest.raises(ShapeError, match=r"weight is \(4, 3\) in the first checkpoint and \(5, 3\) in number 2"):
        average([one, nn.Linear(3, 5).state_dict()])
    with pytest.raises(ShapeError, match=r"bias is \(4,\) in the first checkpoint and missing in number 3"):
        average([one, one, nn.Linear(3, 4, bias=False).state_dict()])
    with pytest.raises(ShapeError, match="missing in the first"):
        average([nn.Linear(3, 4, bias=False).state_dict(), one])
    for weights in ([1.0], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]):
        with pytest.raises(ConfigError, match="To mend"):
            average([one, one], weights)
    with pytest.raises(ConfigError, match="no checkpoint"):
        average([])
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    for path in (tmp_path / "none.safetensors", tmp_path / "bad.safetensors"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            average([path])


def test_codes_of_different_codebooks_are_not_averaged():
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(12, 20))
        states.append(
            apply(model, plan(model, Cluster(levels=4), Evidence(batch={"x": torch.ones(1, 12)}))).state_dict()
        )
    with pytest.raises(ShapeError, match="bake"):
        average(states)
