"""Streamed ranges are those of all values at once, in memory that does not grow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from limbeck.core.errors import NonFiniteError
from limbeck.export.calibrate import BINS, Histogram, _divergence, entropy_range, percentile_range, range_of


def streamed(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part, dtype=np.float32), "here")
    return histogram


@settings(max_examples=40)
@given(seed=st.integers(0, 999), sizes=st.lists(st.integers(1, 300), min_size=1, max_size=6), growth=st.floats(0.2, 9))
def test_counts_are_those_of_all_values_at_once_however_they_come(seed, sizes, growth):
    random = np.random.default_rng(seed)
    parts = [random.normal(0.3, growth**i, size).astype(np.float32) for i, size in enumerate(sizes)]
    histogram, values = streamed(*parts), np.concatenate(parts).astype(np.float64)
    assert (histogram.low, histogram.high) == (min(values.min(), 0), max(values.max(), 0))
    assert len(histogram.counts) == BINS
    assert histogram.half >= np.abs(values).max()
    expected = np.histogram(values, BINS, (-histogram.half, histogram.half))[0]
    # A value within rounding of an edge may be on either side of it.
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected)).max() <= 2
    assert histogram.counts.sum() == len(values)


@pytest.mark.parametrize("percentile", [90, 99, 99.9, 100])
def test_percentiles_are_numpys_to_the_width_of_a_bin(percentile):
    random = np.random.default_rng(1)
    parts = [random.normal(1, 2, 5000) for _ in range(8)]
    histogram, values = streamed(*parts), np.concatenate(parts).astype(np.float32)
    found, width = percentile_range(histogram, percentile), 2 * histogram.half / BINS
    for end, share in zip(found, ((100 - percentile) / 2, 100 - (100 - percentile) / 2), strict=True):
        below, above = (np.percentile(values, share, method=method) for method in ("lower", "higher"))
        assert below - 1.01 * width <= end <= above + 1.01 * width


def test_zero_is_always_inside_and_the_ends_are_those_that_were_seen():
    for values, ends in (([2, 3], (0, 3)), ([-3, -2], (-3, 0)), ([-1, 4], (-1, 4)), ([0, 0], (0, 0)), ([], (0, 0))):
        for how in ("minmax", "percentile", "entropy"):
            low, high = range_of(streamed(values), how, percentile=100.0)
            assert ends[0] <= low <= 0 <= high <= ends[1]
            if how == "minmax":
                assert (low, high) == ends


def test_the_rule_of_the_ends_counts_nothing_and_finds_the_same_range():
    random = np.random.default_rng(2)
    counted, ends = Histogram(), Histogram("minmax")
    for part in (random.normal(1, i + 1, 50).astype(np.float32) for i in range(4)):
        counted.add(part, "here")
        ends.add(part, "here")
    assert range_of(ends, "minmax", percentile=100.0) == range_of(counted, "minmax", percentile=100.0)
    assert counted.counts.sum() == 200
    assert not ends.counts.any()
    with pytest.raises(NonFiniteError, match="'here'"):
        ends.add(np.array([1, np.nan], dtype=np.float32), "here")


def test_the_divergence_is_scipys_of_the_two_distributions():
    sizes = np.array([9, 0, 4, 4, 2, 1, 0, 3])
    clipped = np.array([9, 0, 4, 4, 2, 1 + 3], dtype=float)
    rounded = np.array([9, 0, 4, 4, 1.5, 1.5])  # three levels of two bins: 9 | 4 4 | 2 1, empty ones stay empty
    assert _divergence(sizes, 6, 3) == pytest.approx(entropy(clipped, rounded))
    assert _divergence(sizes, 8, 8) == pytest.approx(0)


def test_the_entropy_rule_cuts_a_thin_tail_and_keeps_a_flat_one():
    random = np.random.default_rng(0)
    bulk, tail = random.normal(0, 1, 200_000), np.array([80.0, -75.0])
    low, high = entropy_range(streamed(bulk, tail))
    assert 3 < high < 40
    assert -40 < low < -3
    low, high = entropy_range(streamed(random.uniform(0, 10, 100_000)))
    assert high > 9
    # As many zeros as a ReLU leaves hide nothing.
    assert entropy_range(streamed(np.abs(bulk), np.zeros(10**6)))[1] > 3


def test_what_is_not_finite_is_named():
    with pytest.raises(NonFiniteError, match="inner value 'here'"):
        streamed([1.0, np.inf])
    with pytest.raises(NonFiniteError, match="inner value 'here'"):
        streamed([1.0], [np.nan])
