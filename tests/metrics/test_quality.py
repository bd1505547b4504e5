"""Oracle: scikit-learn over the classes present, and hand counts."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from limbeck.core.errors import ConfigError, DataError, ModelError, ShapeError
from limbeck.metrics.quality import (
    accuracy,
    confusion,
    f1_per_class,
    macro_f1,
    macro_precision,
    macro_recall,
    micro_f1,
    micro_precision,
    negative_log_likelihood,
    negative_log_likelihood_per_sample,
    precision_per_class,
    recall_per_class,
    top_k_accuracy,
)

CLASSES = 5
pairs = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=40
)  # often with absent classes, often with one class only


@given(pairs)
def test_counts_equal_sklearn_over_the_classes_present(rows):
    predicted, labels = (list(column) for column in zip(*rows, strict=True))
    p, y = torch.tensor(predicted), torch.tensor(labels)
    present = sorted(set(labels))
    same = {"labels": present, "average": "macro", "zero_division": 0}
    assert accuracy(p, y) == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
    assert macro_recall(p, y, num_classes=CLASSES) == pytest.approx(
        sk.recall_score(labels, predicted, **same), abs=1e-12
    )
    assert macro_f1(p, y, num_classes=CLASSES) == pytest.approx(sk.f1_score(labels, predicted, **same), abs=1e-12)
    assert macro_precision(p, y, num_classes=CLASSES) == pytest.approx(
        sk.precision_score(labels, predicted, **same), abs=1e-12
    )
    each = {"labels": present, "average": None, "zero_division": 0}
    recall, f1 = recall_per_class(p, y, num_classes=CLASSES), f1_per_class(p, y, num_classes=CLASSES)
    np.testing.assert_allclose([recall[c] for c in present], sk.recall_score(labels, predicted, **each), atol=1e-12)
    np.testing.assert_allclose([f1[c] for c in present], sk.f1_score(labels, predicted, **each), atol=1e-12)
    precision = precision_per_class(p, y, num_classes=CLASSES)
    np.testing.assert_allclose(
        [precision[c] for c in present], sk.precision_score(labels, predicted, **each), atol=1e-12
    )
    absent = set(range(CLASSES)) - set(present)
    assert all(math.isnan(precision[c]) for c in absent)
    assert all(math.isnan(recall[c]) and math.isnan(f1[c]) for c in absent)


@given(pairs, st.integers(1, 20))
def test_unlabelled_samples_change_nothing(rows, extra):
    predicted, labels = (list(column) for column in zip(*rows, strict=True))
    p, y = torch.tensor(predicted), torch.tensor(labels)
    more_p, more_y = torch.cat([p, torch.zeros(extra, dtype=p.dtype)]), torch.cat([y, torch.full((extra,), -1)])
    assert accuracy(more_p, more_y) == accuracy(p, y)
    assert f1_per_class(more_p, more_y, num_classes=CLASSES) == f1_per_class(p, y, num_classes=CLASSES)
    assert recall_per_class(more_p, more_y, num_classes=CLASSES) == recall_per_class(p, y, num_classes=CLASSES)


def test_perfect_and_worst():
    y = torch.tensor([0, 1, 2, 1])
    worst = (y + 1) % 3
    assert macro_precision(y, y, num_classes=3) == micro_precision(y, y, num_classes=3) == 1.0
    assert macro_precision(worst, y, num_classes=3) == micro_f1(worst, y, num_classes=3) == 0.0
    assert accuracy(y, y) == macro_recall(y, y, num_classes=3) == macro_f1(y, y, num_classes=3) == 1.0
    assert accuracy(worst, y) == macro_recall(worst, y, num_classes=3) == macro_f1(worst, y, num_classes=3) == 0.0


def test_negative_log_likelihood_equals_sklearn_and_the_uniform_closed_form():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, CLASSES)) * 3, rng.integers(0, CLASSES, 50)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    value = negative_log_likelihood(torch.tensor(logits), torch.tensor(labels))
    assert value == pytest.approx(sk.log_loss(labels, p, labels=range(CLASSES)), abs=1e-12)
    assert negative_log_likelihood(torch.zeros(3, 7), torch.tensor([0, 6, -1])) == pytest.approx(math.log(7), abs=1e-12)


def test_negative_log_likelihood_stays_finite_at_huge_logits_and_skips_the_unlabelled():
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4], [0.0, 0.0]])
    each = negative_log_likelihood_per_sample(logits, torch.tensor([0, 1, -1]))
    assert each.dtype == torch.float64
    assert each.tolist() == [0.0, 2e4]


def test_a_masked_class_is_allowed_and_costs_nothing():
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    assert negative_log_likelihood(logits, torch.tensor([0])) == pytest.approx(math.log(2), abs=1e-12)
    assert negative_log_likelihood(logits, torch.tensor([2])) == math.inf


@pytest.mark.parametrize("row", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_without_probabilities_are_refused(row):
    with pytest.raises(ModelError, match="1 of 2 samples are NaN or infinite"):
        negative_log_likelihood(torch.tensor([[0.0, 1.0], row]), torch.tensor([0, 1]))


def test_what_cannot_be_scored_is_refused():
    y = torch.tensor([-1, -1])
    counted = (macro_f1, macro_recall, macro_precision, micro_precision, micro_f1)
    for f in (accuracy, *(functools.partial(f, num_classes=2) for f in counted)):
        with pytest.raises(DataError, match="no sample is labelled"):
            f(torch.tensor([0, 1]), y)
    with pytest.raises(DataError, match="no sample is labelled"):
        negative_log_likelihood(torch.zeros(2, 3), y)
    with pytest.raises(DataError, match="label 3 does not fit 3 classes"):
        negative_log_likelihood(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(DataError, match="label -2"):
        macro_recall(torch.tensor([0]), torch.tensor([-2]), num_classes=3)
    with pytest.raises(DataError, match="whole-number"):
        macro_recall(torch.tensor([0]), torch.tensor([0.0]), num_classes=3)
    with pytest.raises(ShapeError):
        accuracy(torch.tensor([0, 1]), torch.tensor([0]))
    with pytest.raises(ModelError, match=r"\[samples, classes\]"):
        negative_log_likelihood(torch.zeros(2, 3, 4), torch.tensor([0, 1]))


def test_small_integer_labels_do_not_wrap_around():
    assert accuracy(torch.tensor([0, 255]), torch.tensor([0, 255], dtype=torch.uint8)) == 1.0
    assert macro_recall(torch.tensor([1]), torch.tensor([1], dtype=torch.uint8), num_classes=2) == 1.0


@given(pairs)
def test_confusion_is_that_of_scikit_learn(rows):
    labels, answers = (torch.tensor(side) for side in zip(*rows, strict=True))
    mine = confusion(answers, labels, num_classes=CLASSES)
    assert mine.tolist() == sk.confusion_matrix(labels, answers, labels=range(CLASSES)).tolist()


def test_confusion_leaves_out_what_has_no_label_or_no_answer():
    found = confusion(torch.tensor([0, 1, -1, 1]), torch.tensor([0, -1, 1, 0]), num_classes=2)
    assert found.tolist() == [[1, 1], [0, 0]]
    with pytest.raises(DataError):
        confusion(torch.tensor([2]), torch.tensor([0]), num_classes=2)


@given(pairs)
def test_micro_averages_are_the_accuracy_until_somebody_abstains(rows):
    answers, labels = (torch.tensor(side) for side in zip(*rows, strict=True))
    own = {"labels": range(CLASSES), "average": "micro"}
    for mine, theirs in ((micro_precision, sk.precision_score), (micro_f1, sk.f1_score)):
        value = mine(answers, labels, num_classes=CLASSES)
        assert value == pytest.approx(theirs(labels, answers, **own), abs=1e-12)
        assert value == pytest.approx(accuracy(answers, labels), abs=1e-12)
    more, truth = torch.cat([answers, torch.tensor([-1])]), torch.cat([labels, labels[:1]])
    assert micro_precision(more, truth, num_classes=CLASSES) == micro_precision(answers, labels, num_classes=CLASSES)
    hits = int((answers == labels).sum())
    assert micro_f1(more, truth, num_classes=CLASSES) == pytest.approx(2 * hits / (2 * len(rows) + 1))
    assert micro_precision(torch.tensor([-1]), torch.tensor([0]), num_classes=2) == 0.0


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 7), st.integers(1, 8))
def test_top_k_equals_sklearn_where_no_logits_are_equal(seed, n, classes, k):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(n, classes)), rng.integers(0, classes, n)
    found = top_k_accuracy(torch.tensor(logits), torch.tensor(labels), k)
    if k >= classes:
        assert found == 1.0
    elif classes > 2:
        assert found == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=k, labels=range(classes)))
    assert top_k_accuracy(torch.tensor(logits), torch.tensor(labels), 1) == accuracy(
        torch.tensor(logits).argmax(1), torch.tensor(labels)
    )


@given(st.lists(st.lists(st.sampled_from([-math.inf, 0.0, 1.0, 2.0]), min_size=4, max_size=4), min_size=1), st.data())
def test_of_equal_logits_the_lower_class_comes_first(rows, data):
    rows = [row if max(row) > -math.inf else [0.0, *row[1:]] for row in rows]
    labels = [data.draw(st.integers(0, 3)) for _ in rows]
    for k in (1, 2, 3):
        ranked = [sorted(range(4), key=lambda c, row=row: (-row[c], c))[:k] for row in rows]
        right = [label in first for label, first in zip(labels, ranked, strict=True)]
        assert top_k_accuracy(torch.tensor(rows), torch.tensor(labels), k) == pytest.approx(np.mean(right))


def test_top_k_leaves_out_the_unlabelled_and_refuses_what_ranks_nothing():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    assert top_k_accuracy(logits, torch.tensor([1, 2, -1]), 2) == 0.5
    with pytest.raises(ConfigError, match="k"):
        top_k_accuracy(logits, torch.tensor([0, 0, 0]), 0)
    with pytest.raises(ModelError, match="NaN"):
        top_k_accuracy(logits * math.nan, torch.tensor([0, 0, 0]), 1)
    with pytest.raises(DataError, match="no sample is labelled"):
        top_k_accuracy(logits, torch.tensor([-1, -1, -1]), 1)
    with pytest.raises(DataError, match="label 3"):
        top_k_accuracy(logits, torch.tensor([0, 1, 3]), 1)


def test_a_class_nobody_names_has_precision_zero_and_one_nobody_is_has_none():
    precision = precision_per_class(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 0]), num_classes=4)
    assert precision[:2] == [0.5, 0.0]
    assert all(math.isnan(value) for value in precision[2:])
