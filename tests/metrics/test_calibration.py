"""Oracle: closed form, and a plain loop over bins."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from limbeck.core.errors import DataError, ModelError, ShapeError
from limbeck.metrics.calibration import (
    calibration_error,
    expected_calibration_error,
    fit_temperature,
    reliability,
)


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


def test_reliability_sums_up_to_the_calibration_error():
    generator = torch.Generator().manual_seed(3)
    confidence, correct = torch.rand(500, generator=generator), torch.rand(500, generator=generator) < 0.6
    confidence[0], confidence[1] = 0.0, 1.0
    found = reliability(confidence, correct)
    assert sum(found.samples) == 500
    gap = sum(n * abs(c - a) for c, a, n in zip(*found, strict=True) if n) / 500
    assert gap == pytest.approx(calibration_error(confidence, correct), abs=1e-9)
    for index in range(15):
        inside = [i for i, c in enumerate(confidence.double().tolist()) if min(int(c * 15), 14) == index]
        assert found.samples[index] == len(inside)
        if inside:
            assert found.accuracy[index] == pytest.approx(sum(bool(correct[i]) for i in inside) / len(inside))


def test_empty_bins_have_no_accuracy():
    found = reliability(torch.tensor([0.99, 0.98]), torch.tensor([True, False]))
    assert found.samples == [0] * 14 + [2]
    assert all(math.isnan(value) for value in found.accuracy[:14])


@pytest.mark.parametrize("truth", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_one_that_was_put_in_and_scipys_minimum(truth):
    generator = torch.Generator().manual_seed(4)
    honest = 2 * torch.randn(4000, 5, generator=generator, dtype=torch.double)
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator).squeeze(1)
    logits = honest * truth
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(truth, rel=0.1)
    least = optimize.minimize_scalar(
        lambda t: float(torch.nn.functional.cross_entropy(logits / t, labels)), bounds=(0.05, 100), method="bounded",
        options={"xatol": 1e-6},
    )  # fmt: skip
    assert found == pytest.approx(least.x, rel=1e-3)


def test_a_temperature_stays_within_its_bounds():
    separable = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    assert fit_temperature(separable, torch.tensor([0, 1])) == pytest.approx(0.05)
    assert fit_temperature(separable, torch.tensor([1, 0])) == pytest.approx(100)
    assert fit_temperature(torch.tensor([[5.0, -math.inf], [0.0, 5.0]]), torch.tensor([0, 1])) == pytest.approx(0.05)
    with pytest.raises(DataError, match="no sample is labelled"):
        fit_temperature(separable, torch.tensor([-1, -1]))
    with pytest.raises(ModelError, match="NaN"):
        fit_temperature(separable * math.nan, torch.tensor([0, 1]))
