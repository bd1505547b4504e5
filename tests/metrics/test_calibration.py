"""Oracle: closed form, and a plain loop over bins."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.core.errors import DataError, ModelError, ShapeError
from limbeck.metrics.calibration import calibration_error, expected_calibration_error


def by_loop(confidence, correct, bins):
    total = 0.0
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    for b in range(bins):
        inside = index == b
        if inside.any():
            total += abs(confidence[inside].mean() - correct[inside].mean()) * inside.mean()
    return total


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**31))
def test_equals_a_loop_over_bins(n, seed):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(n), rng.integers(0, 2, n)
    assert calibration_error(torch.tensor(confidence), torch.tensor(correct)) == pytest.approx(
        by_loop(confidence, correct, 15), abs=1e-12
    )


def test_closed_forms():
    half = torch.full((4, 2), 0.5)
    assert expected_calibration_error(half, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.0, abs=1e-12)
    sure = torch.tensor([[1.0, 0.0]] * 4)
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 0])) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(sure, torch.tensor([1, 1, 1, 1])) == pytest.approx(1.0, abs=1e-12)
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25, abs=1e-12)


def test_a_confidence_of_one_shares_the_last_bin():
    # 0.95 right and 1.0 wrong: one bin with gap |0.975 - 0.5|. Two bins would give 0.525.
    assert calibration_error(torch.tensor([0.95, 1.0], dtype=torch.float64), torch.tensor([1, 0])) == pytest.approx(
        0.475, abs=1e-9
    )


def test_sums_are_float64():
    confidence = torch.full((300_000,), 0.7, dtype=torch.float32)
    exact = float(confidence[0].double())
    assert calibration_error(confidence, torch.zeros(300_000)) == pytest.approx(exact, abs=1e-10)


def test_unlabelled_samples_are_left_out():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]).double()
    assert expected_calibration_error(p, torch.tensor([0, 1, -1])) == expected_calibration_error(
        p[:2], torch.tensor([0, 1])
    )


def test_what_is_no_probability_or_label_is_refused():
    y = torch.tensor([0, 1])
    for bad in (math.nan, -0.1, 1.5):
        with pytest.raises(ModelError, match=r"NaN or outside 0\.\.1"):
            expected_calibration_error(torch.tensor([[bad, bad], [0.5, 0.5]]), y)
    with pytest.raises(ModelError, match=r"\[samples, classes\]"):
        expected_calibration_error(torch.tensor([0.1, 0.2]), y)
    with pytest.raises(DataError, match="no sample is labelled"):
        expected_calibration_error(torch.full((2, 2), 0.5), torch.tensor([-1, -1]))
    with pytest.raises(DataError, match="label 2"):
        expected_calibration_error(torch.full((2, 2), 0.5), torch.tensor([0, 2]))
    with pytest.raises(ShapeError):
        expected_calibration_error(torch.full((2, 2), 0.5), torch.tensor([0]))
    with pytest.raises(ShapeError):
        calibration_error(torch.tensor([0.5]), torch.tensor([1, 0]))
