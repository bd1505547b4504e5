"""Laws over the whole table of compression operations. What each is tried on is in `op_rows.py`."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from warm import fresh

sys.path.insert(0, str(Path(__file__).parent))
from op_rows import ROWS, base_of, evidence

from limbeck.compress import OPS, apply, plan, read_plan, replay
from limbeck.compress.base import lean
from limbeck.core.setting import as_plain, build, tagged
from limbeck.evaluation.macs import count_macs
from limbeck.export import save_model

EVERY = pytest.mark.parametrize("name", ROWS)
HERE = Path(__file__).parent


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def answers(model, batch):
    model.eval()
    with torch.no_grad():
        return model(batch["x"])


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def planned():
    """Every row's base, evidence and plan, made once."""
    made = {}
    for name, row in ROWS.items():
        base, batch = base_of(name), row.batch()
        made[name] = base, batch, plan(base, row.op, evidence(batch))
    return made


def test_every_operation_of_the_table_has_a_row():
    assert {row.op.kind for row in ROWS.values()} == set(OPS)


@EVERY
def test_it_knows_its_name_and_comes_back_from_plain_data(name):
    op = ROWS[name].op
    assert OPS[op.kind] is type(op)
    assert build(tagged(OPS), json.loads(json.dumps(as_plain(op))), "test") == op
    assert {"data", "labels"} >= op.needs
    assert op.follows <= set(OPS)


@EVERY
def test_a_plan_reads_only(name):
    row = ROWS[name]
    base, batch = base_of(name), row.batch()
    base.train()
    base.requires_grad_(True)
    before, random = copy.deepcopy(base), torch.get_rng_state()
    modules = [(path, type(m), m.training) for path, m in base.named_modules()]
    found = plan(base, row.op, evidence(batch))
    assert found.changes
    apply(base, found)
    assert same_state(base, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert [(path, type(m), m.training) for path, m in base.named_modules()] == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())
    assert all(p.requires_grad and p.grad is None for p in base.parameters())


@EVERY
def test_a_plan_survives_json(name, planned):
    found = planned[name][2]
    assert read_plan(json.loads(json.dumps(as_plain(found)))) == found


@EVERY
def test_a_plan_is_the_same_when_made_again(name, planned):
    base, batch, found = planned[name]
    assert plan(base, ROWS[name].op, evidence(batch)) == found


@EVERY
def test_predicted_size_is_the_size_measured(name, planned):
    base, batch, found = planned[name]
    changed = apply(base, found)
    assert (found.before.parameters, found.before.macs) == (parameters(base), count_macs(base, batch["x"]))
    assert (found.after.parameters, found.after.macs) == (parameters(changed), count_macs(changed, batch["x"]))


@EVERY
def test_no_strength_changes_nothing(name, planned):
    none = ROWS[name].none
    if none is None:
        assert ROWS[name].lossless == 0.0  # it has no strength to turn down
        return
    base, batch, _ = planned[name]
    found = plan(base, none, evidence(batch))
    assert found.changes == ()
    assert found.before == found.after
    assert torch.equal(answers(apply(base, found), batch), answers(base, batch))


@EVERY
def test_it_changes_answers_only_as_far_as_it_says(name, planned):
    base, batch, found = planned[name]
    before, after = answers(base, batch), answers(apply(base, found), batch)
    if ROWS[name].lossless is None:
        assert torch.isfinite(after).all()
    else:
        assert (after - before).abs().max() <= ROWS[name].lossless


@EVERY
def test_replayed_on_a_fresh_base_it_gives_equal_answers(name, planned):
    _, batch, found = planned[name]
    base = base_of(name)
    changed = apply(base, found)
    again = replay(base_of(name), [json.loads(json.dumps(as_plain(found)))])
    assert same_state(changed, again)
    assert torch.equal(answers(changed, batch), answers(again, batch))


@EVERY
def test_every_parameter_gets_a_gradient_and_a_step_keeps_the_structure(name, planned):
    base, batch, found = planned[name]
    changed = apply(base, found).train()
    optimizer = torch.optim.SGD(changed.parameters(), lr=0.01)
    nn.functional.cross_entropy(changed(batch["x"]), batch["y"]).backward()
    assert all(p.requires_grad for p in changed.parameters())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in changed.parameters())
    assert any(p.grad.abs().max() > 0 for p in changed.parameters())
    optimizer.step()
    assert changed.state_dict().keys() == apply(base, found).state_dict().keys()


@EVERY
def test_frozen_layers_stay_frozen(name, planned):
    _, _, found = planned[name]
    changed = apply(base_of(name).requires_grad_(False), found)
    assert not any(p.requires_grad for p in changed.parameters())


@pytest.fixture(scope="module")
def reloaded(planned, tmp_path_factory):
    """The answers of every row's saved model, loaded by one fresh process into networks of other weights."""
    home = tmp_path_factory.mktemp("saved")
    for name, (base, _, found) in planned.items():
        if name != "bake":
            save_model(home / name, apply(base, found), lineage={"base": {}}, card="", operations=[found])
    code = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import torch, limbeck as lb
from pathlib import Path
from safetensors.torch import save_file
from op_rows import ROWS, seeded
answers = {{}}
for folder in sorted(Path({str(home)!r}).iterdir()):
    row = ROWS[folder.name]
    model = lb.load(folder, into=seeded(row.model, seed=99)).eval()
    with torch.no_grad():
        answers[folder.name] = model(row.batch()["x"])
save_file(answers, {str(home / "answers.safetensors")!r})
"""
    said = fresh(code, tmp_path_factory.mktemp("code"))
    assert said.returncode == 0, said.stderr
    return load_file(home / "answers.safetensors")


@pytest.mark.parametrize("name", [name for name in ROWS if name != "bake"])
def test_saved_and_loaded_in_a_fresh_process_it_answers_alike(name, planned, reloaded):
    base, batch, found = planned[name]
    assert torch.equal(reloaded[name], answers(apply(base, found), batch))


@EVERY
def test_what_is_kept_beside_the_weights_says_the_shapes_without_the_values(name, planned):
    base, _, found = planned[name]
    shapes = {k: v.shape for k, v in apply(base, found).state_dict().items()}
    rebuilt = replay(base_of(name), [lean(found)])
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == shapes
