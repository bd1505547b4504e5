"""Laws of pruning, over every kind of network. The masked network is made here, without the library's own help."""

import copy
import functools
import json
from dataclasses import replace

import pytest
import torch
from nets import NETS, made
from torch import nn

from limbeck.compress import Evidence, Prune, apply, plan, read_plan, replay
from limbeck.compress.base import _size
from limbeck.compress.prune import choose
from limbeck.compress.units import coupled
from limbeck.core.errors import ConfigError
from limbeck.core.setting import as_plain

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def evidence(batch, seed=0):
    return Evidence(batch=batch, batches=lambda: [batch, batch], seed=seed)


@functools.cache
def thinned(name):
    """A network, its batch, a plan for two units in five of every group, and what becomes of it. Not to be changed."""
    model, batch = made(name)
    found = plan(model, Prune(ratio=0.4, scope="layer"), evidence(batch))
    return model, batch, found, apply(model, found)


def answers(model, batch):
    inputs = {key: value for key, value in batch.items() if key != "y"}
    with torch.no_grad():
        output = model(**inputs) if "input_ids" in inputs else model(*inputs.values())
    return output if isinstance(output, torch.Tensor) else output.logits


def unheard(model, changes):
    """The whole network, but nothing reads the units that go: only weights that read are zero there."""
    masked = copy.deepcopy(model)
    layers = dict(masked.named_modules())
    with torch.no_grad():
        for change in changes:
            if change.edit == "cut":
                path, _, name = change.at.rpartition(".")
                tensor = getattr(layers[path], name)
                turned = isinstance(layers[path], nn.ConvTranspose2d)
                if tensor.dim() > 1 and change.detail["dim"] == (0 if turned else 1):
                    gone = sorted(set(range(tensor.shape[change.detail["dim"]])) - set(change.detail["keep"]))
                    tensor.index_fill_(change.detail["dim"], torch.tensor(gone), 0)
    return masked


@pytest.mark.parametrize("name", list(NETS)[:3])
def test_units_that_are_known_are_not_looked_for_again(name, monkeypatch):
    model, batch, found, _ = thinned(name)
    own = evidence(batch)
    own = replace(own, coupling=coupled(model, own))

    def never(*_, **__):
        raise AssertionError("it was traced again")

    monkeypatch.setattr("limbeck.compress.units.couple", never)
    assert plan(model, Prune(ratio=0.4, scope="layer"), own) == found
    with pytest.raises(AssertionError, match="traced again"):
        coupled(model, own, norms=True)


@pytest.mark.parametrize("name", NETS)
def test_pruned_equals_masked(name):
    model, batch = made(name)
    for seed, scope in enumerate(("layer", "global")):
        found = plan(model, Prune(criterion="random", ratio=0.5, scope=scope), evidence(batch, seed))
        assert any(change.edit == "cut" for change in found.changes)
        small, masked = apply(model, found), unheard(model, found.changes)
        got, wanted = answers(small, batch), answers(masked, batch)
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp_min(1)
        assert not torch.allclose(got, answers(model, batch), atol=1e-4)  # what went was heard before


@pytest.mark.parametrize("name", NETS)
def test_what_is_predicted_is_measured_and_a_plan_is_plain_data_that_reads_only(name):
    model, batch, found, _ = thinned(name)
    before = made(name)[0].state_dict()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    again = read_plan(json.loads(json.dumps(as_plain(found))))
    assert again == found
    small = apply(model, again)
    assert found.before == _size(model, evidence(batch))
    assert found.after == _size(small, evidence(batch))
    assert found.after.parameters < found.before.parameters


@pytest.mark.parametrize("name", NETS)
def test_replayed_on_a_fresh_model_it_takes_the_weights_and_trains(name):
    _, batch, found, small = thinned(name)
    small = copy.deepcopy(small)
    fresh = replay(made(name, seed=1)[0], [as_plain(found)])
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(answers(fresh, batch), answers(small, batch))
    inputs = {key: value for key, value in batch.items() if key != "y"}
    output = small(**inputs) if "input_ids" in inputs else small(*inputs.values())
    logits = output if isinstance(output, torch.Tensor) else output.logits
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    logits.square().mean().backward()
    moved = [p for p in small.parameters() if p.grad is not None]
    assert moved
    assert all(p.grad.shape == p.shape and p.grad.isfinite().all() for p in moved)
    optimizer.step()


@pytest.mark.parametrize("name", NETS)
def test_layers_say_of_themselves_what_their_tensors_are(name):
    for module in thinned(name)[3].modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.ConvTranspose2d):
            assert module.weight.shape[:2] == (module.in_channels, module.out_channels // module.groups)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean.shape == module.running_var.shape == (module.num_features,)
        if isinstance(module, nn.GroupNorm):
            assert module.weight.shape == (module.num_channels,)
        if isinstance(module, nn.RNNBase):
            assert module.weight_ih_l0.shape[1] == module.input_size
            assert module.weight_hh_l0.shape[1] == (module.proj_size or module.hidden_size)
            assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))
        if isinstance(module, nn.MultiheadAttention):
            assert module.out_proj.weight.shape == (module.embed_dim, module.num_heads * module.head_dim)


