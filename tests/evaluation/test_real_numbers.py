"""A student of real numbers is trained, chosen, scored and shown like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from torch import nn

import limbeck as lb
from limbeck.core.errors import ConfigError, DataError, ShapeError


def data(seed, n=300):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 4)).astype("float32")
    return x, (x @ np.array([3.0, -2.0, 0.5, 0.0]) + 0.1 * rng.standard_normal(n)).astype("float32")


def network(seed, outputs=1):
    torch.manual_seed(seed)
    return nn.Linear(4, outputs)


def trained(teacher=None, **settings):
    objective = (lb.SquaredError(),) if teacher is None else (lb.MSELogits(weight=0.5), lb.SquaredError(weight=0.5))
    asked = {"objective": objective, "epochs": 12, "batch_size": 50, "progress": False, "log_steps": 1, **settings}
    return lb.distill(network(0), teacher, train=data(0), val=data(1), test=data(2), **asked)


def test_its_scores_are_those_of_scikit_learn_and_scipy():
    run = trained(teacher=network(1))
    x, y = data(2)
    with torch.no_grad():
        told = run.student(torch.from_numpy(x)).squeeze(1).numpy()
    scores = run.scores["student"]
    assert scores["mse"] == pytest.approx(sk.mean_squared_error(y, told), rel=1e-5)
    assert scores["mae"] == pytest.approx(sk.mean_absolute_error(y, told), rel=1e-5)
    assert scores["r2"] == pytest.approx(sk.r2_score(y, told), rel=1e-5)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(y, told).statistic, rel=1e-5)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(y, told).statistic, rel=1e-5)
    assert scores["teacher_mse"] > 0
    assert "accuracy" not in scores
    assert dict(lb.evaluate(run.student, data(2)))["mse"] == pytest.approx(scores["mse"], rel=1e-6)


def test_it_learns_and_the_best_epoch_is_the_one_of_least_error():
    run = trained(keep="best")
    assert run.scores["student"]["r2"] > 0.9
    epochs = [line["validation"]["mse"] for line in run.folder.lines if line["kind"] == "epoch"]
    best = lb.evaluate(run.student, data(1))["mse"]
    assert best == pytest.approx(min(epochs), rel=1e-6)


def test_it_has_a_page_and_can_be_studied(tmp_path):
    found = lb.study(lambda seed: {"plain": trained(seed=seed), "distilled": trained(network(1), seed=seed)}, seeds=2,
                     out=tmp_path / "out")  # fmt: skip
    assert found.summary["plain"]["mse"]["n"] == 2
    page = found.report().read_text()
    assert "MSE" in page
    assert "R²" in page


def test_differences_between_students_of_numbers_are_compared():
    found = lb.study(lambda seed: {"plain": trained(seed=seed), "distilled": trained(network(1), seed=seed)}, seeds=3)
    rows = {row["metric"]: row for row in found.document["comparisons"]}
    assert set(rows) == {"mse", "r2", "spearman"}
    assert rows["mse"]["mean"] > 0  # an untrained teacher does harm
    assert rows["mse"]["verdict"] == "worse"


def test_what_does_not_suit_numbers_is_refused_before_the_first_step():
    with pytest.raises(ConfigError, match="compares classes"):
        trained(network(1), objective=(lb.KL(), lb.SquaredError()))
    x, y = data(0)
    with pytest.raises(DataError, match="not integers"):
        lb.distill(network(0, 3), None, train=(x, y), epochs=1, batch_size=50, progress=False)
    with pytest.raises((DataError, ShapeError, ConfigError)):
        lb.distill(network(0), None, train=(x, (y > 0).astype(int)), epochs=1, batch_size=50, progress=False)
