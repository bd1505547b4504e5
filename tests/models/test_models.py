"""The networks that recipes name: sizes by hand, and the published weights fit."""

import os
from pathlib import Path

import pytest
import torch

from limbeck.models import MLP, MODELS, CifarResNet, Conv
from limbeck.recipes.base import read_weights

DATA = Path(os.environ.get("LIMBECK_DATA", "../shared/data"))


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_each_builds_with_its_defaults_and_answers(kind):
    model = MODELS[kind]().build((3, 32, 32), 10)
    answer = model(torch.randn(2, 3, 32, 32))
    assert (answer["logits"] if kind == "peers" else answer).shape == (2, 10)


def test_sizes_by_hand():
    assert count(Conv(channels=(16, 32)).build((3, 32, 32), 10)) == 448 + 4640 + 2048 * 10 + 10
    assert count(MLP(hidden=(16,)).build((1, 8, 8), 10)) == 65 * 16 + 17 * 10
    for depth, parameters in ((20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)):
        assert count(CifarResNet(depth=depth).build((3, 32, 32), 10)) == parameters


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda: Conv(channels=()), "there is none"),
        (lambda: Conv(channels=(0,)), "at least 1"),
        (lambda: Conv().build((64,), 10), "channels, height, width"),
        (lambda: Conv(channels=(4, 4, 4)).build((1, 4, 4), 10), "at least 8 pixels"),
        (lambda: CifarResNet(depth=21), "6n \\+ 2"),
        (lambda: CifarResNet().build((64,), 10), "use images"),
        (lambda: MLP(hidden=(-3,)), "at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        bad()


@pytest.mark.skipif(not (DATA / "teachers").is_dir(), reason="no real data here: set LIMBECK_DATA")
def test_the_published_resnet_20_fits_and_reaches_its_accuracy():
    import numpy as np

    import limbeck as lb

    file = next((DATA / "teachers").glob("*resnet20*"))
    model = CifarResNet(depth=20).build((3, 32, 32), 10)
    model.load_state_dict(read_weights(str(file), "test"))
    with np.load(DATA / "cifar10.npz", allow_pickle=False) as held:
        images, labels = held["test_images"][:2000], held["test_labels"][:2000]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = lb.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))(x)
    scores = lb.evaluate(model, (x, torch.from_numpy(labels).long()))
    assert scores["accuracy"] == pytest.approx(0.9173, abs=0.02)


def test_dropout_follows_each_relu_and_is_not_there_when_it_is_zero():
    noisy, calm = (MLP(hidden=(4, 4), dropout=rate).build((3,), 2) for rate in (0.5, 0.0))
    assert sum(isinstance(layer, torch.nn.Dropout) for layer in noisy.modules()) == 2
    assert not any(isinstance(layer, torch.nn.Dropout) for layer in calm.modules())
    assert set(noisy.state_dict()) == set(calm.state_dict())
    with pytest.raises(ValueError, match=r"mlp\.dropout"):
        MLP(dropout=1.0)
