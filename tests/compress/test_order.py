"""Operations in an order that a search would refuse: by hand each does what it still can, and says what it left."""

import pytest
import torch
from torch import nn

from limbeck.compress import OPS, Cluster, Factorize, Features, Mask, Merge, MergeUnits, Prune, apply, plan, replay
from limbeck.compress.base import Evidence

MADE = {"prune": Prune(), "merge_units": MergeUnits(), "merge": Merge(), "factorize": Factorize(rank=4),
        "mask": Mask(sparsity=0.5), "cluster": Cluster(), "features": Features(by="ablation")}  # fmt: skip
PAIRS = [(a, b) for a in MADE for b in MADE if a not in OPS[b].follows]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_step_that_may_not_follow_is_still_whole_by_hand(first, second):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)).eval()
    x, y = torch.randn(64, 12), torch.randint(0, 5, (64,))
    evidence = Evidence({"x": x, "y": y}, batches=lambda: iter([{"x": x, "y": y}]))
    begun = plan(base, MADE[first], evidence)
    changed = apply(base, begun)
    found = plan(changed, MADE[second], evidence)
    done = apply(changed, found)
    size = sum(parameter.numel() for parameter in done.parameters())
    assert size == found.after.parameters <= found.before.parameters
    assert found.changes or found.left or torch.equal(done(x), changed(x))
    assert torch.equal(done(x), replay(base, [begun, found])(x))
    done(x).sum().backward()


def test_there_are_such_orders():
    assert ("mask", "prune") in PAIRS
    assert ("cluster", "factorize") in PAIRS
