"""Successive halving on arms whose scores are known: what is spent, who stays, and that it can be told twice."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.core.errors import ConfigError
from limbeck.search import halve, rungs


@given(
    arms=st.integers(1, 40),
    budget=st.integers(1, 10_000),
    most=st.integers(1, 5_000),
    carried=st.booleans(),
    keep=st.floats(0.05, 0.6),
    growth=st.floats(1, 2),
)
def test_what_is_spent_never_exceeds_the_budget(arms, budget, most, carried, keep, growth):
    budget *= 2 * (arms + carried) * 2**9  # the first of at most ten rounds gets a 2**-10th of it at least
    plan = rungs(arms, budget=budget, most=most, carried=carried, keep=keep, growth=growth)
    assert sum(rung.arms * rung.steps for rung in plan) <= budget
    assert all(1 <= rung.steps <= most for rung in plan)
    assert plan[0].arms == arms + carried
    assert all(later.arms < former.arms for former, later in pairwise(plan))


def test_the_plan_of_the_paper():
    """Jamieson & Talwalkar's figure 2 with 8 arms and 240 steps: three rungs, an arm's part of each by hand."""
    assert [(r.arms, r.steps) for r in rungs(8, budget=240, most=240)] == [(8, 10), (4, 20), (2, 40)]
    assert [(r.arms, r.steps) for r in rungs(6, budget=840, most=840, carried=True, keep=1 / 3)] == [(7, 60), (3, 140)]
    grown = rungs(6, budget=840, most=840, carried=True, keep=1 / 3, growth=2)
    assert [(r.arms, r.steps) for r in grown] == [(7, 40), (3, 186)]
    assert [(r.arms, r.steps) for r in rungs(1, budget=100, most=30, carried=True)] == [(2, 30)]


def test_the_best_is_found_and_the_carried_one_is_at_every_rung():
    quality = {"plain": 0.0, "a": 0.1, "b": 0.9, "c": 0.5, "d": 0.2}
    asked = []

    def run(rung, arm, steps):
        asked.append((rung, arm, steps))
        return quality[arm]

    plan = rungs(4, budget=120, most=100, carried=True)
    trials = halve(["a", "b", "c", "d"], plan, run=run, rank=lambda s: s, carried="plain")
    assert [(t.rung, t.arm) for t in trials if t.kept] == [(0, "plain"), (0, "b"), (0, "c"), (1, "plain"), (1, "b")]
    assert asked == [(t.rung, t.arm, t.steps) for t in trials]
    assert sum(t.steps for t in trials) <= 120
    assert [t.why for t in trials if t.rung == 1] == ["always carried", "place 1 of 2", "place 2 of 2"]


def test_equal_scores_go_by_the_order_given_and_each_trial_is_heard():
    heard = []
    plan = rungs(3, budget=60, most=60)
    trials = halve(["x", "y", "z"], plan, run=lambda *_: 1, rank=lambda s: s, hear=heard.append)
    assert [t.arm for t in trials if t.rung == 1] == ["x", "y"]
    assert heard == trials
    assert [t.arm for t in trials if t.rung == 1 and t.kept] == ["x"]


def test_what_cannot_be_tried_is_refused():
    with pytest.raises(ConfigError, match="larger share"):
        rungs(5, budget=4, most=100)
    with pytest.raises(ConfigError, match="6 are the least"):
        rungs(5, budget=50, most=100, least=6)
    with pytest.raises(ConfigError, match="nothing to choose"):
        rungs(0, budget=50, most=100)
