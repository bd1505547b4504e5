"""Joined duplicates change nothing; what is nearly a multiple of another is the first to go."""

import json

import pytest
import torch
from nets import NETS, Recurrent, made
from torch import nn

from limbeck.compress import Evidence, MergeUnits, Prune, apply, plan, read_plan, replay
from limbeck.compress.base import _size
from limbeck.compress.merge_units import Heard, fit, pairs
from limbeck.core.errors import ConfigError
from limbeck.core.setting import as_plain

MERGED = [
    "mlp",
    "conv",
    "residual",
    "concat",
    "norms",
    "squeeze and excitation",
    "u-net",
    "lstm",
    "gru",
    "bert",
    "llama",
]


def call(model, batch):
    inputs = {key: value for key, value in batch.items() if key != "y"}
    with torch.no_grad():
        return model(**inputs).logits if "input_ids" in inputs else model(*inputs.values())


def evidence(batch):
    return Evidence(batch=batch, batches=lambda: [batch, batch])


def doubled():
    """An MLP whose hidden units 1 and 4 are the same, and 6 is three times unit 2 (before a ReLU)."""
    model, _ = made("mlp")
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[4] = tensor[1]
            tensor[6] = 3 * tensor[2]
    return model, {"x": torch.randn(64, 5)}


def test_exact_duplicates_and_multiples_go_first_and_the_answers_stay():
    model, batch = doubled()
    found = plan(model, MergeUnits(ratio=0.25, include=("0",)), evidence(batch))
    small = apply(model, found)
    assert small[0].out_features == 6
    joined = found.changes[0].detail
    assert {tuple(sorted(pair)) for pair in zip(joined["gone"], joined["into"], strict=True)} == {(1, 4), (2, 6)}
    assert (call(small, batch) - call(model, batch)).abs().max() < 1e-5
    fresh = {"x": torch.randn(500, 5)}
    assert (call(small, fresh) - call(model, fresh)).abs().max() < 1e-5  # and not on these samples alone


