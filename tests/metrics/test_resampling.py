"""The bootstrap covers what it says, the permutation test is level and is scipy's."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
from scipy import stats

from limbeck.core.errors import ConfigError, DataError, ShapeError
from limbeck.metrics.intervals import paired
from limbeck.metrics.resampling import bootstrap, permutation_test


@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize("interval", [bootstrap, paired])
def test_a_known_difference_is_covered_as_often_as_promised(interval, n):
    rng = np.random.default_rng(n)
    draws = 2000 if n == 5 or interval is paired else 400
    held = 0
    for _ in range(draws):
        shared = rng.normal(0, 3, n)  # what both arms share at a seed cancels
        a, b = shared + 0.7 + rng.normal(0, 1, n), shared + rng.normal(0, 1, n)
        found = interval(a, b)
        held += found.low <= 0.7 <= found.high
    assert 0.93 <= held / draws <= 0.97


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_the_exact_test_is_that_of_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
    theirs = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x) - np.mean(y), permutation_type="samples", n_resamples=np.inf
    )
    mine = permutation_test(a, b)
    assert mine.exact
    assert mine.p == pytest.approx(theirs.pvalue)


def test_the_test_is_level_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    p = np.array([permutation_test(rng.normal(0, 1, 6), rng.normal(0, 1, 6)).p for _ in range(2000)])
    for alpha in (0.04, 0.1, 0.25, 0.5):
        assert (p <= alpha).mean() <= alpha + 2.6 * np.sqrt(alpha * (1 - alpha) / 2000)


def test_what_few_pairs_can_reach_is_told():
    found = permutation_test([1, 2, 3, 4, 5], [0, 0, 0, 0, 0])
    assert found.p == found.least == 2 / 2**5
    assert permutation_test([1.0, 1.0], [1.0, 1.0]).p == 1
    assert permutation_test([0.3], [0.1]).p == 1


def test_many_pairs_are_drawn_and_never_impossible():
    found = permutation_test(np.arange(1, 31.0), np.zeros(30))
    assert not found.exact
    assert found.p == pytest.approx(1 / 20_001)
    again = permutation_test(np.arange(1, 31.0), np.zeros(30))
    assert again == found


def test_few_or_equal_differences_get_students_interval():
    assert bootstrap([1, 2, 4], [0, 0, 0]) == paired([1, 2, 4], [0, 0, 0])
    assert bootstrap([1.0] * 5, [0.5] * 5).low == pytest.approx(0.5)
    assert bootstrap([1.0], [0.0]).low is None


def test_bootstrap_moves_and_turns_with_the_data():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, 5), rng.normal(0, 1, 5)
    plain, moved, turned = bootstrap(a, b), bootstrap(a + 2, b), bootstrap(b, a)
    assert (moved.low, moved.high) == pytest.approx((plain.low + 2, plain.high + 2))
    assert (turned.low, turned.high) == pytest.approx((-plain.high, -plain.low), rel=0.02)


def test_what_has_no_difference_is_refused():
    for call in (bootstrap, permutation_test):
        with pytest.raises(ShapeError):
            call([1, 2], [1])
        with pytest.raises(DataError):
            call([1, np.nan], [1, 2])
        with pytest.raises(DataError):
            call([], [])
    with pytest.raises(ConfigError):
        bootstrap([1, 2, 3, 4], [0, 0, 0, 0], 1.5)


def test_the_bootstrap_is_the_textbooks_written_out():
    d = [0.1, 0.4, 0.9, 2.5, 0.3]
    mean, error = statistics.fmean(d), statistics.stdev(d) / len(d) ** 0.5
    t = []
    for drawn in itertools.product(d, repeat=5):
        apart, own = statistics.fmean(drawn) - mean, statistics.stdev(drawn) / 5**0.5
        t.append(apart / own if len(set(drawn)) > 1 else np.copysign(np.inf, apart))
    t.sort()
    low, high = (t[int(np.ceil(q * len(t))) - 1] for q in (0.025, 0.975))
    found = bootstrap(d, [0.0] * 5)
    assert (found.low, found.high) == pytest.approx((mean - high * error, mean - low * error))
    assert found.high - mean > 1.2 * (mean - found.low)  # lopsided, as its data: not Student's


def test_where_too_many_resamples_are_flat_students_interval_stands():
    a, b = [1.0, 2.0, 4.0, 9.0], [0.0] * 4
    assert bootstrap(a, b, 0.99) == paired(a, b, 0.99)  # 4 of 256 resamples repeat one value: 0.8 % at each end
    assert bootstrap(a, b, 0.95) != paired(a, b, 0.95)
