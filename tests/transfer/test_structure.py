"""Students made from their teachers' structure, over every kind of network."""

import copy
import functools
import json
import math

import pytest
import torch
from nets import NETS, made
from torch import nn
from torch.nn import functional as F

from limbeck.compress import Evidence, Prune, apply, plan, read_plan, replay
from limbeck.core.errors import ConfigError, DataError, ModelError
from limbeck.core.setting import as_plain
from limbeck.evaluation.macs import count_macs
from limbeck.models import CifarResNet
from limbeck.transfer import outline, shrink

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


@functools.cache
def halved(name):
    """A teacher, its batch, and a student of half its width. Not to be changed."""
    teacher, batch = made(name)
    return teacher, batch, shrink(teacher, width=0.5, seed=1)


def inputs_of(batch):
    return {key: value for key, value in batch.items() if key != "y"}


def answer(model, batch):
    inputs = inputs_of(batch)
    output = model(**inputs) if "input_ids" in inputs else model(*inputs.values())
    return output if isinstance(output, torch.Tensor) else output.logits


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", NETS)
def test_at_one_it_has_the_teachers_shapes_and_other_weights(name):
    teacher, batch = made(name)
    before = copy.deepcopy(teacher.state_dict())
    state = torch.random.get_rng_state()
    student = shrink(teacher, width=1.0, depth=1.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(student) is type(teacher)
    assert shapes(student) == shapes(teacher)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not teacher.training
    pairs = zip(student.named_parameters(), teacher.parameters(), strict=True)
    assert not any(torch.equal(ours, theirs) for (_, ours), theirs in pairs)
    assert answer(student, batch).shape == answer(teacher, batch).shape


@pytest.mark.parametrize("name", NETS)
def test_half_its_width_is_what_pruning_a_half_of_every_layer_leaves(name):
    teacher, batch, student = halved(name)
    evidence = Evidence(batch=batch)
    pruned = apply(teacher, plan(teacher, Prune(criterion="random", ratio=0.5, scope="layer"), evidence))
    assert shapes(student) == shapes(pruned)
    made_from = outline(student)
    assert made_from.plan.after.parameters == sum(p.numel() for p in student.parameters())
    assert made_from.plan.after.parameters < made_from.plan.before.parameters


@pytest.mark.parametrize("name", NETS)
def test_nothing_is_shared_the_plan_is_plain_data_and_it_trains(name):
    teacher, batch, student = halved(name)
    student = copy.deepcopy(student)
    own = {t.untyped_storage().data_ptr() for t in (*student.parameters(), *student.buffers())}
    assert not own & {t.untyped_storage().data_ptr() for t in (*teacher.parameters(), *teacher.buffers())}
    again = read_plan(json.loads(json.dumps(as_plain(outline(student).plan))))
    fresh = replay(made(name, seed=3)[0], [as_plain(again)])
    fresh.load_state_dict(student.state_dict())
    assert torch.equal(answer(fresh.eval(), batch), answer(student.eval(), batch))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    target = torch.ones_like(answer(student, batch))
    losses = []
    for _ in range(4):
        loss = F.mse_loss(answer(student, batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["conv", "lstm", "encoder", "bert", "llama", "resnet"])
def test_the_seed_decides_the_weights(name):
    teacher, _, student = halved(name)
    torch.manual_seed(99)  # the global state says nothing
    same, other = shrink(teacher, width=0.5, seed=1), shrink(teacher, width=0.5, seed=2)
    assert all(
        torch.equal(a, b) for a, b in zip(student.state_dict().values(), same.state_dict().values(), strict=True)
    )
    assert any(
        not torch.equal(a, b) for a, b in zip(student.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_heads_go_by_their_own_share():
    teacher, _ = made("encoder")
    few = shrink(teacher, width=1.0, heads=0.5)
    assert few.layers[0].self_attn.num_heads == 2
    assert few.layers[0].linear1.out_features == 10
    many = shrink(teacher, width=0.5, heads=1.0)
    assert many.layers[0].self_attn.num_heads == 4
    assert many.layers[0].linear1.out_features == 5
    for name in ("own attention", "grouped-query attention", "multihead attention"):
        cuts = outline(shrink(made(name)[0], width=0.5)).cuts
        assert sorted(cut.of for cut in cuts) == ["heads", "units"]
    for name in ("grouped", "norms", "conv", "lstm", "depthwise", "squeeze and excitation"):
        assert {cut.of for cut in outline(halved(name)[2]).cuts} == {"units"}


def test_blocks_are_left_out_evenly_and_counts_follow():
    torch.manual_seed(0)
    teacher = CifarResNet(depth=32).build((3, 32, 32), 10)
    student = shrink(teacher, depth=0.5)
    # five blocks a stage; the first of the second and third widen it, and only the four behind are alike
    assert [len(stage) for stage in (student.layer1, student.layer2, student.layer3)] == [3, 3, 3]
    assert [(s.path, s.kept, s.total) for s in outline(student).stacks] == [
        ("layer1", (0, 2, 4), 5), ("layer2", (0, 3), 4), ("layer3", (0, 3), 4),
    ]  # fmt: skip
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 4)
    small = shrink(encoder, depth=0.25)
    assert small.num_layers == len(small.layers) == 1


def test_where_the_code_counts_on_its_blocks_something_stands_in_their_place():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

        def forward(self, x):
            for at in range(4):
                x = x + self.blocks[at](x)
            return x

    student = shrink(Counted(), depth=0.5)
    assert [type(block).__name__ for block in student.blocks] == ["Linear", "Skip", "Skip", "Linear"]
    assert student(torch.randn(2, 6)).shape == (2, 6)


@pytest.mark.parametrize("name", ["conv", "residual", "encoder"])
@pytest.mark.parametrize("what", ["macs", "parameters"])
def test_a_budget_takes_the_widest_network_that_meets_it(name, what):
    teacher, batch = made(name)
    student = shrink(teacher, **{what: 0.7})
    made_from = outline(student)
    total = getattr(made_from.plan.before, what)
    assert getattr(made_from.plan.after, what) <= 0.7 * total
    wider = [n / 48 for n in range(1, 49) if n / 48 > made_from.width]
    sizes = [getattr(outline(shrink(teacher, width=w)).plan.after, what) for w in wider[:3]]
    now = getattr(made_from.plan.after, what)
    assert all(size == now or size > 0.7 * total for size in sizes)
    if what == "parameters":
        assert shapes(shrink(teacher, parameters=int(0.7 * total))) == shapes(student)
        with pytest.raises(ConfigError, match="are left; "):
            shrink(teacher, parameters=0.001)
    else:
        example = tuple(inputs_of(batch).values())
        absolute = shrink(teacher, macs=0.7 * count_macs(teacher, example), example=example)
        assert count_macs(absolute, example) <= 0.7 * count_macs(teacher, example)


def test_a_hugging_face_configuration_follows_and_rebuilds(tmp_path):
    teacher, batch = made("llama")
    student = shrink(teacher, width=0.5, depth=0.5)
    config = student.config
    found = (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
    assert found == (1, 2, 1, 5)
    assert teacher.config.num_hidden_layers == 2
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    assert torch.equal(answer(again.eval(), batch), answer(student.eval(), batch))
    assert math.isclose(float(student.model.embed_tokens.weight.detach().std()), config.initializer_range, rel_tol=0.3)


def test_where_no_configuration_says_it_that_is_told():
    teacher, _ = made("bert")
    student = shrink(teacher, width=0.5, depth=0.5)
    assert any(left.at == "config" and "heads=1.0" in left.why for left in outline(student).left)
    assert student.config.num_hidden_layers == len(student.bert.encoder.layer) == 1


def test_running_statistics_and_bare_parameters_begin_again():
    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8)
            self.token = nn.Parameter(3 + 0.5 * torch.randn(1, 1, 8))
            self.scale = nn.Parameter(torch.full((8,), 0.1))
            self.up, self.down = nn.Linear(8, 20), nn.Linear(20, 2)

        def forward(self, x):
            x = self.bn(self.conv(x)).flatten(2).transpose(1, 2) * self.scale
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            return self.down(self.up(x[:, 0] + x[:, 1]).relu())

    torch.manual_seed(0)
    teacher = Vision()
    teacher(torch.randn(8, 3, 32, 32))
    teacher.eval().requires_grad_(False)
    student = shrink(teacher)
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert torch.equal(student.bn.running_mean, torch.zeros(8))
    assert torch.equal(student.scale, teacher.scale)  # a constant is how it was made
    assert not torch.equal(student.token, teacher.token)
    assert 2 < float(student.token.detach().mean()) < 4


def test_an_example_is_asked_for_where_none_is_found():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, y):
            return self.b(self.a(x).relu() + self.a(y).relu())

    with pytest.raises(ModelError, match="give a batch of a few samples: example=x"):
        shrink(Two(), width=0.5)
    student = shrink(Two(), width=0.5, example=(torch.randn(4, 3), torch.randn(4, 3)))
    assert student.a.out_features == 2
    assert student.b.in_features == 2
    with pytest.raises(DataError, match="holds no tensor"):
        shrink(Two(), width=0.5, example="three")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 0}, "is not above zero"), ({"depth": 1.5}, "is above 1"), ({"heads": -1}, "is not above zero"),
        ({"macs": 0.5, "width": 0.5}, "each say how wide"), ({"macs": 0.5, "parameters": 0.5}, "each say how wide"),
        ({"macs": 1e6}, "means nothing without the size"), ({"parameters": math.nan}, "not a finite number"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        shrink(made("conv")[0], **settings)


def test_only_what_shrink_made_has_an_outline():
    with pytest.raises(ModelError, match="was not made by `shrink`"):
        outline(nn.Linear(2, 2))
    told = str(outline(halved("residual")[2]))
    assert "stem: 3 of 6 units" in told
    assert "whole: head: it is what the network returns" in told
    assert outline(copy.deepcopy(halved("residual")[2])) == outline(halved("residual")[2])
