"""Oracle: scipy.stats and the statistics module."""

import math
import pickle
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from limbeck.core.errors import ConfigError, DataError, ShapeError
from limbeck.metrics.intervals import critical_t, paired, summary

numbers = st.floats(-1e3, 1e3)


@pytest.mark.parametrize("level", [0.01, 0.5, 0.8, 0.9, 0.95, 0.99, 0.9999])
def test_critical_t_equals_scipy(level):
    for df in range(1, 201):
        assert critical_t(df, level) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-8, abs=1e-8)


def test_critical_t_tends_to_the_normal_and_has_a_closed_form_at_one():
    assert critical_t(10**7, 0.95) == pytest.approx(stats.norm.ppf(0.975), abs=1e-6)
    assert critical_t(1, 0.95) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-12)


@given(st.lists(numbers, min_size=2, max_size=20))
def test_summary_equals_the_statistics_module(values):
    mean, sd, n = summary(values)
    assert mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert sd == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-9)
    assert n == len(values)


def test_summary_of_one_value_has_no_spread():
    assert summary([0.25]) == (0.25, 0.0, 1)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12), st.sampled_from([0.5, 0.9, 0.95]))
def test_paired_equals_scipy(rows, level):
    a, b = zip(*rows, strict=True)
    result = paired(a, b, level)
    differences = [x - y for x, y in rows]
    if statistics.stdev(differences) < 1e-9:
        return
    theirs = stats.ttest_1samp(differences, 0).confidence_interval(level)
    assert (result.low, result.high) == pytest.approx((theirs.low, theirs.high), rel=1e-7, abs=1e-7)
    back = paired(b, a, level)
    assert (back.mean, back.low, back.high) == pytest.approx((-result.mean, -result.high, -result.low))


def test_one_pair_has_a_mean_and_no_interval():
    assert paired([0.9], [0.8])[1:] == (None, None, 1, 0.95)
    assert paired([0.9], [0.8]).mean == pytest.approx(0.1)


def test_equal_differences_have_an_interval_of_no_width():
    result = paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert (result.mean, result.low, result.high) == (1.0, 1.0, 1.0)


def test_what_has_no_interval_is_refused():
    with pytest.raises(DataError):
        summary([])
    with pytest.raises(DataError):
        summary([1.0, math.nan])
    with pytest.raises(ShapeError, match="2 values against 1"):
        paired([1.0, 2.0], [1.0])
    for level in (0.0, 1.0, 95.0):
        with pytest.raises(ConfigError):
            paired([1.0, 2.0], [1.0, 2.0], level)
    with pytest.raises(ConfigError):
        critical_t(0, 0.95)


def test_results_pickle():
    result = paired([1.0, 2.0], [1.0, 1.5])
    assert pickle.loads(pickle.dumps(result)) == result
