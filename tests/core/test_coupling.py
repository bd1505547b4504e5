"""Which units hang together: told by hand for each kind of network, and what is unsound is left, with the reason."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.core.coupling import propose
from limbeck.core.proof import TOLERANCE, _Proof, couple, difference

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))

from nets import NETS, made

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

GROUPS = {
    "mlp": {"0": 8, "2": 6},
    "conv": {"0": 6, "3": 4},
    "residual": {"stem": 6, "conv1": 8, "conv2": 10},
    "resnet": {"conv1": 16, "layer1.0.conv1": 16, "layer2.0.conv1": 32, "layer3.0.conv1": 64},
    "concat": {"left": 4, "right": 5},
    "depthwise": {"expand": 8, "project": 6},
    "grouped": {"0": 4},
    "norms": {"conv1": 4, "conv2": 6},
    "squeeze and excitation": {"conv": 8, "squeeze": 4},
    "u-net": {"down1": 4, "down2": 8, "up": 6, "join": 5},
    "own attention": {"attention.qkv": 3, "up": 10},
    "grouped-query attention": {"attention.q": 2, "up": 10},
    "multihead attention": {"attention.inner": 3, "up": 10},
    "multihead attention, three projections": {"attention.inner": 3, "up": 10},
    "encoder layer": {"0.self_attn": 3, "0.linear1": 10},
    "encoder": {f"layers.{i}.{name}": n for i in range(2) for name, n in (("self_attn", 4), ("linear1", 10))},
    "lstm": {"embed": 6, "rnn": 8},
    "lstm, deep, both ways": {"embed": 6, "rnn": 8},
    "lstm with projection": {"embed": 6, "rnn": 8, "rnn#2": 4},
    "gru": {"embed": 6, "rnn": 8},
    "gru, deep, both ways": {"embed": 6, "rnn": 8},
    "plain recurrence": {"embed": 6, "rnn": 8},
    "tied embeddings": {"embed": 6, "mix": 9},
    "bert": {
        **{f"bert.encoder.layer.{i}.attention.self.query": 3 for i in range(2)},
        **{f"bert.encoder.layer.{i}.intermediate.dense": 10 for i in range(2)},
        "bert.pooler.dense": 12,
    },
    "llama": {
        **{f"model.layers.{i}.self_attn.q_proj": 2 for i in range(2)},
        **{f"model.layers.{i}.mlp.gate_proj": 10 for i in range(2)},
    },
}


def found_in(model, *inputs):
    return couple(model.eval(), lambda net: net(*inputs), inputs)


@pytest.mark.parametrize("name", NETS)
def test_the_units_of_every_kind_of_network_are_found(name):
    model, batch = made(name)
    x = batch["x"] if "x" in batch else batch["input_ids"]
    coupling = found_in(model, x)
    assert {group.name: len(group.units) for group in coupling.groups} == GROUPS[name]


def test_members_are_told_by_hand_for_a_residual_network_with_padded_shortcuts():
    model, batch = made("resnet")
    stream = found_in(model, batch["x"]).groups[0]
    index = {(place.tensor, place.dim): [unit[0] for unit in units] for place, units in stream.index.items()}
    first, second, third = list(range(16)), list(range(8, 24)), list(range(24, 40))
    for path in ("bn1", "layer1.0.bn2"):
        assert index[f"{path}.weight", 0] == index[f"{path}.running_mean", 0] == first
    for path, expected in (("conv1", first), ("layer1.0.conv2", first), ("layer2.0.conv2", second)):
        assert index[f"{path}.weight", 0] == expected
    assert index["layer3.0.conv2.weight", 0] == index["linear.weight", 1] == third
    assert index["layer1.0.conv1.weight", 1] == index["layer2.0.conv1.weight", 1] == first
    assert index["layer3.0.conv1.weight", 1] == second
    assert ("layer1.0.conv1.weight", 0) not in index


def test_a_flattened_channel_owns_all_its_pixels():
    model, batch = made("concat")
    left, right = found_in(model, batch["x"]).groups
    spots = {place.tensor: units for place, units in left.index.items()}
    assert spots["head.weight"] == tuple(tuple(range(4 * c, 4 * c + 4)) for c in range(4))
    spots = {place.tensor: units for place, units in right.index.items()}
    assert spots["head.weight"] == tuple(tuple(range(16 + 4 * c, 20 + 4 * c)) for c in range(5))


def test_a_head_owns_its_queries_keys_and_values():
    model, batch = made("own attention")
    heads = found_in(model, batch["x"]).groups[0]
    spots = {(place.tensor, place.dim): units for place, units in heads.index.items()}
    assert spots["attention.qkv.weight", 0][1] == (4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31)
    assert spots["attention.out.weight", 1][1] == (4, 5, 6, 7)


class Net(nn.Module):
    """Five inputs, eight units, three answers; what is between is given."""

    def __init__(self, between, read=8, make=8):
        super().__init__()
        self.make = nn.Linear(5, make)
        self.read = nn.Linear(read, 3)
        self.gate = nn.Parameter(torch.zeros(1))
        self.between = between

    def forward(self, x):
        return self.between(self, self.make(x))


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
SOUND = {
    "turned round": (lambda net, y: net.read(y.flip(-1)), {}),
    "halves": (lambda net, y: net.read(F.glu(y)), {"read": 4}),
    "chunks": (lambda net, y: net.read(y.chunk(2, -1)[0] * y.chunk(2, -1)[1].sigmoid()), {"read": 4}),
    "repeated": (lambda net, y: net.read(y.repeat_interleave(2, -1)), {"read": 16}),
    "outer axes": (lambda net, y: net.read(y[:, None, :, None].expand(-1, 2, -1, 3).mean((1, 3))), {}),
    "einsum": (lambda net, y: torch.einsum("bi,oi->bo", y, net.read.weight), {}),
    "unknown to the rules": (lambda net, y: net.read(F.interpolate(y[..., None], scale_factor=2).amax(-1)), {}),
    "summed": (lambda net, y: net.read(y) + y.sum(-1, keepdim=True), {}),
    "used again": (lambda net, y: net.read(y) + net.read(y.relu()), {}),
    "in place": (lambda net, y: net.read(y.relu_().mul_(2).t_().t_()), {}),
}


@pytest.mark.parametrize("case", SOUND)
def test_order_and_number_are_followed_through_the_code(case):
    between, widths = SOUND[case]
    model = Net(between, **widths)
    coupling = found_in(model, X)
    assert [group.name for group in coupling.groups] == ["make"]
    units = len(coupling.groups[0].units)
    assert units == (4 if widths.get("read") == 4 else 8)
    for gone in ([0], [units - 1], [1, 2], list(range(units - 1))):
        assert difference(model, lambda net: net(X), coupling, {"make": gone}) <= TOLERANCE


UNSOUND = {
    "mean": (lambda net, y: net.read(y) + y.mean(-1, keepdim=True), "not the same as to silence"),
    "mean behind a gate that starts at zero": (
        lambda net, y: net.read(y) + net.gate * y.mean(-1, keepdim=True),
        "not the same as to silence",
    ),
    "summed and not silent at zero": (
        lambda net, y: net.read(y) + y.sigmoid().sum(-1, keepdim=True),
        "not the same as to silence",
    ),
    "softmax": (lambda net, y: net.read(y.softmax(-1)), "softmax runs over them"),
    "layer norm": (lambda net, y: net.read(F.layer_norm(y, (8,))), "a norm runs over them"),
    "rms norm": (lambda net, y: net.read(F.rms_norm(y, (y.shape[-1],))), "not the same as to silence"),
    "width in the code": (lambda net, y: net.read(y.view(-1, 8)), "code fixes how many"),
    "picked by number": (lambda net, y: net.read(y) + y[:, 3:4], "not the same as to silence|code fixes"),
    "turned by so many": (lambda net, y: net.read(y.roll(3, -1)), "not the same as to silence"),
    "returned": (lambda net, y: (net.read(y), y), "it is what the network returns"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_what_is_unsound_is_left_whole_and_the_reason_told(case):
    between, why = UNSOUND[case]
    coupling = found_in(Net(between), X)
    assert not coupling.groups
    assert any(left.at == "make" and re.search(why, left.why) for left in coupling.left)


def test_units_that_meet_the_input_stay_and_the_others_may_go():
    model = Net(lambda net, y: net.read(y) + (y[:, :5] * X).sum(-1, keepdim=True))
    (group,) = found_in(model, X).groups
    assert [unit for place in group.index if place.tensor == "make.weight" for unit in group.index[place]] == [
        (5,), (6,), (7,),
    ]  # fmt: skip


def test_groups_that_only_hold_together_are_not_taken_for_two():
    model, batch = made("mlp")

    def call(net):
        return net(batch["x"])

    proposed = propose(model, call, [batch["x"]])
    first = proposed.groups[0]
    maker, reader = (
        replace(first, name=name, units=units, index={p: i for p, i in first.index.items() if (p.dim == 1) == reads})
        for name, units, reads in (("0", first.units, False), ("2", tuple(-u - 1 for u in first.units), True))
    )
    split = replace(proposed, groups=(maker, reader))
    proof = _Proof(model, call, split)
    proof.settle(list(split.groups), [])
    assert len(proof.accepted) == 2  # of as many units, they were thinned out alike
    assert not proof.holds_apart(split)
    assert proof.holds_apart(proposed)


def test_what_is_proposed_and_false_is_not_accepted():
    model = Net(UNSOUND["mean"][0]).eval()
    assert propose(model, lambda net: net(X), [X]).groups  # the pass alone is taken in
    assert not found_in(model, X).groups


def test_one_bad_group_does_not_spoil_the_good_ones():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.good = nn.Linear(5, 8)
            self.bad = nn.Linear(8, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            y = self.bad(self.good(x).relu())
            return self.head(y) + y.mean(-1, keepdim=True)

    coupling = found_in(Two(), X)
    assert [group.name for group in coupling.groups] == ["good"]
    assert [left.at for left in coupling.left] == ["head", "bad"]


def test_numbers_that_the_code_keeps_follow_and_others_of_the_same_value_do_not():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(5, 6)
            self.hidden = 6
            self.layer_idx = 6
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            h = c = torch.zeros(len(x), self.hidden)
            for _ in range(3):
                h, c = self.cell(x, (h, c))
            return self.head(h)

    coupling = found_in(Cell(), X)
    assert [(count.at, count.name) for count in coupling.counts] == [("", "hidden")]
    assert {group.name: len(group.units) for group in coupling.groups} == {"cell": 6}


def test_heads_as_wide_as_they_are_many_are_not_mistaken():
    from nets import OwnAttention

    attention = OwnAttention(dim=9, heads=3)
    x = torch.randn(2, 5, 9)
    coupling = found_in(attention, x)
    assert {count.name for count in coupling.counts} == {"heads", "inner"}
    assert difference(attention, lambda net: net(x), coupling, {"qkv": [1]}) <= TOLERANCE


def test_looking_leaves_no_trace():
    model, batch = made("resnet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found_in(model, batch["x"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