@pytest.mark.parametrize("name", ["mlp", "encoder layer"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_zero_strength_changes_nothing(name, scope):
    model, batch = made(name)
    found = plan(model, Prune(ratio=0.0, scope=scope), evidence(batch))
    assert not found.changes
    assert found.after == found.before
    assert torch.equal(answers(apply(model, found), batch), answers(model, batch))
    assert not plan(model, Prune(macs=1.0), evidence(batch)).changes


@pytest.mark.parametrize("name", ["conv", "residual", "encoder layer"])
@pytest.mark.parametrize("what", ["macs", "parameters"])
def test_a_target_is_met_and_one_unit_less_would_not_meet_it(name, what):
    model, batch = made(name)
    target = 0.8
    found = plan(model, Prune(**{what: target}), evidence(batch))
    reached = getattr(found.after, what) / getattr(found.before, what)
    assert reached <= target
    assert reached > target - 0.25  # small networks move in big steps
    with pytest.raises(ConfigError, match=r"is left, and 0\.001 is wanted"):
        plan(model, Prune(**{what: 0.001}), evidence(batch))


def test_a_target_takes_the_smallest_share_of_units_that_meets_it():
    model, batch = made("mlp")
    found = plan(model, Prune(parameters=0.6, scope="layer"), evidence(batch))
    shares = [k / 24 for k in range(25)]
    sizes = [plan(model, Prune(ratio=share, scope="layer"), evidence(batch)).after.parameters for share in shares]
    wanted = next(size for size in sizes if size <= 0.6 * found.before.parameters)
    assert found.after.parameters == wanted


def test_the_plan_says_what_stays_whole_and_why():
    model, batch = made("multihead attention")
    left = {one.at: one.why for one in plan(model, Prune(), evidence(batch)).left}
    assert left == {
        "attention.inner.out_proj": "its width is that of the input",
        "down": "its width is that of the input",
        "head": "it is what the network returns",
    }


def test_patterns_say_which_layers_may_be_cut():
    model, batch = made("residual")
    only = plan(model, Prune(include=("conv1",), scope="layer"), evidence(batch))
    assert {change.at for change in only.changes if change.edit == "cut"} == {
        "conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "conv2.weight",
    }  # fmt: skip
    without = plan(model, Prune(exclude=("project",), scope="layer"), evidence(batch))
    assert not any(
        change.at.startswith(("project.weight", "bn2", "head")) and change.edit == "cut"
        for change in without.changes
        if change.detail.get("dim") == 0
    )
    assert any(left.at == "conv2" and "excluded" in left.why for left in without.left)
    for settings in ({"include": ("layr*",)}, {"exclude": ("layr*",)}):
        with pytest.raises(ConfigError, match=r"'layr\*' fits no layer"):
            plan(model, Prune(**settings), evidence(batch))


def test_the_least_go_first_by_layer_and_over_all():
    scores = {"a": torch.tensor([3.0, 1.0, 2.0, 4.0]), "b": torch.tensor([10.0, 30.0])}
    assert choose(scores, 0.5, "layer") == {"a": [1, 2], "b": [0]}
    # relative to the means 2.5 and 20: 1.2 0.4 0.8 1.6 | 0.5 1.5
    assert choose(scores, 0.5, "global") == {"a": [1, 2], "b": [0]}
    assert choose(scores, 1 / 3, "global") == {"a": [1], "b": [0]}
    assert choose(scores, 1.0, "global") == {"a": [0, 1, 2], "b": [0]}
    assert choose(scores, 1.0, "layer", minimum=2) == {"a": [1, 2], "b": []}
    assert choose({"a": torch.arange(10.0)}, 0.3, "layer") == {"a": [0, 1, 2]}
    assert choose({"a": torch.arange(10.0)}, 0.3, "layer", round_to=4) == {"a": [0, 1]}
    assert choose({"a": torch.arange(10.0)}, 0.1, "layer", round_to=4) == {"a": []}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_other_precisions_are_cut_like_single(kind):
    torch.manual_seed(0)  # wide, so that the order of a sum is seen in half precision
    model = nn.Sequential(nn.Linear(5, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3)).eval()
    batch = {"x": torch.randn(4, 5)}
    cuts = plan(model, Prune(criterion="l1", scope="layer"), evidence(batch)).changes
    other = {"x": batch["x"].to(kind)}
    assert len(plan(model.to(kind), Prune(criterion="l1", scope="layer"), evidence(other)).changes) == len(cuts)
    assert {p.dtype for p in model.parameters()} == {kind}


def test_rounds_go_as_far_as_the_whole():
    whole = Prune(ratio=0.75, rounds=2)
    assert [part.ratio for part in whole.parts()] == [0.5, 0.5]
    assert [part.macs for part in Prune(macs=0.25, rounds=2).parts()] == [0.5, 0.5]
    model, batch = made("mlp")
    for part in Prune(macs=0.36, rounds=2).parts():
        model = apply(model, plan(model, part, evidence(batch)))
    assert _size(model, evidence(batch)).macs <= 0.36 * _size(made("mlp")[0], evidence(batch)).macs


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ratio": 1.5}, "no share"),
        ({"macs": 0.0}, "above zero"),
        ({"macs": 2.0}, "above 1"),
        ({"macs": 0.5, "parameters": 0.5}, "both given"),
        ({"criterion": "best"}, "not one of its words"),
        ({"minimum": 0}, "at least 1"),
        ({"round_to": 0}, "at least 1"),
        ({"rounds": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_done_is_told_before_any_work(settings, said):
    with pytest.raises(ConfigError, match=said):
        Prune(**settings)


def test_data_and_labels_are_asked_for_only_where_they_are_read():
    model, batch = made("mlp")
    plan(model, Prune(criterion="l1"), Evidence(batch={"x": batch["x"]}))
    with pytest.raises(ConfigError, match="it needs data"):
        plan(model, Prune(criterion="activation"), Evidence(batch={"x": batch["x"]}))
    with pytest.raises(ConfigError, match="it needs labels"):
        plan(model, Prune(criterion="taylor"), Evidence(batch={"x": batch["x"]}, batches=lambda: [batch]))
