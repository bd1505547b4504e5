"""Churn, jitter, divergence and turning: closed forms, and curves that a person can judge."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from limbeck.core.errors import DataError, ShapeError
from limbeck.metrics.stability import at_chance, churn, diverged, jitter, turned


def test_churn_is_the_mean_share_of_changed_answers_over_all_pairs():
    rng = np.random.default_rng(0)
    runs = rng.integers(0, 4, (4, 50)).tolist()
    by_hand = [sum(a != b for a, b in zip(x, y, strict=True)) / 50 for x, y in combinations(runs, 2)]
    found = churn(runs)
    assert found.pairs == pytest.approx(by_hand)
    assert found.mean == pytest.approx(sum(by_hand) / 6)
    assert churn([[1, 2, 3], [1, 2, 3]]).mean == 0
    assert churn([[1, 1], [2, 2]]).mean == 1


def test_churn_refuses_what_has_no_pairs():
    with pytest.raises(DataError, match="two runs or more"):
        churn([[1, 2]])
    with pytest.raises(DataError, match="two runs or more"):
        churn([[], []])
    with pytest.raises(ShapeError, match="same samples"):
        churn([[1, 2], [1]])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_jitter_is_blind_to_a_straight_line_and_to_scale(scale):
    assert jitter([scale * (3 + 0.5 * i) for i in range(40)]) == pytest.approx(0, abs=1e-9)
    wobbly = [3 + (-1) ** i for i in range(40)]
    assert jitter([scale * value for value in wobbly]) == pytest.approx(jitter(wobbly))


def test_jitter_of_independent_noise_around_a_line_is_its_standard_deviation_beside_the_level():
    rng = np.random.default_rng(1)
    line = np.linspace(9, 11, 20_000)
    assert jitter(line + 0.3 * rng.standard_normal(len(line))) == pytest.approx(0.3 / 10, rel=0.03)


def test_jitter_refuses_short_curves_and_numbers_that_are_none():
    for values in ([1, 2, 3, 4], [1, 2, math.nan, 4, 5], [0.0] * 9):
        with pytest.raises(DataError, match="jitter"):
            jitter(values)


def test_diverged():
    assert diverged([2.0, math.nan])
    assert diverged([2.0, math.inf, 1.0])
    assert diverged([2.3] + [1.0] * 5 + [5.0] * 5)
    assert not diverged([2.3 * 0.9**i for i in range(30)])
    assert not diverged([2.3] + [1.0] * 28 + [4.0])  # one spike at the end is not the mean of its last tenth
    assert not diverged([])


def recalls(answers, labels, classes):
    return [float((answers[labels == k] == k).mean()) if (labels == k).any() else math.nan for k in range(classes)]


def test_a_flat_loss_at_chance_has_broken():
    flat = [2.303] * 50  # what ten classes cost when none is told apart
    assert not diverged(flat)
    assert diverged(flat, recalls=[1.0] + [0.0] * 9, samples=10_000)
    assert diverged(flat, recalls=[1.0, None, *[0.0] * 8], samples=10_000)
    assert not diverged(flat, recalls=[0.5] * 10, samples=10_000)
    assert diverged([], recalls=[0.0, 1.0], samples=100)


def test_one_answer_is_chance_however_the_classes_are_mixed():
    rng = np.random.default_rng(3)
    for classes, weights in ((2, [0.95, 0.05]), (3, [0.9, 0.05, 0.05]), (10, [0.1] * 10)):
        labels = rng.choice(classes, 2000, p=weights)
        assert at_chance(recalls(np.zeros(2000, dtype=int), labels, classes), 2000)
        # One that finds half of the rare class has learned, though its accuracy is hardly above the most frequent's.
        better = np.where((labels == classes - 1) & (rng.random(2000) < 0.5), labels, 0)
        assert not at_chance(recalls(better, labels, classes), 2000)


@pytest.mark.parametrize(("classes", "samples"), [(2, 400), (10, 500), (10, 10_000), (100, 10_000)])
def test_guesses_are_at_chance_nearly_always_and_what_is_clearly_above_never(classes, samples):
    rng = np.random.default_rng(4)
    labels = np.arange(samples) % classes
    guessed = sum(at_chance(recalls(rng.integers(0, classes, samples), labels, classes), samples) for _ in range(200))
    assert guessed >= 190  # three standard errors: one in 700
    far = 1 / classes + 0.2 * (1 - 1 / classes)
    assert not at_chance([far] * classes, samples)


def test_a_small_test_set_condemns_only_what_is_near_chance():
    assert not at_chance([0.7, 0.7], 10)  # within three standard errors, but a tenth of the way is 0.55
    assert at_chance([0.54, 0.54], 10)
    for known, samples in (([], 10), ([1.0], 10), ([0.5, 0.5], 0), ([math.nan, 0.0], 10)):
        assert not at_chance(known, samples)


def test_a_curve_turns_where_it_rises_for_good():
    epochs = list(range(1, 31))
    falling = [1 / epoch for epoch in epochs]
    bowl = [0.3 + 0.002 * (epoch - 12) ** 2 for epoch in epochs]
    rng = np.random.default_rng(2)
    flat = (1 + 0.2 * rng.standard_normal(30)).tolist()
    assert turned(epochs, falling) is None
    assert turned(epochs, flat) is None
    assert turned(epochs[:4], bowl[:4]) is None
    found = turned(epochs, bowl)
    assert found is not None
    assert found.epoch == 12
    assert found.rise == pytest.approx(np.mean(bowl[-6:]) - 0.3, abs=0.01)
    with pytest.raises(ShapeError, match="one value an epoch"):
        turned(epochs, bowl[1:])


def test_a_curve_that_still_falls_has_not_turned_and_noise_seldom_does():
    epochs = list(range(1, 31))
    assert turned(epochs, [math.exp(-epoch / 10) for epoch in epochs]) is None
    noisy = [(1 + 0.2 * np.random.default_rng(seed).standard_normal(30)).tolist() for seed in range(100)]
    assert sum(turned(epochs, curve) is not None for curve in noisy) <= 5
