from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.core.errors import ConfigError, DataError
from limbeck.data.transform import Transform

IMAGES = torch.randint(0, 256, (9, 6, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IDS = torch.arange(9) * 11 + 4


class Jig(torch.nn.Module):
    """A stand-in for a torchvision v2 transform: a module that draws from the global generators, all three."""

    def __init__(self, reach=3):
        super().__init__()
        self.reach = reach

    def forward(self, image):
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        image = image.roll(int(torch.randint(-self.reach, self.reach + 1, ())), 2)
        image = image.flip(2) if np.random.rand() < 0.5 else image  # noqa: NPY002
        return (image.float() / 255 * random.uniform(0.5, 1)).clamp(0, 1)


def smaller(image):
    return image[:, 1:4, 1:5]


@given(order=st.permutations(range(9)), cut=st.integers(1, 8), view=st.integers(0, 4))
@settings(max_examples=30)
def test_the_result_is_the_same_whatever_the_batch_order_and_state_of_the_generators(order, cut, view):
    jig, index = Transform(Jig()), torch.tensor(order)
    whole = jig.apply(IMAGES, IDS, seed=5, view=view)
    torch.rand(3), np.random.rand(2), random.random()  # noqa: NPY002
    parts = torch.cat([jig.apply(IMAGES[i], IDS[i], seed=5, view=view) for i in (index[:cut], index[cut:])])
    assert torch.equal(parts, whole[index])
    assert whole.shape == (9, 3, 6, 5)
    assert not torch.equal(whole, jig.apply(IMAGES, IDS, seed=5, view=view + 1))
    assert not torch.equal(whole, jig.apply(IMAGES, IDS, seed=6, view=view))
    assert not torch.equal(whole, jig.apply(IMAGES, IDS + 1, seed=5, view=view))


def state():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002


def test_nobody_elses_random_numbers_change_even_where_it_fails():
    def fails(image):
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        raise ValueError("bad luck")

    torch.manual_seed(1)
    before = state()
    Transform(Jig()).apply(IMAGES, IDS, seed=0, view=0)
    assert state() == before
    with pytest.raises(DataError, match="failed on sample 4: ValueError: bad luck"):
        Transform(fails).apply(IMAGES, IDS, seed=0, view=0)
    assert state() == before


def test_the_three_generators_of_a_sample_are_unrelated_and_uniform_over_samples():
    def draw(x):
        return torch.tensor([torch.rand(()), np.random.rand(), random.random()])  # noqa: NPY002

    rows = Transform(draw).apply(torch.zeros(3000, 1), torch.arange(3000), seed=0, view=0).numpy()
    assert abs(np.corrcoef(rows.T) - np.eye(3)).max() < 0.08
    assert abs(rows.mean(0) - 0.5).max() < 0.03
    assert abs(np.corrcoef(rows[1:].T, rows[:-1].T)[:3, 3:]).max() < 0.08

    def coin(x):  # from one seed these two would be one: both take the last bit of the Mersenne twister's next word
        return torch.tensor([int(torch.randint(0, 2, ())), int(np.random.randint(0, 2, dtype=np.uint32))])  # noqa: NPY002

    coins = Transform(coin).apply(torch.zeros(500, 1), torch.arange(500), seed=0, view=0)
    assert 0.4 < (coins[:, 0] == coins[:, 1]).double().mean() < 0.6


def test_what_it_takes_and_returns():
    held = IMAGES.clone()
    out = Transform(smaller).apply(IMAGES, IDS, seed=0, view=0)
    assert out.dtype == torch.uint8
    assert torch.equal(out, IMAGES.permute(0, 3, 1, 2)[:, :, 1:4, 1:5])
    Transform(lambda image: image.zero_()).apply(IMAGES, IDS, seed=0, view=0)
    assert torch.equal(IMAGES, held)
    doubled = Transform(lambda x: x.double() * 2).apply(torch.ones(9, 4), IDS, seed=0, view=0)
    assert torch.equal(doubled, torch.full((9, 4), 2.0))
    array = Transform(lambda image: np.asarray(image)[:, ::-1]).apply(IMAGES, IDS, seed=0, view=0)
    assert torch.equal(array, IMAGES.permute(0, 3, 1, 2).flip(2))
    learned = torch.nn.Conv2d(3, 2, 1)
    assert not Transform(lambda i: learned(i.float())).apply(IMAGES, IDS, seed=0, view=0).requires_grad


class Image(torch.Tensor):
    """A subclass, as torchvision's images are."""


def test_subclasses_of_tensors_become_tensors():
    out = Transform(lambda image: image.as_subclass(Image)).apply(IMAGES, IDS, seed=0, view=0)
    assert type(out) is torch.Tensor


GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda image: image + int(GENERATOR.integers(1, 9)), "two calls with one seed differ"),
        (lambda image: "a word", "returns a str"),
        (lambda image: image.flatten(), r"into uint8 \(90,\)"),
        (lambda image: image.long(), "into int64"),
        (lambda image: image[5], "failed on sample 4: IndexError"),
    ],
)
def test_a_function_that_cannot_be_replayed_is_refused(function, said):
    with pytest.raises(DataError, match=said) as caught:
        Transform(function, name="odd").check(IMAGES[:1], IDS[:1], seed=0)
    assert "transform 'odd'" in str(caught.value)
    assert "To mend" in str(caught.value)


def test_uneven_shapes_name_the_samples():
    with pytest.raises(DataError, match=r"sample 4 ends as uint8 \(3, \d, 5\), sample \d+ as"):
        Transform(lambda image: image[:, : int(torch.randint(1, 6, ()))]).apply(IMAGES, IDS, seed=0, view=0)
    with pytest.raises(ConfigError, match="cannot be called"):
        Transform("flip")


def test_its_fingerprint_follows_the_function_and_the_column():
    assert Transform(Jig(2)).fingerprint() == Transform(Jig(2)).fingerprint() != Transform(Jig(3)).fingerprint()
    assert Transform(smaller).fingerprint() != Transform(smaller, on="z").fingerprint()
    assert Transform(smaller).name == "smaller"
    assert Transform(Jig()).name == "Jig"
    assert Transform(smaller).fingerprint()[:12] in repr(Transform(smaller))
