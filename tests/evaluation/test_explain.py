"""Oracles: closed forms of linear and quadratic models, the axiom of completeness, gradients written out."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.core.errors import ConfigError, DataError, ExtraError, ModelError
from limbeck.core.normalize import Normalize
from limbeck.evaluation.explain import METHODS, attributions, convolution

X = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([0, 1, 2, 2, 0])
GRADIENTS = ("gradient_input", "integrated_gradients")


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class Counting(nn.Module):
    """Counts its calls in a buffer, whatever the mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


def cnn(channels=2):
    def build():
        relu = nn.ReLU(inplace=True)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), relu, Counting(), nn.Conv2d(4, 4, 3, stride=2),
            relu, nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), relu, nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip

    return seeded(build)


def centred(model, x, target):
    logits = model(x)
    return logits.gather(1, target[:, None])[:, 0] - logits.mean(1)


class Quadratic(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return (x.flatten(1) ** 2) @ self.weight.T


@pytest.mark.parametrize("method", GRADIENTS)
def test_a_linear_model_gives_its_weights_times_the_input(method):
    model = nn.Linear(4, 3)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    weight = model.weight.detach()
    expected = (weight[TARGET] - weight.mean(0)) * x
    assert torch.allclose(attributions(model, {"x": x}, method=method, target=TARGET), expected, atol=1e-6)
    one = attributions(model, {"x": x}, method=method, target=1)
    assert torch.allclose(one, (weight[1] - weight.mean(0)) * x, atol=1e-6)


def test_a_quadratic_model_tells_the_methods_apart():
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    parts = (weight[TARGET] - weight.mean(0)) * x**2
    found = {m: attributions(Quadratic(weight), {"x": x}, method=m, target=TARGET) for m in GRADIENTS}
    assert torch.allclose(found["gradient_input"], 2 * parts, atol=1e-5)
    assert torch.allclose(found["integrated_gradients"], parts, atol=1e-5)


def test_integrated_gradients_are_complete():
    model = cnn().eval()
    with torch.no_grad():
        expected = centred(model, X, TARGET) - centred(model, torch.zeros_like(X), TARGET)
    found = attributions(model, {"x": X}, method="integrated_gradients", target=TARGET, steps=400)
    assert torch.allclose(found.sum((1, 2)), expected, atol=2e-3)


def test_gradient_input_sums_an_image_over_its_channels_with_signs():
    model = copy.deepcopy(cnn()).eval()
    x = X.clone().requires_grad_()
    expected = (torch.autograd.grad(centred(model, x, TARGET).sum(), x)[0] * X).sum(1)
    found = attributions(cnn(), {"x": X}, method="gradient_input", target=TARGET)
    assert found.shape == (5, 6, 6)
    assert torch.allclose(found, expected, atol=1e-7)


def test_grad_cam_equals_the_formula_written_out():
    model = cnn().eval()
    with torch.enable_grad():
        activation = model[:5](X)
        score = centred(model[5:], activation.clone(), TARGET)
        gradient = torch.autograd.grad(score.sum(), activation)[0]
    map_ = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).detach()
    expected = F.interpolate(map_, size=(6, 6), mode="bilinear", align_corners=False)[:, 0]
    for tap in (None, "4"):
        found = attributions(cnn(), {"x": X}, method="grad_cam", target=TARGET, tap=tap)
        assert torch.allclose(found, expected, atol=1e-7)


