"""Blocks that change nothing go first, and what the code needs stays."""

import copy
import json

import pytest
import torch
from nets import made
from torch import nn
from torch.nn import functional as F

from limbeck.compress import Depth, Evidence, apply, plan, read_plan, replay
from limbeck.compress.base import _size
from limbeck.compress.depth import change_of
from limbeck.core.errors import ConfigError
from limbeck.core.setting import as_plain


class Block(nn.Module):
    def __init__(self, strength):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        with torch.no_grad():
            self.inner.weight.mul_(strength)
            self.inner.bias.zero_()

    def forward(self, x, scale=1.0):
        return x + scale * self.inner(x).tanh()


class Net(nn.Module):
    """Four blocks, of which the third does nothing and the second little; the fourth is called with more."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(Block(strength) for strength in (2.0, 0.1, 0.0, 4.0))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x)
        for index, block in enumerate(self.blocks):
            x = block(x, scale=0.5) if index in (1, 3) else block(x)
        return self.head(x)


def net():
    torch.manual_seed(0)
    return Net().eval(), Evidence(batch={"x": torch.randn(4, 5)}, batches=lambda: [{"x": torch.randn(4, 5)}])


def gone(found):
    return [change.at for change in found.changes]


def test_what_changes_least_goes_first():
    model, evidence = net()
    assert gone(plan(model, Depth(count=1), evidence)) == ["blocks.2"]
    assert gone(plan(model, Depth(ratio=0.5), evidence)) == ["blocks.1", "blocks.2"]
    assert gone(plan(model, Depth(ratio=0.49), evidence)) == ["blocks.2"]
    assert not plan(model, Depth(ratio=0.0), evidence).changes
    x = torch.randn(7, 5)
    assert torch.equal(apply(model, plan(model, Depth(count=1), evidence))(x), model(x))  # it did nothing


def test_an_identity_stands_in_their_place_and_takes_what_they_took():
    model, evidence = net()
    found = plan(model, Depth(count=2), evidence)
    small = apply(model, found)
    assert type(small.blocks[2]) is nn.Identity
    assert isinstance(small.blocks[1], nn.Identity)  # one that takes `scale` too
    x = torch.randn(7, 5)
    by_hand = model.blocks[3](model.blocks[0](model.first(x)), scale=0.5)
    assert torch.allclose(small(x), model.head(by_hand))


def test_the_change_of_a_block_is_one_less_the_cosine():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert change_of(a, b).tolist() == pytest.approx([0.0, 1 - 2**-0.5])


def test_patterns_name_what_may_go():
    model, evidence = net()
    assert gone(plan(model, Depth(count=1, exclude=("blocks.2",)), evidence)) == ["blocks.1"]
    assert gone(plan(model, Depth(count=4, include=("blocks.0", "blocks.3")), evidence)) == ["blocks.0", "blocks.3"]
    assert gone(plan(model, Depth(count=1, include=("*.inner",)), evidence)) == ["blocks.0.inner"]
    assert not plan(model, Depth(count=1, include=("first",)), evidence).changes  # it widens
    with pytest.raises(ConfigError, match="'block' fits no layer"):
        plan(model, Depth(include=("block",)), evidence)


def test_what_has_gone_does_not_go_again():
    model, evidence = net()
    which = {"include": ("blocks.[12]",)}
    less = apply(model, plan(model, Depth(count=1, **which), evidence))
    assert gone(plan(less, Depth(ratio=1.0, **which), evidence)) == ["blocks.1"]
    none = apply(model, plan(model, Depth(ratio=1.0, **which), evidence))
    assert plan(none, Depth(ratio=1.0, **which), evidence).changes == ()


def test_blocks_of_a_residual_network_go_and_those_that_widen_stay():
    from limbeck.models.resnet import ResNet

    torch.manual_seed(0)
    model = ResNet(3, 2, 1, 4).eval()
    evidence = Evidence(batch={"x": torch.randn(2, 3, 8, 8)})
    found = plan(model, Depth(ratio=1.0), evidence)
    assert set(gone(found)) == {"layer1.0", "layer1.1", "layer2.1", "layer3.1"}


def test_where_the_code_needs_a_block_it_is_left():
    class Needs(Net):
        def forward(self, x):
            return super().forward(x) + self.blocks[2].inner.bias.sum()

    torch.manual_seed(0)
    model = Needs().eval()
    found = plan(model, Depth(count=1), Evidence(batch={"x": torch.randn(4, 5)}))
    assert gone(found) == ["blocks.1"]
    assert [left.at for left in found.left] == ["blocks.2"]
    assert "the network's code relies on it" in found.left[0].why


@pytest.mark.parametrize(("name", "count"), [("resnet", 1), ("encoder", 1), ("llama", 1), ("bert", 1)])
def test_laws(name, count):
    model, batch = made(name)
    before = copy.deepcopy(model.state_dict())
    evidence = Evidence(batch=batch)
    found = plan(model, Depth(count=count), evidence)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(found.changes) == count
    assert read_plan(json.loads(json.dumps(as_plain(found)))) == found
    small = apply(model, found)
    assert found.after == _size(small, evidence)
    assert found.after.parameters < found.before.parameters
    fresh = replay(made(name, seed=1)[0], [as_plain(found)])
    fresh.load_state_dict(small.state_dict())
    inputs = {key: value for key, value in batch.items() if key != "y"}
    call = (lambda m: m(**inputs).logits) if "input_ids" in inputs else (lambda m: m(*inputs.values()))
    assert torch.equal(call(fresh), call(small))
    loss = F.mse_loss(call(small), torch.zeros_like(call(small)))
    loss.backward()
    assert any(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("settings", [{"ratio": 2.0}, {"count": -1}])
def test_what_cannot_be_done_is_told(settings):
    with pytest.raises(ConfigError):
        Depth(**settings)
