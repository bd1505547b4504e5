from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.core.errors import ConfigError
from limbeck.core.normalize import Normalize
from limbeck.data.augment import Augment, augment
from limbeck.data.draws import uniform
from limbeck.data.pixels import affine

NORM = Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def pictures(n, h=7, w=5, c=3, seed=0):
    return torch.randint(0, 256, (n, h, w, c), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


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


@given(
    order=st.permutations(range(9)),
    cut=st.integers(1, 8),
    crop=st.integers(0, 4),
    flip=st.booleans(),
    cutout=st.integers(0, 4),
    view=st.integers(0, 5),
    floats=st.booleans(),
)
@settings(max_examples=60)
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


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"crop": -1}, "crop"),
        ({"cutout": -2}, "cutout"),
        ({"mixup": -1.0}, "mixup"),
        ({"mixup": 1.0, "cutmix": 1.0}, "both"),
        ({"mixup": float("nan")}, "mixup"),
        ({"cutmix": float("inf")}, "cutmix"),
        ({"rotate": 181.0}, "rotate"),
        ({"hue": 0.6}, "hue is 0.6"),
        ({"contrast": 1.5}, "give 0 to 1"),
        ({"grey": -0.1}, "grey"),
        ({"erase": 2.0}, "erase"),
    ],
)
def test_impossible_augmentation_is_refused(bad, said):
    with pytest.raises(ConfigError, match=said):
        Augment(**bad)


EACH = {
    "crop": 2, "flip": True, "cutout": 3, "rotate": 30.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4,
    "hue": 0.2, "grey": 0.5, "erase": 0.7,
}  # fmt: skip
ALONE = {name: Augment(**{name: value}) for name, value in EACH.items()}
ALL = {**ALONE, "all": Augment(**EACH)}


@given(
    how=st.sampled_from(list(ALL.values())),
    order=st.permutations(range(9)),
    cut=st.integers(1, 8),
    view=st.integers(0, 5),
    floats=st.booleans(),
    channels=st.sampled_from([1, 3, 4]),
    size=st.sampled_from([(7, 5), (1, 1), (33, 20)]),
)
@settings(max_examples=120)
def test_every_operation_gives_the_same_pixels_whatever_the_batch_and_order(
    how, order, cut, view, floats, channels, size
):
    images, index, norm = pictures(9, *size, channels), torch.tensor(order), Normalize(mean=(0.4,), std=(0.2,))
    images = images.float() / 255 if floats else images
    ids, before = torch.arange(9) * 11 + 4, images.clone()
    whole = run(images, ids, how, view=view, norm=norm)
    parts = torch.cat([run(images[i], ids[i], how, view=view, norm=norm) for i in (index[:cut], index[cut:])])
    alone = torch.cat([run(images[i : i + 1], ids[i : i + 1], how, view=view, norm=norm) for i in range(9)])
    assert torch.equal(parts, whole[index])
    assert torch.equal(alone, whole)
    assert torch.equal(images, before)
    assert whole.shape == (9, channels, *size)
    assert whole.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("how", ALL.values(), ids=ALL)
def test_every_operation_changes_most_views_and_takes_bytes_as_it_takes_floats(how):
    images, ids = pictures(40), torch.arange(40)
    first, second = run(images, ids, how), run(images, ids, how, view=1)
    same = (first == second).flatten(1).all(1).float().mean()
    assert same < 0.75
    assert how.moves
    assert not how.mixes
    torch.testing.assert_close(run(images.float() / 255, ids, how), first, atol=2e-5, rtol=1e-5)


def test_one_operation_changes_nothing_that_another_draws():
    """A crop, then with everything else on; where nothing else shows, pixels are the crop's."""
    images, ids = pictures(30), torch.arange(30)
    blanks = run(images, ids, Augment(cutout=3)) == 0
    for name, how in ALONE.items():
        if name in ("crop", "cutout", "flip", "rotate"):
            continue
        both = run(images, ids, Augment(cutout=3, **{name: EACH[name]}))
        alone = run(images, ids, how)
        assert torch.equal(both, torch.where(blanks, torch.zeros(()), alone)), name
        moved = run(images, ids, Augment(crop=2, flip=True, **{name: EACH[name]}))
        if name != "erase":  # colours first: the crop of what was recoloured
            plain = affine(None, dtype=torch.float32, channels=3)
            raw = augment(images.float() / 255, ids, how, seed=3, view=0, step=plain).permute(0, 2, 3, 1).contiguous()
            torch.testing.assert_close(moved, run(raw, ids, Augment(crop=2, flip=True)), atol=1e-5, rtol=1e-5)


def test_what_is_augmented_has_no_gradient():
    images = torch.rand(4, 5, 5, 3, requires_grad=True)
    for how in (None, *ALL.values()):
        assert not run(images, torch.arange(4), how).requires_grad
    assert images.grad_fn is None


def test_rotation_beyond_the_edge_and_erased_boxes_are_the_mean():
    white = torch.full((50, 8, 8, 3), 255, dtype=torch.uint8)
    out = run(white, torch.arange(50), Augment(rotate=180.0, erase=0.5))
    brightest = (1 - torch.tensor(NORM.mean)) / torch.tensor(NORM.std)
    assert (out >= -1e-6).all()
    assert (out <= brightest.view(1, 3, 1, 1) + 1e-5).all()
    assert (out == 0).any()


def test_all_pixels_stay_on_the_device_of_the_images():
    """Without a second device: meta tensors hold shapes alone, and refuse to meet tensors of the CPU."""
    step = affine(NORM, dtype=torch.uint8, channels=3)
    images = torch.empty((4, 7, 5, 3), dtype=torch.uint8, device="meta")
    for how in (None, *ALL.values()):
        assert augment(images, torch.arange(4), how, seed=0, view=0, step=step).device.type == "meta"
