"""The interval of a median against the binomial distribution and against draws of a known median."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from limbeck.core.errors import ConfigError, DataError
from limbeck.metrics.intervals import median_interval


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("count", [*range(6, 40), 501, 2000])
def test_ranks_are_those_of_the_binomial_distribution(count, level):
    k = 1  # the largest for which the tail below it is small enough, by search
    while stats.binom.cdf(k, count, 0.5) <= (1 - level) / 2:
        k += 1
    values = np.random.default_rng(0).permutation(count) + 1.0
    if stats.binom.cdf(0, count, 0.5) <= (1 - level) / 2:
        assert median_interval(values, level) == (k, count + 1 - k)
    else:
        assert median_interval(values, level) == (1, count)


def test_it_holds_the_median_as_often_as_it_says_of_a_lopsided_distribution():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        low, high = median_interval(rng.exponential(size=25))
        inside += low <= np.log(2) <= high
    assert 0.94 <= inside / 2000 <= 0.98  # 0.957 by the binomial distribution


def test_few_values_and_faults():
    assert median_interval([3.0]) == (3.0, 3.0)
    assert median_interval([2.0, 1.0, 5.0]) == (1.0, 5.0)
    for wrong in ([], [1.0, float("nan")]):
        with pytest.raises(DataError, match="median"):
            median_interval(wrong)
    with pytest.raises(ConfigError, match="level"):
        median_interval([1.0], 1.0)
