from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, ndimage

from limbeck.data.augment import Augment, augment
from limbeck.data.draws import Draws
from limbeck.data.geometry import blank, box_within, rotate, span


@pytest.mark.parametrize(("h", "w"), [(9, 9), (6, 11), (1, 5), (2, 2)])
def test_rotation_is_bilinear_interpolation_in_a_field_of_zeros(h, w):
    rng = np.random.default_rng(0)
    images, degrees = rng.normal(size=(12, h, w, 2)).astype(np.float32), rng.uniform(-180, 180, 12)
    got = rotate(torch.tensor(images), degrees).numpy()
    down, right = np.meshgrid(np.arange(h) - (h - 1) / 2, np.arange(w) - (w - 1) / 2, indexing="ij")
    for image, turn, out in zip(images, np.deg2rad(degrees), got, strict=True):
        # A counter-clockwise turn takes each pixel from where a clockwise turn of its place leads (rows point down).
        place = right + 1j * -down
        source = place * np.exp(-1j * turn)
        at = [-source.imag + (h - 1) / 2, source.real + (w - 1) / 2]
        for c in range(2):
            want = ndimage.map_coordinates(image[..., c].astype(float), at, order=1, mode="grid-constant", cval=0)
            np.testing.assert_allclose(out[..., c], want, atol=2e-5)


def test_a_quarter_turn_is_the_one_that_numpy_makes():
    images = torch.rand(3, 6, 6, 2)
    for turns in (-1, 0, 1, 2):
        got = rotate(images, np.full(3, 90.0 * turns)).numpy()
        np.testing.assert_allclose(got, np.rot90(images.numpy(), turns, axes=(1, 2)), atol=1e-5)


def test_angles_are_uniform_to_both_sides():
    wide = torch.zeros(4000, 41, 41, 1)
    wide[:, 20, 36:] = 1.0
    out = augment(wide, torch.arange(4000), Augment(rotate=30.0), seed=1, view=0, step=None)[:, 0]
    down = torch.arange(41.0) - 20
    rows, columns = (out.sum(2) * down).sum(1) / out.sum((1, 2)), (out.sum(1) * down).sum(1) / out.sum((1, 2))
    angle = torch.rad2deg(torch.atan2(-rows, columns))
    assert angle.abs().max() < 31
    counts = torch.histc(angle, bins=6, min=-30, max=30)
    assert (counts - 4000 / 6).abs().max() < 5 * (4000 / 6) ** 0.5


def boxes(n, share, h, w):
    draws = Draws(torch.arange(n), seed=2, view=0)
    return box_within(draws, share, h, w)


@pytest.mark.parametrize(("h", "w"), [(32, 32), (28, 64), (5, 3), (1, 1), (2, 9)])
def test_erased_boxes_lie_inside_and_have_the_area_and_shape_of_the_paper(h, w):
    rows, columns = boxes(3000, 1.0, h, w)
    tall, wide = rows.sum(1), columns.sum(1)
    # Without gaps: as many places as from the first to the last.
    for flags, count in ((rows, tall), (columns, wide)):
        edges = np.abs(np.diff(np.pad(flags, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1)
        assert (edges == 2 * (count > 0)).all()
    assert (tall < max(h, 1)).all()
    assert (wide < max(w, 1)).all()
    # Each side was rounded by at most half a pixel.
    some = (tall > 0) & (wide > 0)
    assert ((tall[some] - 0.5) * (wide[some] - 0.5) <= 0.4 * h * w + 1e-9).all()
    assert ((tall[some] + 0.5) * (wide[some] + 0.5) >= 0.02 * h * w - 1e-9).all()
    assert ((tall[some] - 0.5) / (wide[some] + 0.5) <= 1 / 0.3).all()
    assert ((tall[some] + 0.5) / (wide[some] - 0.5) >= 0.3).all()


def test_areas_of_boxes_follow_the_rule_that_draws_again_what_does_not_fit():
    rows, columns = boxes(20_000, 1.0, 200, 200)
    area = rows.sum(1) * columns.sum(1) / 200**2

    def fits(a):  # the share of aspects with sqrt(a * r) < 1 and sqrt(a / r) < 1, sides in units of the image
        return max(min(1 / 0.3, 1 / a) - max(0.3, a), 0) / (1 / 0.3 - 0.3)

    whole = integrate.quad(fits, 0.02, 0.4)[0]
    for top in (0.1, 0.2, 0.3, 0.35):
        want = integrate.quad(fits, 0.02, top)[0] / whole
        assert abs((area < top).mean() - want) < 0.015


def test_as_many_samples_are_erased_as_asked_and_boxes_lie_everywhere():
    rows, columns = boxes(20_000, 0.3, 32, 32)
    hit = rows.any(1) & columns.any(1)
    assert abs(hit.mean() - 0.3) < 0.015
    assert (rows.any(1) == columns.any(1)).all()
    heat = np.einsum("bh,bw->hw", rows.astype(float), columns.astype(float))
    assert (abs(heat - heat[::-1, ::-1]) < 5 * (heat + heat[::-1, ::-1]) ** 0.5).all()
    assert (heat > 0).all()
    assert not boxes(500, 0.0, 32, 32)[0].any()


def test_blanking_zeroes_the_meeting_of_rows_and_columns_alone():
    images = torch.rand(6, 5, 4, 3) + 1
    rng = np.random.default_rng(0)
    rows, columns = rng.random((6, 5)) < 0.5, rng.random((6, 4)) < 0.5
    want = np.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, images.numpy())
    blank(images, rows, columns)
    np.testing.assert_array_equal(images.numpy(), want)


def test_spans_may_begin_and_end_beyond_the_edge():
    got = span(4, np.array([-2, 1, 3, 2]), np.array([1, 3, 9, 2]))
    assert got.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
