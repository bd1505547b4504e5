from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy import stats

from limbeck.data.augment import Augment
from limbeck.data.colour import jitter
from limbeck.data.draws import Draws

IMAGES = torch.randint(0, 256, (24, 6, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES[3], IMAGES[4], IMAGES[5, :3] = 0, 255, 128  # black, white, and rows without colour
IDS = torch.arange(24) * 7


def run(images, how, seed=3, view=2):
    return jitter(images, Draws(IDS[: len(images)], seed=seed, view=view), how)


def factors(name, reach, seed=3, view=2):
    return 1 + reach * (2 * Draws(IDS, seed=seed, view=view).named(name) - 1)


@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_brightness_contrast_and_saturation_are_those_of_pil(name, enhance):
    got = run(IMAGES, Augment(**{name: 0.9})).numpy()
    for image, factor, out in zip(IMAGES.numpy(), factors(name, 0.9), got, strict=True):
        want = np.asarray(enhance(Image.fromarray(image)).enhance(factor)).astype(float)
        # PIL rounds to bytes: the grey value that it blends with, and the result.
        assert np.abs(out - want).max() <= 1.5 + abs(1 - factor)


def formula(image, name, factor):
    """One image from 0 to 1, in double precision."""
    grey = image @ [0.299, 0.587, 0.114]
    if name == "hue":
        out = np.empty_like(image)
        for place in np.ndindex(image.shape[:2]):
            h, s, v = colorsys.rgb_to_hsv(*image[place])
            out[place] = colorsys.hsv_to_rgb((h + factor - 1) % 1, s, v)
        return out
    towards = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey[..., None]}[name]
    return np.clip(factor * image + (1 - factor) * towards, 0, 1)


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("names", [["brightness"], ["contrast"], ["saturation"], ["hue"],
                                   ["brightness", "contrast", "saturation", "hue"]])  # fmt: skip
def test_each_property_and_all_in_their_order_equal_a_pixel_by_pixel_formula(names, floats):
    images, top = (IMAGES.float() / 255, 1) if floats else (IMAGES, 255)
    got = run(images, Augment(**dict.fromkeys(names, 0.5))).numpy() / top
    reach = {name: factors(name, 0.5) for name in names}
    for i, image in enumerate(IMAGES.numpy() / 255.0):
        want = image
        for name in names:
            want = formula(want, name, reach[name][i])
        np.testing.assert_allclose(got[i], want, atol=1e-5 if len(names) == 1 else 5e-5)


def test_grey_replaces_a_share_of_the_images_by_their_luminance():
    chosen = Draws(IDS, seed=3, view=2).named("grey") < 0.5
    got = run(IMAGES, Augment(grey=0.5)).numpy()
    grey = np.repeat((IMAGES.numpy() @ [0.299, 0.587, 0.114])[..., None], 3, 3)
    np.testing.assert_allclose(got, np.where(chosen[:, None, None, None], grey, IMAGES.numpy()), atol=1e-4)
    assert 4 < chosen.sum() < 20


def test_a_single_channel_has_no_colour_and_a_fourth_is_opacity():
    one, four = IMAGES[..., :1], torch.cat([IMAGES, IMAGES[..., :1]], 3)
    assert torch.equal(run(one, Augment(saturation=1.0, hue=0.5, grey=1.0)), one.float())
    how = Augment(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5, grey=0.2)
    assert torch.equal(run(four, how)[..., :3], run(IMAGES, how))
    assert torch.equal(run(four, how)[..., 3:], one.float())
    got = run(one, Augment(contrast=0.9)).numpy()
    for image, factor, out in zip(one.numpy() / 255.0, factors("contrast", 0.9), got, strict=True):
        np.testing.assert_allclose(out / 255, np.clip(factor * image + (1 - factor) * image.mean(), 0, 1), atol=1e-5)


def test_factors_and_shifts_are_uniform():
    ids = torch.arange(20_000)
    pixel = torch.tensor([0.5, 0.25, 0.25]).view(1, 1, 1, 3).expand(20_000, 1, 1, 3)
    draws = Draws(ids, seed=0, view=0)
    bright = jitter(pixel, draws, Augment(brightness=0.4))[:, 0, 0, 0] / 0.5
    assert stats.kstest(bright.numpy(), stats.uniform(0.6, 0.8).cdf).pvalue > 1e-4
    turned = jitter(pixel, draws, Augment(hue=0.25))[:, 0, 0].double().numpy()
    hue = np.array([colorsys.rgb_to_hsv(*rgb)[0] for rgb in turned])
    shift = (hue + 0.5) % 1 - 0.5
    assert stats.kstest(shift, stats.uniform(-0.25, 0.5).cdf).pvalue > 1e-4
    off = np.corrcoef(bright.numpy(), shift)[0, 1]
    assert abs(off) < 0.035


def test_a_large_image_alone_has_the_mean_that_it_has_in_a_batch():
    """Where a sum would be cut between threads, its rounding would change with the batch."""
    images = torch.rand(3, 300, 300, 3, generator=torch.Generator().manual_seed(0))
    how = Augment(contrast=0.8)
    whole = jitter(images, Draws(torch.arange(3), seed=0, view=0), how)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for i in range(3):
            assert torch.equal(jitter(images[i : i + 1], Draws(torch.tensor([i]), seed=0, view=0), how)[0], whole[i])
    finally:
        torch.set_num_threads(threads)
