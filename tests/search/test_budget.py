"""A budget says what it means in numbers, and refuses what contradicts itself."""

from __future__ import annotations

import pytest

from limbeck.core.errors import ConfigError
from limbeck.search import Budget

COSTS = {"parameters": 1000, "bytes": 4000, "macs": 5000, "latency": 0.02}
SCORES = {"accuracy": 0.9, "macro_recall": 0.8, "nll": 0.3, "recall_per_class": [0.9]}


def test_shares_and_absolutes_become_numbers():
    found = Budget(parameters=0.5, bytes=1500, latency=0.25, drop=0.01, drops={"nll": 0.1}).limits(COSTS, SCORES)
    assert found.ceilings == {"parameters": 500, "bytes": 1500, "latency": 0.005}
    assert found.floors == {"accuracy": pytest.approx(0.89)}
    assert found.lids == {"nll": pytest.approx(0.4)}
    assert Budget(milliseconds=5).limits(COSTS, SCORES).ceilings == {"latency": 0.005}


def test_it_tells_what_is_over_and_what_is_lost():
    limits = Budget(macs=0.5, drop=0.01, drops={"nll": 0.1}).limits(COSTS, SCORES)
    costs = {**COSTS, "macs": 3000}
    assert limits.over(costs) == {"macs": pytest.approx(1.2)}
    assert limits.excess(costs) == pytest.approx(1.2)
    assert limits.lost({"accuracy": 0.87, "nll": 0.35}) == {"accuracy": pytest.approx(0.02)}
    assert limits.lost({"accuracy": 0.9, "nll": 0.5}) == {"nll": pytest.approx(0.1)}
    assert limits.lost({"accuracy": float("nan"), "nll": 0.3})
    assert limits.met({**COSTS, "macs": 2500}, {"accuracy": 0.89, "nll": 0.4})


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({}, "nothing to be smaller"),
        ({"drop": 0.01}, "nothing to be smaller"),
        ({"macs": 0.0}, "budget.macs"),
        ({"macs": float("nan")}, "budget.macs"),
        ({"latency": 1.5}, "milliseconds"),
        ({"latency": 0.5, "milliseconds": 3}, "both given"),
        ({"macs": 0.5, "drop": -0.1}, "drop"),
        ({"macs": 0.5, "drop": 0.1, "drops": {"accuracy": 0.1}}, "drop"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, names):
    with pytest.raises(ConfigError, match=names):
        Budget(**wrong)


def test_what_does_not_fit_the_original_is_refused():
    with pytest.raises(ConfigError, match="more than the original has"):
        Budget(parameters=2000).limits(COSTS, SCORES)
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        Budget(macs=0.5, drops={"acuracy": 0.1}).limits(COSTS, SCORES)
    with pytest.raises(ConfigError, match="no accuracy"):
        Budget(macs=0.5, drop=0.1).limits(COSTS, {})
