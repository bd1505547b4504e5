"""A compressed model's folder: rebuilt from the user's constructor, or refused with what is wrong with it."""

import json

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.compress import Cluster, Evidence, Factorize, Mask, Merge, apply, plan
from limbeck.core.errors import CheckpointError
from limbeck.export import save_model
from limbeck.models import MLP


def net():
    return nn.Sequential(
        nn.Linear(30, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)
    )


X = torch.randn(16, 30, generator=torch.Generator().manual_seed(0))
CHAIN = (Merge(), Factorize(rank=6, include=("3",)), Mask(sparsity=0.5), Cluster(levels=8))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model, plans = net().eval(), []
    for op in CHAIN:
        plans.append(plan(model, op, Evidence(batch={"x": X})))
        model = apply(model, plans[-1])
    save_model(tmp_path, model, lineage={"base": {"class": "Sequential"}}, card="", operations=plans)
    return tmp_path, model


def test_a_chain_is_loaded_into_a_base_that_stays_as_it_is(saved):
    folder, model = saved
    base = net().eval()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    again = lb.load(folder, into=base)
    assert torch.equal(again(X), model(X))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    assert not any(t.is_meta for t in again.state_dict().values())
    assert all(p.requires_grad for p in again.parameters())


def test_the_lineage_holds_the_plans_in_their_order(saved):
    folder, _ = saved
    lineage = json.loads((folder / "lineage.json").read_text())
    assert [entry["op"]["kind"] for entry in lineage["operations"]] == ["merge", "factorize", "mask", "cluster"]


def test_a_network_of_our_own_needs_no_base(tmp_path):
    model = MLP(hidden=(24,)).build((30,), 3).eval()
    found = plan(model, Factorize(rank=3), Evidence(batch={"x": X}))
    small = apply(model, found)
    base = {"model": {"kind": "mlp", "hidden": [24]}, "shape": [30], "classes": 3}
    save_model(tmp_path, small, lineage={"base": base}, card="", operations=[found])
    assert torch.equal(lb.load(tmp_path).eval()(X), small(X))


def test_a_buffer_that_no_file_holds_keeps_the_base_s_values(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(30, 30), nn.Linear(30, 3)
            self.register_buffer("scale", torch.full((30,), 2.0), persistent=False)

        def forward(self, x):
            return self.last(self.first(x) * self.scale)

    model = Scaled().eval()
    found = plan(model, Mask(sparsity=0.5), Evidence(batch={"x": X}))
    small = apply(model, found)
    save_model(tmp_path, small, lineage={"base": {}}, card="", operations=[found])
    assert torch.equal(lb.load(tmp_path, into=Scaled())(X), small(X))


def damage(folder, change):
    file = folder / "lineage.json"
    lineage = json.loads(file.read_text())
    change(lineage)
    file.write_text(json.dumps(lineage))


DAMAGE = {
    "no list": (lambda x: x.update(operations={"a": 1}), "no list"),
    "no plan": (lambda x: x["operations"].__setitem__(0, {"kind": "merge"}), "plan"),
    "an edit nobody knows": (lambda x: x["operations"][0]["changes"][0].update(edit="melt"), "no edit 'melt'"),
    "a layer that is not there": (lambda x: x["operations"][1]["changes"][0].update(at="9"), "no layer '9'"),
    "a setting missing": (lambda x: x["operations"][1]["changes"][0].update(detail={}), "rank"),
    "a setting of another kind": (
        lambda x: x["operations"][1]["changes"][0].update(detail={"rank": "six"}),
        "replayed",
    ),
    "a setting too much": (lambda x: x["operations"][1]["changes"][0]["detail"].update(os="x"), "os"),
    "a step left out": (lambda x: x["operations"].pop(1), "replayed"),
    "another size": (lambda x: x["operations"][1]["changes"][0]["detail"].update(rank=7), "cannot be loaded"),
    "other levels": (lambda x: x["operations"][3]["changes"][0]["detail"].update(levels=9), "cannot be loaded"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_lineage_is_refused_with_what_is_wrong_and_how_to_mend_it(case, saved):
    folder, _ = saved
    change, said = DAMAGE[case]
    damage(folder, change)
    with pytest.raises(CheckpointError, match=said) as caught:
        lb.load(folder, into=net())
    assert str(folder) in str(caught.value)
    assert "To mend" in str(caught.value)
    assert caught.value.__cause__ is None


def test_another_base_is_refused(saved):
    folder, _ = saved
    for other in (nn.Linear(30, 3), nn.Sequential(nn.Linear(30, 40)), nn.Sequential(*[nn.Linear(30, 30)] * 6)):
        with pytest.raises(CheckpointError, match="To mend"):
            lb.load(folder, into=other)


def test_a_file_cut_short_and_one_of_plain_weights_are_refused(saved):
    folder, _ = saved
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        lb.load(folder, into=net())
    save_model(folder / "plain", net(), lineage={"base": {}}, card="")
    file.write_bytes((folder / "plain" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="lacks"):
        lb.load(folder, into=net())
