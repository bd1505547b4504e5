"""Corruptions that a person can check by hand, and attacks whose effect on a linear model is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.core.errors import ConfigError
from limbeck.core.normalize import Normalize
from limbeck.evaluation.robustness import CORRUPTIONS, attack, corrupt, robustness

IDS = torch.arange(6) * 7


def images(side=8):
    return torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_stronger_is_further_and_stays_an_image(kind):
    # Smooth, as pictures are: any shift of pure noise is as far as any other.
    ramp = torch.linspace(0, 1, 32)
    x = (0.7 * ramp.view(1, 1, 1, -1) * ramp.view(1, 1, -1, 1) + 0.3 * images(32)).float()
    far = [float((corrupt(x, kind, level, ids=IDS) - x).abs().mean()) for level in range(1, 6)]
    assert far == sorted(far)
    assert far[0] > 0
    spoilt = corrupt(x, kind, 5, ids=IDS)
    assert spoilt.shape == x.shape
    assert 0 <= float(spoilt.min()) <= float(spoilt.max()) <= 1 + 1e-6


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_sample_is_corrupted_alike_in_any_batch(kind):
    x = images()
    whole = corrupt(x, kind, 3, ids=IDS, seed=1)
    turned = corrupt(x.flip(0), kind, 3, ids=IDS.flip(0), seed=1).flip(0)
    assert torch.allclose(whole, turned, atol=1e-6)
    assert torch.allclose(whole[2:3], corrupt(x[2:3], kind, 3, ids=IDS[2:3], seed=1), atol=1e-6)


def test_blur_and_shift_keep_a_flat_image_and_contrast_its_mean():
    flat = torch.full((6, 1, 9, 9), 0.3)
    for kind in ("blur", "shift"):
        assert torch.allclose(corrupt(flat, kind, 5, ids=IDS), flat, atol=1e-5)
    x = images()
    faded = corrupt(x, "contrast", 2, ids=IDS)
    assert torch.allclose(faded.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-6)
    assert torch.allclose(
        faded - faded.mean((1, 2, 3), keepdim=True), 0.5 * (x - x.mean((1, 2, 3), keepdim=True)), atol=1e-6
    )


def test_what_is_no_corruption_is_refused():
    with pytest.raises(ConfigError, match="noise, blur, contrast, shift"):
        corrupt(images(), "rain", 1, ids=IDS)
    with pytest.raises(ConfigError, match="1 to 5"):
        corrupt(images(), "blur", 6, ids=IDS)


class Linear(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.layer = nn.Linear(features, 2)

    def forward(self, batch):
        return {"logits": self.layer(batch["x"].flatten(1))}


def test_fgsm_takes_epsilon_times_the_l1_norm_off_a_linear_margin():
    torch.manual_seed(0)
    model, x = Linear(192), images()
    batch = {"x": x, "y": torch.tensor([0, 1, 0, 1, 0, 1]), "id": IDS}
    sign = 1 - 2 * batch["y"]
    w = model.layer.weight[0] - model.layer.weight[1]

    def margin(x):
        logits = model({**batch, "x": x})["logits"]
        return sign * (logits[:, 0] - logits[:, 1])

    none, one = torch.zeros(()), torch.ones(())
    for steps in (1, 10):
        moved = attack(model, batch, 0.01, steps=steps, mean=none, std=one)
        assert float((moved - x).abs().max()) <= 0.01 + 1e-6
        assert torch.allclose(margin(x) - margin(moved), 0.01 * w.abs().sum().expand(6), rtol=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_attacks_stay_within_epsilon_in_pixels_whatever_the_normalisation():
    torch.manual_seed(0)
    model = Linear(192)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.1]))
    batch = {"x": (images() - mean) / std, "y": torch.zeros(6, dtype=torch.long), "id": IDS}
    moved = attack(model, batch, 8 / 255, steps=10, mean=mean, std=std, low=0.0, high=1.0) * std + mean
    assert float((moved - images()).abs().max()) <= 8 / 255 + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1 + 1e-6


def test_a_trained_model_loses_more_under_pgd_than_under_fgsm_and_is_left_as_it_was():
    torch.manual_seed(0)
    x = torch.rand(200, 1, 8, 8)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    model = Linear(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    normal = Normalize(mean=(0.5,), std=(0.25,))
    for _ in range(300):
        loss = nn.functional.cross_entropy(model({"x": normal(x)})["logits"], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [
        {"x": normal(x[i : i + 64]), "y": y[i : i + 64], "id": torch.arange(200)[i : i + 64]} for i in (0, 64, 128, 192)
    ]
    found = robustness(model, batches, normalize=normal)
    assert found["clean"] > 0.95
    for name in ("fgsm", "pgd"):
        scores = found["attacks"][name]["accuracy"]
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] < found["clean"] - 0.2
    assert all(p <= f + 0.02 for p, f in zip(*(found["attacks"][k]["accuracy"] for k in ("pgd", "fgsm")), strict=True))
    assert set(found["corruptions"]) == set(CORRUPTIONS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    whole = robustness(model, [{"x": normal(x), "y": y, "id": torch.arange(200)}], normalize=normal)
    assert whole["corruptions"] == found["corruptions"]


def test_features_get_noise_in_their_own_units_and_constant_ones_none():
    torch.manual_seed(0)
    x = torch.randn(100, 3) * torch.tensor([1.0, 1000.0, 0.0])
    seen = []

    def forward(batch):
        seen.append(batch["x"].detach())
        return {"logits": batch["x"][:, :2]}

    found = robustness(forward, [{"x": x, "y": torch.zeros(100, dtype=torch.long), "id": torch.arange(100)}])
    assert set(found["corruptions"]) == {"noise"}
    moved = (seen[5] - x).std(0)
    assert moved[0] == pytest.approx(5 * 0.26, rel=0.2)
    assert moved[1] == pytest.approx(5 * 260, rel=0.25)
    assert float(moved[2]) < 1e-12


def test_samples_without_a_label_are_left_out():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    batch = {"x": x, "y": torch.tensor([0, 0, 1, -1]), "id": torch.arange(4)}
    assert robustness(lambda given: {"logits": given["x"]}, [batch])["clean"] == pytest.approx(2 / 3)


def test_much_larger_logits_fool_an_attack_on_the_loss_and_not_one_on_the_margin():
    """A softmax that is sharp beyond rounding has no gradient: robust in looks alone (Carlini & Wagner 2017)."""
    torch.manual_seed(0)
    model = Linear(64)
    x = torch.rand(40, 1, 8, 8)
    y = model({"x": x})["logits"].argmax(1)
    batches = [{"x": x, "y": y, "id": torch.arange(40)}]

    def masked(batch):
        return {"logits": 1e4 * model(batch)["logits"]}

    plain, sharp = robustness(model, batches)["attacks"], robustness(masked, batches)["attacks"]
    assert sharp["margin"] == plain["margin"] == plain["pgd"]  # two classes: the aims are one for the model itself
    assert sharp["pgd"]["accuracy"][-1] > plain["pgd"]["accuracy"][-1] + 0.2


def test_unlabelled_samples_are_left_where_they_were_drawn_by_an_attack_on_the_margin():
    model = Linear(64)
    batch = {"x": torch.rand(4, 1, 8, 8), "y": torch.tensor([0, 1, -1, -1]), "id": torch.arange(4)}
    one = torch.ones(1, 1, 1, 1)
    moved = attack(model, batch, 0.01, steps=1, mean=0 * one, std=one, aim="margin")
    assert torch.equal(moved[2:], batch["x"][2:])
    assert not torch.equal(moved[:2], batch["x"][:2])
