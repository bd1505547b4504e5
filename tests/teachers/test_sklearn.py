"""scikit-learn estimators: order of classes, zeros, and digests by value."""

import numpy as np
import pytest
import torch
from kinds import batch, fitted, forest, machine, pipeline, ridge, table

import limbeck as lb
from limbeck.core.errors import ConfigError, ModelError

X = batch()["x"].numpy()


def probabilities(logits):
    return logits.exp().numpy()


def test_its_shares_come_back_from_the_softmax():
    model = fitted(forest)(0)
    said = model.predict_proba(X)
    assert (said == 0).any()
    np.testing.assert_allclose(probabilities(lb.teacher(model)(batch())["logits"]), np.maximum(said, 1e-7), rtol=1e-5)


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (np.array(["cat", "ant", "bee"]), ["bee", "cat", "ant"], [1, 2, 0]),
        (np.array([10, 30, 20]), [30, 20, 10], [2, 1, 0]),
        (np.array([2, 0, 1]), None, [0, 1, 2]),
        (np.array([2.0, 0.0, 1.0]), None, [0, 1, 2]),
    ],
)
def test_columns_are_in_the_student_s_order(names, labels, order):
    x, y = table(0)
    model = forest().fit(x, names[y])
    expected = model.predict_proba(X)[:, order]
    settings = {} if labels is None else {"labels": labels}
    np.testing.assert_allclose(
        probabilities(lb.teacher(model, **settings)(batch())["logits"]), np.maximum(expected, 1e-7), rtol=1e-5
    )


def test_a_class_that_it_never_saw_has_the_floor():
    x, y = table(0)
    model = forest().fit(x, np.array([0, 2, 5])[y])
    answer = probabilities(lb.teacher(model)(batch())["logits"])
    assert answer.shape == (8, 6)
    np.testing.assert_allclose(answer[:, [1, 3, 4]], 1e-7, rtol=1e-5)
    np.testing.assert_allclose(answer[:, [0, 2, 5]], np.maximum(model.predict_proba(X), 1e-7), rtol=1e-5)
    svm = machine().fit(x, np.array([0, 2, 5])[y])
    answer = lb.teacher(svm)(batch())["logits"]
    assert answer.argmax(1).tolist() == svm.predict(X).tolist()


def test_names_without_an_order_and_lost_labels_are_refused():
    x, y = table(0)
    for names in (np.array(["a", "b", "c"]), np.array([-1, 0, 1])):
        with pytest.raises(ModelError, match="which is the student's first is not clear"):
            lb.teacher(forest().fit(x, names[y]))
    with pytest.raises(ModelError, match="labels are"):
        lb.teacher(forest().fit(x, y), labels=[0, 1])


def test_two_classes_by_their_log_odds():
    from sklearn.linear_model import LogisticRegression

    x, y = table(0)
    model = LogisticRegression().fit(x, y > 0)
    asked = lb.teacher(model, by="decision_function")(batch())["logits"]
    np.testing.assert_allclose(asked.softmax(-1).numpy(), model.predict_proba(X), rtol=1e-4)
    np.testing.assert_allclose(probabilities(lb.teacher(model)(batch())["logits"]), model.predict_proba(X), rtol=1e-4)


def test_a_regression_gives_its_numbers():
    model = fitted(ridge)(0)
    np.testing.assert_allclose(lb.teacher(model)(batch())["logits"][:, 0].numpy(), model.predict(X), rtol=1e-5)


@pytest.mark.parametrize("make", [forest, machine, ridge, pipeline])
def test_what_is_not_fitted_is_refused(make):
    with pytest.raises(ModelError, match="is not fitted"):
        lb.teacher(make())


def test_what_cannot_be_asked_is_refused():
    x, y = table(0)
    with pytest.raises(ModelError, match="has no decision_function"):
        lb.teacher(forest().fit(x, y), by="decision_function")
    with pytest.raises(ConfigError, match=r"teacher.by"):
        lb.teacher(forest().fit(x, y), by="vote")
    with pytest.raises(ModelError, match="answers 2 questions at once"):
        lb.teacher(forest().fit(x, np.stack([y, y], 1)))
    with pytest.raises(ModelError, match="was fitted on 6 features, the batch has 5"):
        lb.teacher(forest().fit(x, y)).open([], {**batch(2), "x": batch(2)["x"][:, :5]})
    with pytest.raises(ModelError, match="in which order it is a row"):
        lb.teacher(forest().fit(x, y)).open([], {"id": torch.arange(2), "x": torch.zeros(2, 3, 2, 1)})


def test_one_channel_is_flattened_and_columns_are_joined():
    model = fitted(forest)(0)
    expected = lb.teacher(model)(batch())["logits"]
    x = batch()["x"]
    assert torch.equal(lb.teacher(model)({**batch(), "x": x.view(8, 1, 2, 3)})["logits"], expected)
    parts = {"id": batch()["id"], "x0": x[:, :2], "x1": x[:, 2:]}
    assert torch.equal(lb.teacher(model)(parts)["logits"], expected)


def test_the_digest_is_by_value_and_knows_each_fitted_number():
    model = fitted(forest)(0)
    before = lb.teacher(model).fingerprint()
    assert lb.teacher(fitted(forest)(0)).fingerprint() == before  # fitted again, to the same trees
    model.set_params(n_jobs=2, verbose=0)
    assert lb.teacher(model).fingerprint() == before
    model.estimators_[3].tree_.value[0, 0, 0] += 1e-9
    changed = lb.teacher(model).fingerprint()
    assert changed != before
    model.estimators_[3].tree_.threshold[0] += 1e-9
    assert lb.teacher(model).fingerprint() != changed


def test_columns_fitted_by_name_do_not_warn():
    model = fitted(pipeline)(0)
    model.steps[0][1].feature_names_in_ = np.array([f"f{i}" for i in range(6)])
    lb.teacher(model)(batch())
