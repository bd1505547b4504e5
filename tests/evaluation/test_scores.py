"""One pass: equals the whole, equals scikit-learn, disturbs nothing, refuses what it cannot score."""

import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import nn

from limbeck.core.errors import DataError, ModelError, ShapeError
from limbeck.core.records import read_json, write_json
from limbeck.evaluation.scores import Scores, score

CLASSES, N = 4, 30
generator = torch.Generator().manual_seed(3)
LOGITS = torch.randn(N, CLASSES, generator=generator) * 2
TEACHER = torch.randn(N, CLASSES, generator=generator) * 2
LABELS = torch.randint(0, CLASSES, (N,), generator=generator)


def forward(batch):
    return {"logits": batch["s"]}


def teach(batch):
    return {"logits": batch["t"]}


def table(**changes):
    return {"s": LOGITS, "t": TEACHER, "y": LABELS} | changes


def cut(batch, points):
    edges = [0, *sorted(points), N]
    return [{k: v[a:b] for k, v in batch.items()} for a, b in itertools.pairwise(edges)]


def close(a, b):
    assert list(a) == list(b)
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-12, atol=1e-12, err_msg=key)


def test_equals_sklearn():
    scores = score(forward, [table()], teacher=teach)
    y, p = LABELS.numpy(), LOGITS.argmax(1).numpy()
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(y, p))
    assert scores["macro_recall"] == pytest.approx(sk.balanced_accuracy_score(y, p))
    assert scores["macro_f1"] == pytest.approx(sk.f1_score(y, p, average="macro"))
    assert scores["nll"] == pytest.approx(sk.log_loss(y, LOGITS.double().softmax(1).numpy()), abs=1e-9)
    assert scores["agreement"] == pytest.approx(float((LOGITS.argmax(1) == TEACHER.argmax(1)).double().mean()))
    assert scores["samples"] == N


def test_keys_are_the_contract():
    right = ["accuracy", "macro_precision", "macro_recall", "macro_f1", "recall_per_class", "f1_per_class", "nll",
             "brier", "ece", "adaptive_ece", "samples"]  # fmt: skip
    beside = ["agreement", "teacher_kl", "teacher_rank"]
    assert list(score(forward, [table()])) == right
    assert list(score(forward, [table()], teacher=teach)) == [*right, *beside]
    unlabelled = {"s": LOGITS, "t": TEACHER}
    assert list(score(forward, [unlabelled], teacher=teach)) == ["samples", *beside]


@given(st.lists(st.integers(0, N), max_size=6))
def test_batch_wise_equals_whole(points):
    close(score(forward, cut(table(), points), teacher=teach), score(forward, [table()], teacher=teach))


@given(st.lists(st.booleans(), min_size=N, max_size=N).filter(any), st.lists(st.integers(0, N), max_size=3))
def test_padding_equals_leaving_out(flags, points):
    valid = torch.tensor(flags)
    # What is padded may be anything: NaN logits, labels that are no class.
    junk = table(
        s=torch.where(valid[:, None], LOGITS, math.nan), y=torch.where(valid, LABELS, torch.tensor(99)), valid=valid
    )
    left = {k: v[valid] for k, v in table().items()}
    close(score(forward, cut(junk, points), teacher=teach), score(forward, [left], teacher=teach))


def test_unlabelled_samples_count_for_agreement_only():
    y = LABELS.clone()
    y[::2] = -1
    scores = score(forward, [table(y=y)], teacher=teach)
    assert scores["accuracy"] == score(forward, [{k: v[1::2] for k, v in table().items()}])["accuracy"]
    assert scores["samples"] == N // 2
    assert scores["agreement"] == score(forward, [table()], teacher=teach)["agreement"]


def test_soft_labels_count_by_their_largest():
    soft = nn.functional.one_hot(LABELS, CLASSES) * 0.6 + 0.1
    close(score(forward, [table(y=soft)]), score(forward, [table()]))


def test_perfect_and_worst():
    sure = nn.functional.one_hot(LABELS, CLASSES) * 100.0
    best = score(forward, [table(s=sure, t=sure)], teacher=teach)
    assert best["accuracy"] == best["macro_f1"] == best["macro_recall"] == best["agreement"] == 1.0
    assert best["nll"] == best["teacher_kl"] == 0.0
    assert best["ece"] == pytest.approx(0.0, abs=1e-12)
    worst = score(forward, [table(s=sure.roll(1, dims=1), t=sure)], teacher=teach)
    assert worst["accuracy"] == worst["macro_f1"] == worst["agreement"] == 0.0
    assert worst["ece"] == pytest.approx(1.0)
    assert worst["nll"] == pytest.approx(100.0)


