"""Churn, jitter, divergence and turning: closed forms, and curves that a person can judge."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from limbeck.core.errors import DataError, ShapeError
from limbeck.metrics.stability import churn, diverged, jitter, turned


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
