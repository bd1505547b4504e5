"""What a run shows as a whole: verdicts that know which way is better, and parts only where they were measured."""

from __future__ import annotations

import pytest

from limbeck.findings import MEASURES, findings


def entry(seed, value):
    """One seed in which every measure is about `value`."""
    v = value + 0.001 * (seed % 3)
    return {
        "seed": seed, "predictions": [seed % 2] * 10, "overfitting": {"gap": v},
        "jitter": {"loss": v, "grad_norm": v},
        "sensitivity": {side: {"scale": [1], "accuracy": [v, v]} for side in ("inputs", "weights")},
        "robustness": {"corruptions": {"noise": [v], "blur": [v]},
                       "attacks": {"pgd": {"epsilon": [9], "accuracy": [v]}}},
        "attribution": {"gradient_input": {"rank": v}},
    }  # fmt: skip


def test_each_measure_knows_which_way_is_better():
    found = {"plain": [entry(seed, 0.2) for seed in range(5)], "taught": [entry(seed, 0.5) for seed in range(5)]}
    rows = {row["measure"]: row for row in findings(found, baseline="plain")["comparisons"]}
    assert set(rows) == {*MEASURES, "churn"}
    worse = {"gap", "jitter_loss", "jitter_grad_norm"}
    for name in MEASURES:
        assert rows[name]["mean"] == pytest.approx(0.3)
        assert rows[name]["verdict"] == ("worse" if name in worse else "better"), name
    assert rows["churn"]["verdict"] == "no clear difference"


def test_churn_is_paired_by_seed_and_a_teacher_of_all_seeds_has_none():
    found = {"teacher": [{"seed": s, "predictions": [1, 2]} for s in (0, 1)],
             "plain": [{"seed": 3, "predictions": [1, 2]}, {"seed": 5, "predictions": [1, 1]}]}  # fmt: skip
    said = findings(found)
    assert said["churn"] == {"plain": {"mean": 0.5, "pairs": [{"seeds": [3, 5], "share": 0.5}]}}
    assert "predictions" not in said["arms"]["plain"][0]
    assert "comparisons" not in said


def test_a_grid_needs_two_rates():
    one = {"plain": [{"rate": 0.1, "seed": 0, "diverged": False, "accuracy": 0.5}]}
    assert findings({}, rates=one)["rates"] == {}
    two = {"plain": [*one["plain"], {"rate": 0.01, "seed": 0, "diverged": True, "accuracy": None}]}
    assert findings({}, rates=two)["rates"]["plain"] == {
        "rate": [0.01, 0.1], "runs": [1, 1], "diverged": [1, 0], "accuracy": [[None], [0.5]],
    }  # fmt: skip


def test_seeds_that_only_one_arm_has_are_not_compared():
    found = {"plain": [entry(0, 0.2), entry(1, 0.2)], "taught": [entry(1, 0.5), entry(2, 0.5)]}
    assert findings(found, baseline="plain")["comparisons"] == []