CHANNELS = {
    "conv": ("0", 6, ["1"]),
    "residual": ("conv1", 8, ["bn1"]),
    "squeeze and excitation": ("conv", 8, ["bn", "excite"]),
    "u-net": ("down1", 4, []),
    "concat": ("left", 4, []),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_duplicate_channels_of_convolutions_are_joined_without_change(name):
    first, count, besides = CHANNELS[name]
    model, batch = made(name)
    layers = dict(model.named_modules())
    with torch.no_grad():
        for path in (first, *besides):
            for tensor in (*layers[path].parameters(), *layers[path].buffers()):
                if tensor.dim():
                    tensor[2] = tensor[0]
    found = plan(model, MergeUnits(ratio=1 / count, include=(first,)), evidence(batch))
    assert any(change.edit == "join" for change in found.changes)
    wanted = call(model, batch)
    assert (call(apply(model, found), batch) - wanted).abs().max() < 1e-5 * wanted.abs().max().clamp_min(1)
    assert found.after.parameters < found.before.parameters


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_duplicate_hidden_units_are_joined_without_change(kind):
    torch.manual_seed(0)
    model = Recurrent(kind).eval()
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    with torch.no_grad():
        for tensor in model.rnn.parameters():
            for gate in range(gates):
                tensor[8 * gate + 5] = tensor[8 * gate + 3]
    batch = {"x": torch.randint(0, 11, (8, 5))}
    found = plan(model, MergeUnits(ratio=1 / 8, include=("rnn",)), evidence(batch))
    joins = {change.at: change.detail for change in found.changes if change.edit == "join"}
    assert set(joins) == {"head.weight", "rnn.weight_hh_l0"}
    assert {joins["head.weight"]["gone"][0], joins["head.weight"]["into"][0]} == {3, 5}
    assert (call(apply(model, found), batch) - call(model, batch)).abs().max() < 1e-5


def test_joining_is_nearer_than_dropping():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    batch = {"x": torch.randn(256, 5), "y": torch.zeros(256).long()}
    wanted = call(model, batch)
    errors = {}
    for op in (MergeUnits(ratio=0.5), *(Prune(ratio=0.5, criterion=c, scope="layer") for c in ("l2", "activation"))):
        errors[str(op)] = float((call(apply(model, plan(model, op, evidence(batch))), batch) - wanted).square().mean())
    merged, *pruned = errors.values()
    assert merged < 0.5 * min(pruned)


def test_the_fit_is_that_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    units = torch.randn(3, 1, 400, generator=generator, dtype=torch.float64)
    units[1] = 2 * units[0] + 3 + 0.1 * units[1]
    heard = Heard(torch.einsum("ukn,vkn->uv", units, units), units.sum(-1), 400)
    for constant in (True, False):
        heard.constant = constant
        scale, missed = fit(heard)
        design = torch.stack([units[0, 0], torch.ones(400, dtype=torch.float64)][: 1 + constant], 1)
        solved = torch.linalg.lstsq(design, units[1, 0][:, None])
        assert float(scale[1, 0]) == pytest.approx(float(solved.solution[0]))
        rest = (units[1, 0] - (design @ solved.solution)[:, 0]).square().mean()
        assert float(missed[1, 0]) == pytest.approx(float(rest), rel=1e-6)


def test_pairs_are_the_cheapest_that_go_together():
    inf = float("inf")
    costs = torch.tensor([[inf, 1.0, 9.0, 9.0], [2.0, inf, 9.0, 0.5], [9.0, 3.0, inf, 9.0], [9.0, 9.0, 4.0, inf]])
    assert pairs(costs, 1) == [(1, 3)]
    # 0 into 1 is next, but 1 is gone; 1 is gone; 2 into 1: gone; 3 into 2: 3 has been joined into
    assert pairs(costs, 3)[:1] == [(1, 3)]
    assert all(j != i and i not in {j for j, _ in pairs(costs, 3)} for j, i in pairs(costs, 3))


@pytest.mark.parametrize("name", MERGED)
def test_laws(name):
    model, batch = made(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = plan(model, MergeUnits(ratio=0.4), evidence(batch))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    again = read_plan(json.loads(json.dumps(as_plain(found))))
    assert again == found
    assert any(change.edit == "join" for change in found.changes)
    small = apply(model, again)
    assert found.after == _size(small, evidence(batch))
    assert found.after.parameters < found.before.parameters
    fresh = replay(made(name, seed=1)[0], [as_plain(found)])
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(call(fresh, batch), call(small, batch))


@pytest.mark.parametrize("name", ["tied embeddings", "own attention", "depthwise", "encoder"])
def test_what_is_not_only_read_by_sums_is_left(name):
    assert name in NETS
    model, batch = made(name)
    found = plan(model, MergeUnits(ratio=0.4), evidence(batch))
    small = apply(model, found)
    assert call(small, batch).isfinite().all()
    assert found.left


def test_units_that_are_also_summed_elsewhere_are_left():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.make = nn.Linear(5, 8)
            self.read = nn.Linear(8, 3)

        def forward(self, x):
            y = self.make(x)
            return self.read(y) + y.sum(1, keepdim=True)

    batch = {"x": torch.randn(8, 5)}
    found = plan(Sum().eval(), MergeUnits(), evidence(batch))
    assert not found.changes
    assert any("joined duplicates change the answers" in left.why for left in found.left)


def test_zero_strength_changes_nothing_and_nonsense_is_told():
    model, batch = made("mlp")
    assert not plan(model, MergeUnits(ratio=0.0), evidence(batch)).changes
    with pytest.raises(ConfigError, match="no share"):
        MergeUnits(ratio=-0.1)
    with pytest.raises(ConfigError, match="it needs data"):
        plan(model, MergeUnits(), Evidence(batch=batch))
