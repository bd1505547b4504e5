"""Thinner layers: the error is the least that the rank allows, and what would not get lighter is left alone."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.compress import Evidence, Factorize, apply, plan
from limbeck.compress.factorize import LowRank
from limbeck.core.errors import ConfigError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def given(shape, *more, seed=1):
    g = torch.Generator().manual_seed(seed)
    # Inputs of very different sizes along their axes, as those of real layers are.
    parts = [torch.randn(shape, generator=g) * torch.logspace(0, -2, shape[1]).view(-1, *[1] * (len(shape) - 2))] * 1
    parts += [torch.randn(shape, generator=g) for _ in more]
    return Evidence(batch={"x": parts[0]}, batches=lambda: iter([{"x": p} for p in parts]))


def changed(model, op, evidence):
    with torch.no_grad():
        return apply(model.eval(), plan(model, op, evidence))


def decaying(out, width, seed=0):
    layer = nn.Linear(width, out)
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(out, out, generator=g))
    p, _ = torch.linalg.qr(torch.randn(width, width, generator=g))
    layer.weight.data = (
        q[:, : min(out, width)] @ torch.diag(0.8 ** torch.arange(min(out, width))) @ p[: min(out, width)]
    )
    return nn.Sequential(layer)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_weight_s_error_is_that_of_eckart_and_young(rank):
    model = decaying(24, 20)
    small = changed(model, Factorize(rank=rank), given((8, 20)))
    singular = scipy.linalg.svdvals(model[0].weight.detach().double().numpy())
    error = (small[0].weight - model[0].weight).detach().double().norm()
    assert float(error) == pytest.approx(np.sqrt((singular[rank:] ** 2).sum()), rel=1e-4)
    assert torch.equal(small[0].bias, model[0].bias)
    # Both sides carry the same share of each term.
    assert torch.allclose(small[0].up.weight.norm(dim=0), small[0].down.weight.norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_fitted_to_outputs_the_error_on_the_data_is_the_least_of_its_rank(rank):
    model, evidence = decaying(24, 20), given((200, 20))
    x = evidence.batch["x"].double().numpy()
    weight = model[0].weight.detach().double().numpy()
    singular = scipy.linalg.svdvals(x @ weight.T)
    error = {}
    for fit in ("weights", "outputs"):
        small = changed(model, Factorize(rank=rank, fit=fit), evidence)
        error[fit] = np.linalg.norm(x @ (small[0].weight.detach().double().numpy() - weight).T)
    assert error["outputs"] == pytest.approx(np.sqrt((singular[rank:] ** 2).sum()), rel=1e-3)
    assert error["outputs"] < 0.9 * error["weights"]


def test_the_moments_are_gathered_over_all_batches():
    model, evidence = decaying(24, 20), given((50, 20), 2, 3)
    small = changed(model, Factorize(rank=5, fit="outputs"), evidence)
    x = torch.cat([b["x"] for b in evidence.batches()]).double().numpy()
    weight = model[0].weight.detach().double().numpy()
    # Whitening, by another road: W = [W·L]ₖ·L⁻¹ with L·Lᵀ the second moment of the inputs.
    low = np.linalg.cholesky(x.T @ x / len(x))
    u, s, v = np.linalg.svd(weight @ low)
    whitened = (u[:, :5] * s[:5]) @ v[:5] @ np.linalg.inv(low)
    assert np.allclose(small[0].weight.detach().numpy(), whitened, atol=1e-4)


CONVS = {
    "plain": (nn.Conv2d(6, 16, 3), (2, 6, 9, 9)),
    "strided and padded": (nn.Conv2d(6, 16, 3, stride=2, padding=1), (2, 6, 9, 9)),
    "dilated, reflected": (nn.Conv2d(6, 16, 3, dilation=2, padding=2, padding_mode="reflect"), (2, 6, 9, 9)),
    "1-d": (nn.Conv1d(6, 16, 5, padding="same"), (2, 6, 11)),
    "3-d": (nn.Conv3d(4, 12, 2, bias=False), (2, 4, 5, 5, 5)),
}


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("fit", ["weights", "outputs"])
def test_a_convolution_of_low_rank_is_split_without_loss(case, fit):
    conv, shape = CONVS[case]
    u = torch.randn(conv.out_channels, 3)
    conv.weight.data = (u @ torch.randn(3, conv.weight[0].numel())).view_as(conv.weight)
    model = nn.Sequential(conv, nn.ReLU())
    evidence = given(shape)
    small = changed(model, Factorize(rank=3, fit=fit), evidence)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert torch.allclose(small(evidence.batch["x"]), model(evidence.batch["x"]), atol=1e-4)


@pytest.mark.parametrize("case", CONVS)
def test_a_convolution_of_low_tucker_rank_is_split_without_loss(case):
    conv, shape = CONVS[case]
    core = torch.randn(4, 2, *conv.kernel_size)
    out, into = torch.randn(conv.out_channels, 4), torch.randn(conv.in_channels, 2)
    conv.weight.data = torch.einsum("pq...,op,iq->oi...", core, out, into)
    model = nn.Sequential(conv)
    evidence = given(shape)
    small = changed(model, Factorize(energy=0.999999, conv="tucker"), evidence)
    assert (small[0].down.out_channels, small[0].core.out_channels) == (2, 4)
    assert torch.allclose(small(evidence.batch["x"]), model(evidence.batch["x"]), atol=1e-3)


def test_a_tucker_decomposition_is_no_worse_than_its_first_guess():
    conv = nn.Conv2d(8, 10, 3, bias=False)
    small = changed(nn.Sequential(conv), Factorize(rank=4, conv="tucker"), given((1, 8, 5, 5)))[0]
    made = torch.einsum(
        "op,pq...,qi->oi...", small.up.weight.flatten(1), small.core.weight, small.down.weight.flatten(1)
    )
    w = conv.weight.detach()
    out = torch.linalg.svd(w.flatten(1)).U[:, :4]
    into = torch.linalg.svd(w.transpose(0, 1).flatten(1)).U[:, :4]
    guess = torch.einsum("oi...,op,rp,iq,sq->rs...", w, out, out, into, into)
    assert (made - w).norm() <= (guess - w).norm() * (1 + 1e-5)


def test_energy_takes_the_least_rank_that_holds_it():
    model = decaying(40, 30)
    found = plan(model, Factorize(energy=0.9), given((4, 30)))
    power = scipy.linalg.svdvals(model[0].weight.detach().double().numpy()) ** 2
    least = next(k for k in range(1, 31) if power[:k].sum() >= 0.9 * power.sum())
    assert found.changes[0].detail["rank"] == least


@pytest.mark.parametrize(("out", "width"), [(24, 20), (7, 50)])
def test_ranks_from_the_break_even_on_are_refused_and_those_below_are_not(out, width):
    model, evidence = decaying(out, width), given((4, width))
    even = out * width / (out + width)
    below, at = int(np.ceil(even)) - 1, int(np.ceil(even))
    assert changed(model, Factorize(rank=below), evidence)[0].rank == below
    found = plan(model, Factorize(rank=at), evidence)
    assert found.changes == ()
    assert f"{even:.4g}" in found.left[0].why
    assert plan(model, Factorize(rank=below), evidence).after.parameters < found.before.parameters


@pytest.mark.parametrize("conv", ["spatial", "tucker"])
def test_a_ratio_is_the_share_of_weights_that_are_left(conv):
    model = nn.Sequential(nn.Conv2d(32, 32, 3, bias=False))
    found = plan(model, Factorize(ratio=0.5, conv=conv), given((1, 32, 4, 4)))
    assert 0.45 < found.after.parameters / found.before.parameters <= 0.5


def test_tucker_ranks_never_ask_for_more_than_the_other_side_spans():
    model = nn.Sequential(nn.Conv1d(64, 4, 2, bias=False))
    evidence = given((2, 64, 6))
    for op in (Factorize(rank=30, conv="tucker"), Factorize(ratio=0.9, conv="tucker")):
        found = plan(model, op, evidence)
        assert found.after.parameters == sum(p.numel() for p in apply(model, found).parameters())


class Elsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.tied, self.other, self.read, self.grouped = (nn.Linear(20, 20) for _ in range(4))
        self.other.weight = self.tied.weight
        self.grouped = nn.Conv1d(20, 20, 1, groups=2)

    def forward(self, x):
        x = self.other(self.tied(x))
        x = self.read(x) + F.linear(x, self.read.weight)
        return self.grouped(x[..., None]).flatten(1)


def test_what_something_else_depends_on_is_left_alone_and_said():
    found = plan(Elsewhere(), Factorize(rank=2), given((4, 20)))
    assert found.changes == ()
    assert {left.at: "grouped" in left.why for left in found.left} == {
        "tied": False, "read": False, "other": False, "grouped": True,
    }  # fmt: skip


def test_attention_s_own_projection_is_left_alone_and_an_encoder_layer_still_answers():
    model = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True, dropout=0.0).eval()
    evidence = given((3, 5, 16))
    found = plan(model, Factorize(rank=8), evidence)
    assert [change.at for change in found.changes] == ["linear1", "linear2"]
    small = apply(model, found).eval()
    assert isinstance(small.linear1, LowRank)
    slow = small(evidence.batch["x"])
    with torch.no_grad():  # the fused path reads the weights of the layers and calls none of them
        assert torch.allclose(small(evidence.batch["x"]), slow, atol=1e-5)


def test_patterns_choose_and_a_pattern_that_fits_nothing_is_refused():
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    found = plan(model, Factorize(rank=2, exclude=("2",)), given((4, 20)))
    assert [change.at for change in found.changes] == ["0"]
    with pytest.raises(ConfigError, match="no layer fits 'layer'"):
        plan(model, Factorize(rank=2, include=("layer",)), given((4, 20)))


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"rank": 0}, {"rank": 2, "energy": 0.9}, {"ratio": 0.0}, {"energy": 1.5}, {"ratio": float("nan")},
        {"rank": 2, "fit": "outputs", "conv": "tucker"},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match="To mend"):
        Factorize(**wrong)


def test_data_that_is_needed_is_asked_for():
    with pytest.raises(ConfigError, match="needs data"):
        plan(decaying(8, 8), Factorize(rank=1, fit="outputs"), Evidence(batch={"x": torch.ones(2, 8)}))


def test_half_precision_keeps_its_type():
    model = decaying(24, 20).to(torch.bfloat16)
    evidence = Evidence(batch={"x": torch.randn(4, 20).to(torch.bfloat16)})
    small = changed(model, Factorize(rank=3), evidence)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    json.dumps(plan(model, Factorize(rank=3), evidence).op)
