from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from limbeck.core.errors import ConfigError, DataError
from limbeck.core.normalize import Normalize
from limbeck.data.augment import Augment, affine, augment, draw_mix, mix_images, mix_labels, uniform

NORM = Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def pictures(n, h=7, w=5, c=3, seed=0):
    return torch.randint(0, 256, (n, h, w, c), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def splitmix(state):
    """The published step, in Python's unbounded integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def brute(image, u, how, norm):
    """One image, pixel by pixel, in numpy."""
    h, w, c = image.shape
    value = (image.astype(np.float64) / 255 - norm.mean) / norm.std
    if how.flip and u[2] < 0.5:
        value = value[:, ::-1]
    down, right = (int(x * (2 * how.crop + 1)) - how.crop for x in u[:2])
    out = np.zeros((h, w, c))
    for row in range(h):
        for column in range(w):
            if 0 <= row + down < h and 0 <= column + right < w:
                out[row, column] = value[row + down, column + right]
    if how.cutout:
        top, left = int(u[3] * h) - how.cutout // 2, int(u[4] * w) - how.cutout // 2
        out[max(top, 0) : max(top + how.cutout, 0), max(left, 0) : max(left + how.cutout, 0)] = 0
    return out.transpose(2, 0, 1)


def run(images, ids, how, *, seed=3, view=0, norm=NORM):
    step = affine(norm, dtype=images.dtype, channels=images.shape[3])
    return augment(images, ids, how, seed=seed, view=view, step=step)


def test_uniform_is_splitmix64_as_published():
    golden, ids = 0x9E3779B97F4A7C15, [0, 1, 7, 2**40]
    got = uniform(torch.tensor(ids), seed=5, view=2, streams=3)
    key = splitmix((splitmix((5 + golden) % 2**64) ^ 3 * golden) % 2**64)
    for column, number in enumerate(ids):
        word = splitmix(number * golden % 2**64 ^ key)
        for row in range(3):
            assert got[row, column] == (splitmix((word + (row + 1) * golden) % 2**64) >> 11) / 2**53


def test_uniform_looks_uniform_and_its_streams_views_and_seeds_unrelated():
    ids = torch.arange(20_000)
    draws = torch.cat([uniform(ids, seed=s, view=v, streams=3) for s in (0, 1) for v in (0, 1)]).numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert all(stats.kstest(row, "uniform").pvalue > 1e-4 for row in draws)
    off = np.corrcoef(draws) - np.eye(len(draws))
    assert abs(off).max() < 0.035
    assert abs(np.corrcoef(draws[0, :-1], draws[0, 1:])[0, 1]) < 0.035


@given(
    order=st.permutations(range(9)),
    cut=st.integers(1, 8),
    crop=st.integers(0, 4),
    flip=st.booleans(),
    cutout=st.integers(0, 4),
    view=st.integers(0, 5),
    floats=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_same_view_same_pixels_whatever_the_batch_and_order(order, cut, crop, flip, cutout, view, floats):
    images, how = pictures(9), Augment(crop=crop, flip=flip, cutout=cutout)
    images = images.float() / 255 if floats else images
    ids = torch.arange(9) * 11 + 4
    whole = run(images, ids, how, view=view)
    index = torch.tensor(order)
    parts = torch.cat([run(images[i], ids[i], how, view=view) for i in (index[:cut], index[cut:])])
    assert torch.equal(parts, whole[index])


@pytest.mark.parametrize("how", [Augment(crop=2), Augment(flip=True), Augment(crop=9), Augment(cutout=3),
                                 Augment(crop=3, flip=True, cutout=4)])  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_crop_flip_and_cutout_equal_a_pixel_by_pixel_copy(how, channels):
    norm = Normalize(mean=(0.5, 0.4, 0.3, 0.2)[:channels], std=(0.2, 0.25, 0.3, 0.5)[:channels])
    images, ids = pictures(40, c=channels), torch.arange(40) + 100
    draw = uniform(ids, seed=3, view=6, streams=5).numpy()
    want = np.stack([brute(image.numpy(), draw[:, i], how, norm) for i, image in enumerate(images)])
    got = run(images, ids, how, view=6, norm=norm)
    np.testing.assert_allclose(got.numpy(), want, atol=2e-6)
    floats = run(images.float() / 255, ids, how, view=6, norm=norm)
    np.testing.assert_allclose(floats.numpy(), want, atol=2e-6)


def test_views_and_seeds_differ_and_input_is_left_alone():
    images, ids, how = pictures(20), torch.arange(20), Augment(crop=2, flip=True)
    before = images.clone()
    first = run(images, ids, how, view=0)
    assert not torch.equal(first, run(images, ids, how, view=1))
    assert not torch.equal(first, run(images, ids, how, seed=4))
    assert torch.equal(images, before)


@pytest.mark.parametrize("floats", [False, True])
def test_without_augmentation_it_is_the_closed_form_in_channels_last_memory(floats):
    images = pictures(4).float() / 255 if floats else pictures(4)
    before = images.clone()
    got = run(images, torch.arange(4), None)
    want = (before.double() / (1 if floats else 255) - torch.tensor(NORM.mean)) / torch.tensor(NORM.std)
    torch.testing.assert_close(got.double(), want.permute(0, 3, 1, 2), atol=1e-6, rtol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    bare = run(images, torch.arange(4), None, norm=None)
    torch.testing.assert_close(bare, (before.float() / (1 if floats else 255)).permute(0, 3, 1, 2))


@given(y=st.lists(st.integers(-1, 3), min_size=1, max_size=12), cutmix=st.booleans(), view=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_mixed_labels_sum_to_what_is_known_and_weigh_as_the_pixels_do(y, cutmix, view):
    ids = torch.arange(len(y))
    how = Augment(cutmix=1.0) if cutmix else Augment(mixup=0.8)
    mix = draw_mix(ids, how, seed=1, view=view, height=8, width=6)
    label = torch.tensor(y)
    soft = mix_labels(label, mix, 4)
    for i, (own, other) in enumerate(zip(y, label[mix.partner].tolist(), strict=True)):
        want = 0 if own < 0 else 1 if other >= 0 else mix.share
        assert soft[i].sum().item() == pytest.approx(want, abs=1e-6)
    # Images that are constant at their own row's number: the share of the pixels is the share of the label.
    flat = torch.arange(len(y)).double().view(-1, 1, 1, 1).expand(-1, 3, 8, 6)
    want = mix.share * ids + (1 - mix.share) * mix.partner
    torch.testing.assert_close(mix_images(flat, mix).mean((1, 2, 3)), want.double())


@given(order=st.permutations(range(8)))
@settings(max_examples=20, deadline=None)
def test_partners_do_not_depend_on_the_order_in_the_batch(order):
    ids, index = torch.arange(8) * 3, torch.tensor(order)
    how = Augment(mixup=1.0)
    one = draw_mix(ids, how, seed=0, view=1, height=4, width=4)
    two = draw_mix(ids[index], how, seed=0, view=1, height=4, width=4)
    assert one.share == two.share
    assert torch.equal(ids[one.partner][index], ids[index][two.partner])
    assert sorted(one.partner.tolist()) == list(range(8))


def test_soft_labels_are_mixed_as_they_are():
    soft = torch.eye(3)
    mix = draw_mix(torch.arange(3), Augment(mixup=1.0), seed=0, view=0, height=1, width=1)
    assert torch.allclose(mix_labels(soft, mix, 3), mix_labels(torch.arange(3), mix, 3))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"crop": -1}, "crop"),
        ({"cutout": -2}, "cutout"),
        ({"mixup": -1.0}, "mixup"),
        ({"mixup": 1.0, "cutmix": 1.0}, "both"),
    ],
)
def test_impossible_augmentation_is_refused(bad, said):
    with pytest.raises(ConfigError, match=said):
        Augment(**bad)


def test_a_normalisation_of_other_channels_is_refused():
    with pytest.raises(DataError, match="1 channels"):
        affine(Normalize(mean=(0.1, 0.2, 0.3), std=(1, 1, 1)), dtype=torch.uint8, channels=1)
