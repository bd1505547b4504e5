"""Oracles: closed forms, a plain loop over bins, and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn import metrics as sk

from limbeck.core.errors import ConfigError, DataError, ModelError, ShapeError
from limbeck.metrics.calibration import (
    adaptive_calibration_error,
    brier_per_sample,
    brier_score,
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
    loop = by_loop(confidence.double().numpy(), correct.numpy(), 15)
    assert sum(n * abs(c - a) for c, a, n in zip(*found, strict=True) if n) / 500 == pytest.approx(loop, abs=1e-9)
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


@pytest.mark.parametrize("bins", [10, 15, 20])
def test_bins_have_the_edges_that_torchmetrics_gives_them(bins):
    from torchmetrics.functional.classification import binary_calibration_error

    # By rounding, k / bins may lie on either side of the edge k. A confidence of 1 has a bin of its own there.
    confidence = torch.arange(bins).double() / bins
    correct = torch.arange(bins) % 2 == 0
    theirs = binary_calibration_error(confidence, correct.long(), n_bins=bins, norm="l1")
    assert calibration_error(confidence, correct, bins=bins) == pytest.approx(float(theirs), abs=1e-12)


@settings(max_examples=20)
@given(st.integers(1, 500), st.integers(1, 30), st.integers(0, 2**31))
def test_equals_torchmetrics(n, bins, seed):
    from torchmetrics.functional.classification import binary_calibration_error

    rng = np.random.default_rng(seed)
    confidence, correct = torch.tensor(rng.random(n)), torch.tensor(rng.integers(0, 2, n))
    theirs = binary_calibration_error(confidence, correct, n_bins=bins, norm="l1")
    assert calibration_error(confidence, correct, bins=bins) == pytest.approx(float(theirs), abs=1e-9)


def by_mass(confidence, correct, bins):
    """Without ties: cut the sorted samples where index * bins / n passes a whole number."""
    order = np.argsort(confidence)
    place = np.arange(len(order)) * bins // len(order)
    groups = [order[place == b] for b in range(bins)]
    return sum(abs(confidence[g].mean() - correct[g].mean()) * len(g) for g in groups if len(g)) / len(order)


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 2**31))
def test_adaptive_bins_hold_equally_many(n, bins, seed):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(n), rng.integers(0, 2, n)
    found = adaptive_calibration_error(torch.tensor(confidence), torch.tensor(correct), bins=bins)
    assert found == pytest.approx(by_mass(confidence, correct, bins), abs=1e-12)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40), st.randoms())
def test_among_equal_confidences_the_order_decides_nothing(rows, random):
    def value(pairs):
        confidence, correct = zip(*pairs, strict=True)
        return adaptive_calibration_error(torch.tensor(confidence), torch.tensor(correct), bins=4)

    mixed = random.sample(rows, len(rows))
    assert value(mixed) == pytest.approx(value(rows), abs=1e-12)


def test_adaptive_closed_forms():
    certain = torch.ones(6)
    assert adaptive_calibration_error(certain, torch.ones(6)) == 0.0
    assert adaptive_calibration_error(certain, torch.zeros(6)) == 1.0
    # One confidence is one bin, however many bins there are: 0.7 said, half right.
    assert adaptive_calibration_error(torch.full((10,), 0.7), torch.arange(10) % 2) == pytest.approx(0.2, abs=1e-7)
    # Crowded where equal widths see one bin of 0.98 said and half right.
    crowded = torch.tensor([0.97] * 5 + [0.99] * 5, dtype=torch.float64)
    right = torch.tensor([0] * 5 + [1] * 5)
    assert calibration_error(crowded, right) == pytest.approx(0.48)
    assert adaptive_calibration_error(crowded, right, bins=2) == pytest.approx((0.97 + 0.01) / 2)


def test_what_has_no_bins_is_refused():
    for measure in (calibration_error, adaptive_calibration_error, reliability):
        with pytest.raises(DataError, match="no sample"):
            measure(torch.empty(0), torch.empty(0))
        with pytest.raises(ModelError, match="NaN"):
            measure(torch.tensor([math.nan]), torch.ones(1))
        with pytest.raises(ShapeError):
            measure(torch.ones(2), torch.ones(1))
        with pytest.raises(ConfigError, match="bins"):
            measure(torch.ones(2), torch.ones(2), bins=0)


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(2, 6))
def test_brier_equals_sklearn_summed_over_classes(seed, n, classes):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(n, classes)) * 4, rng.integers(0, classes, n)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mine = brier_score(torch.tensor(logits), torch.tensor(labels))
    if classes == 2:  # scikit-learn halves it there
        assert mine == pytest.approx(2 * sk.brier_score_loss(labels, p[:, 1], labels=[0, 1]), abs=1e-12)
    else:
        theirs = sk.brier_score_loss(labels, p, labels=range(classes), scale_by_half=False)
        assert mine == pytest.approx(theirs, abs=1e-12)


def test_brier_from_perfect_to_worst():
    sure = torch.tensor([[900.0, 0.0, 0.0], [900.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert brier_per_sample(sure, torch.tensor([0, 2, 1])).tolist() == pytest.approx([0.0, 2.0, 2 / 3], abs=1e-12)
    assert brier_score(sure, torch.tensor([0, -1, -1])) == 0.0
    masked = torch.tensor([[0.0, -math.inf]])
    assert brier_score(masked, torch.tensor([1])) == 2.0
    assert brier_score(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)) == 0.0
    with pytest.raises(ModelError, match="NaN"):
        brier_score(sure * math.nan, torch.tensor([0, 2, 1]))
    with pytest.raises(DataError, match="no sample is labelled"):
        brier_score(sure, torch.tensor([-1, -1, -1]))


def test_a_temperature_is_one_where_nothing_tells_it():
    assert fit_temperature(torch.zeros(3, 4), torch.tensor([0, 1, 2])) == 1.0
    ruled_out = torch.tensor([[0.0, 1.0, -math.inf]])
    assert fit_temperature(ruled_out, torch.tensor([2])) == 1.0
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(200, 3, generator=generator, dtype=torch.double)
    labels = torch.randint(0, 3, (200,), generator=generator)
    more, truth = torch.cat([logits, ruled_out.double()]), torch.cat([labels, torch.tensor([2])])
    assert fit_temperature(more, truth) == pytest.approx(fit_temperature(logits, labels), rel=1e-12)