def test_one_class_only_and_absent_classes_and_ties():
    scores = score(forward, [table(s=torch.zeros(N, CLASSES), y=torch.zeros(N, dtype=torch.int32))])
    assert scores["accuracy"] == scores["macro_recall"] == scores["macro_f1"] == 1.0  # ties go to the first class
    assert scores["recall_per_class"][0] == 1.0
    assert all(math.isnan(value) for value in scores["recall_per_class"][1:])
    assert scores["nll"] == pytest.approx(math.log(CLASSES))
    assert scores["ece"] == pytest.approx(0.75)
    assert scores == score(forward, [table(s=torch.zeros(N, CLASSES), y=torch.zeros(N, dtype=torch.int32))])


def test_half_precision_logits_are_scored_in_full_and_float64_stays():
    half = LOGITS.bfloat16()
    close(score(forward, [table(s=half)]), score(forward, [table(s=half.float())]))
    fine = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert score(forward, [{"s": fine, "y": torch.tensor([1])}])["accuracy"] == 1.0


def test_another_output_can_be_named():
    scores = score(lambda b: {"head": b["s"], "logits": -b["s"]}, [table()], on="head")
    assert scores == score(forward, [table()])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(CLASSES), nn.Dropout(0.5), nn.Linear(CLASSES, CLASSES)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch):
        self.calls += 1
        return {"logits": self.head(self.drop(self.norm(batch["s"])))}


def test_a_module_is_run_in_evaluation_mode_and_is_as_it_was():
    student, teacher = Net().train(), Net().train()
    student.drop.eval()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    first = score(student, cut(table(), [10]), teacher=teacher)
    assert first == score(student, cut(table(), [10]), teacher=teacher)
    assert student.training
    assert teacher.training
    assert student.norm.training
    assert not student.drop.training
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert torch.is_grad_enabled()


def test_no_gradient_is_kept_inside():
    student = Net()
    seen = []
    score(lambda b: seen.append(torch.is_grad_enabled()) or student(b), [table()])
    assert seen == [False]


def test_a_failing_model_is_put_back_too():
    student = Net().train()
    with pytest.raises(DataError):
        score(student, [table(), table(y=torch.full((N,), 9))])
    assert student.training
    assert student.calls == 0
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("batch", "error", "said"),
    [
        (table(y=torch.full((N,), CLASSES)), DataError, "label 4 does not fit 4 classes"),
        (table(y=torch.full((N,), -2)), DataError, "label -2"),
        (table(y=torch.zeros(N)), DataError, "whole-number"),
        (table(y=torch.zeros(N, CLASSES + 1)), DataError, "soft labels"),
        (table(y=torch.full((N, CLASSES), math.nan)), DataError, "NaN"),
        (table(y=LABELS[1:]), DataError, "labels of shape"),
        (table(valid=torch.ones(N - 1)), DataError, "one flag a sample"),
        (table(valid=torch.zeros(N)), DataError, "no valid sample"),
        ({"s": LOGITS}, DataError, "no sample is labelled and there is no teacher"),
        (table(y=torch.full((N,), -1)), DataError, "no sample is labelled and there is no teacher"),
        (table(s=torch.zeros(N, 7, CLASSES)), ModelError, r"expected \[samples, classes\]"),
        (table(s=torch.full((N, CLASSES), math.nan)), ModelError, "NaN or infinite"),
    ],
)
def test_what_cannot_be_scored_is_refused(batch, error, said):
    with pytest.raises(error, match=said) as caught:
        score(forward, [batch])
    assert "To mend" in str(caught.value)


def test_no_batch_at_all_is_refused():
    with pytest.raises(DataError, match="no valid sample"):
        score(forward, [])


def test_a_teacher_with_other_classes_and_a_missing_output_are_refused():
    with pytest.raises(ShapeError, match=r"\[30, 4\], teacher logits are \[30, 3\]"):
        score(forward, [table(t=TEACHER[:, :3])], teacher=teach)
    with pytest.raises(ModelError, match="did you mean 'logits'"):
        score(forward, [table()], on="logit")
    with pytest.raises(ModelError, match="it returned Tensor"):
        score(lambda b: b["s"], [table()])
    with pytest.raises(ModelError, match=r"changes between batches: \[3, 4\]"):
        score(forward, [{"s": LOGITS[:, :3], "y": LABELS % 3}, table()])


def test_scores_are_a_frozen_mapping_that_pickles_and_is_written(tmp_path):
    scores = score(forward, [table()])
    assert dict(scores)["accuracy"] == scores["accuracy"] == scores.accuracy
    assert "agreement" not in scores
    with pytest.raises(KeyError):
        scores["agreement"]
    with pytest.raises(AttributeError):
        scores.accuracy = 1.0
    assert pickle.loads(pickle.dumps(scores)) == scores
    write_json(tmp_path / "scores.json", scores)
    assert read_json(tmp_path / "scores.json") == json.loads(json.dumps(dict(scores)))
    assert Scores(samples=3, accuracy=0.5).get("nll") is None