def test_the_last_convolution_is_found_among_those_that_are_called_and_have_a_map():
    assert convolution(cnn(), {"x": X}) == "4"
    assert convolution(nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), {"x": X}) is None

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
            self.unused = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.second(self.first(self.first(x))).flatten(1)[:, :3]

    model = Odd()
    assert convolution(model, {"x": X}) == "second"
    assert not any(module._forward_hooks for module in model.modules())
    assert attributions(model, {"x": X}, method="grad_cam", target=0, tap="first").shape == (5, 6, 6)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_and_the_world_are_left_as_they_were(method):
    model = cnn().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[11].weight.grad = torch.ones(3, 4)
    before = copy.deepcopy(model.state_dict())
    flags = [(m.training, len(m._forward_hooks)) for m in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    grads = [p.grad is not None for p in model.parameters()]
    batch = {"x": X.clone(), "y": TARGET, "id": torch.arange(5)}
    state = torch.get_rng_state()
    attributions(model, batch, method=method, target=TARGET, at_once=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [(m.training, len(m._forward_hooks)) for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == wants
    assert [p.grad is not None for p in model.parameters()] == grads
    assert torch.equal(model[11].weight.grad, torch.ones(3, 4))
    assert torch.equal(batch["x"], X)
    assert not batch["x"].requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_neither_the_split_nor_the_callers_mode_nor_frozen_weights_matter(method):
    whole = attributions(cnn(), {"x": X}, method=method, target=TARGET)
    assert whole.isfinite().all()
    assert not whole.requires_grad
    for at_once in (1, 2, 5):
        split = attributions(cnn(), {"x": X}, method=method, target=TARGET, at_once=at_once)
        assert torch.allclose(split, whole, atol=1e-6)
    model, frozen = cnn(), cnn().requires_grad_(False)
    with torch.inference_mode():
        assert torch.allclose(attributions(model, {"x": X.clone()}, method=method, target=TARGET), whole, atol=1e-7)
    with torch.no_grad():
        assert torch.allclose(attributions(frozen, {"x": X}, method=method, target=TARGET), whole, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_on_all_logits_changes_nothing(method):
    class Shifted(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x) + 3 * x.square().sum((1, 2, 3))[:, None]

    plain = attributions(cnn(), {"x": X}, method=method, target=TARGET, tap="4" if method == "grad_cam" else None)
    tap = "model.4" if method == "grad_cam" else None
    assert torch.allclose(
        attributions(Shifted(cnn()), {"x": X}, method=method, target=TARGET, tap=tap), plain, atol=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_its_own_normalisation_is_explained_in_the_units_of_the_batch(method):
    to = Normalize(mean=(0.1, -0.2), std=(0.5, 2.0))

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = cnn()

        def forward(self, x):
            return self.model(to(x))

    apart = attributions(
        cnn(), {"x": X}, method=method, target=TARGET, fit=lambda batch: {**batch, "x": to(batch["x"])}
    )
    assert torch.allclose(apart, attributions(Inside(), {"x": X}, method=method, target=TARGET), atol=1e-6)


def test_columns_that_count_are_found_and_joined():
    class Two(nn.Module):
        def forward(self, left, mask, right):
            return torch.stack([(left * mask).sum(1), right.flatten(1).sum(1)], 1)

    left, right = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    batch = {"left": left, "mask": torch.tensor([[0, 1, 1, 1]] * 5), "right": right.view(5, 2, 2), "y": TARGET}
    for method in GRADIENTS:
        found = attributions(Two(), batch, method=method, target=0, at_once=2)
        expected = torch.cat([left * batch["mask"], -right], 1) / 2
        assert torch.allclose(found, expected, atol=1e-6)
    unused = attributions(nn.Linear(4, 3), {"x": left, "other": right}, method="gradient_input", target=0)
    assert unused.shape == (5, 4)


class Reads(nn.Module):
    """Token ids to logits; the padding is masked out. Positions have an embedding too."""

    def __init__(self):
        super().__init__()
        self.places, self.words, self.head = nn.Embedding(4, 3), nn.Embedding(10, 3), nn.Linear(3, 2)

    def forward(self, ids, mask):
        held = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return {"logits": self.head((held * mask[..., None]).sum(1)), "hidden": held}


@pytest.mark.parametrize("method", GRADIENTS)
def test_token_ids_are_explained_at_their_embedding(method):
    model = seeded(Reads)
    ids, mask = torch.tensor([[1, 2, 3, 0], [4, 4, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    weight = model.head.weight.detach()
    side = weight[1] - weight.mean(0)
    expected = (model.words(ids).detach() @ side) * mask
    for tap in (None, "words"):
        found = attributions(model, {"ids": ids, "mask": mask}, method=method, target=1, tap=tap, at_once=1)
        assert torch.allclose(found, expected, atol=1e-6)
    assert not model.words._forward_hooks
    assert not model.words._forward_pre_hooks


def test_recurrent_models_are_explained():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRU(3, 4, batch_first=True)

        def forward(self, x):
            return self.cell(x)[0][:, -1]

    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert attributions(Recurrent(), {"x": x}, method="gradient_input", target=0).shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("shape", "build"),
    [
        ((2, 3, 8), lambda: nn.Sequential(nn.Conv1d(3, 2, 3), nn.Flatten(), nn.Linear(12, 2))),
        ((2, 1, 4, 5, 6), lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(48, 2))),
    ],
    ids=["signal", "volume"],
)
def test_signals_and_volumes_have_maps(shape, build):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert attributions(build(), {"x": x}, method="grad_cam", target=0).shape == (2, *shape[2:])


def explained(model, batch, **settings):
    return attributions(model, batch, **{"method": "gradient_input", "target": 0, **settings})


def test_settings_that_cannot_be_are_refused():
    model, batch = cnn(), {"x": X}
    with pytest.raises(ConfigError, match="choose from gradient_input"):
        explained(model, batch, method="saliency")
    with pytest.raises(ConfigError, match="steps"):
        explained(model, batch, steps=0)
    with pytest.raises(ConfigError, match="at_once"):
        explained(model, batch, at_once=True)
    with pytest.raises(ConfigError, match="explains the input"):
        explained(model, batch, tap="4")
    with pytest.raises(ModelError, match="did you mean '11'"):
        explained(model, batch, method="grad_cam", tap="111")
    for target, words in [
        (3, "run from 3 to 3, of 3 classes"),
        (-1, "run from -1"),
        (torch.zeros(4).long(), r"\[4\] of int64 for 5"),
        (torch.zeros(5), "float32"),
    ]:
        with pytest.raises(DataError, match=words):
            explained(model, batch, target=target)
    for empty in ({}, {"x": X[:0]}):
        with pytest.raises(DataError, match="no sample"):
            explained(model, empty)


def test_models_that_cannot_be_explained_are_refused():
    ids = {"x": torch.tensor([[1, 2], [3, 4]])}

    class Counts(nn.Module):
        def forward(self, x):
            return F.one_hot(x, 10).sum(1).float()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 3)

        def forward(self, x):
            return self.words(x).sum(1) + self.words(x.flip(1)).sum(1)

    class Detached(nn.Module):
        @torch.no_grad()
        def forward(self, x):
            return 2 * x

    for model in (Counts(), Twice()):
        with pytest.raises(ModelError, match=r"no gradient by the batch \(x int64\).*\n.*`nn.Embedding`"):
            explained(model, ids)
    with pytest.raises(ModelError, match="no gradient by the batch"):
        explained(Detached(), {"x": torch.randn(2, 3)})
    with pytest.raises(ModelError, match=r"logits are \[2, 2, 6, 6\]"):
        explained(nn.Identity(), {"x": X})
    with pytest.raises(ModelError, match="cannot be called"):
        explained(nn.Linear(3, 2), {"x": X})
    with torch.inference_mode():
        model = nn.Linear(3, 2)
    with pytest.raises(ModelError, match="weight was made in inference mode"):
        explained(model, {"x": torch.randn(2, 3)})
    flat = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    with pytest.raises(ModelError, match="no convolution"):
        explained(flat, {"x": X}, method="grad_cam")
    with pytest.raises(ModelError, match="cannot be laid over the input"):
        explained(flat, {"x": X}, method="grad_cam", tap="1")

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.off, self.on = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 3, 6)

        def forward(self, x):
            return self.on(x).flatten(1)

    with pytest.raises(ModelError, match="no map of its own"):
        explained(Unused(), {"x": X}, method="grad_cam", tap="off")
    with pytest.raises(ModelError, match="gradient of 1 of 2 samples is not finite"):
        explained(Root(), {"x": torch.tensor([[0.0, 1.0], [1.0, 1.0]])})


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt() + x.flip(1)


def test_without_captum_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ExtraError, match=r"limbeck\[explain\]"):
        explained(cnn(), {"x": X})
