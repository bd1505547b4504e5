"""Which operations make a chain, in which order, and what their strength is."""

from __future__ import annotations

import pytest

from limbeck.compress import OPS, Cluster, Depth, Factorize, Mask, MergeUnits, Prune
from limbeck.core.errors import ConfigError
from limbeck.export.integers import Quantize
from limbeck.levers import CHAIN, steps
from limbeck.search import Budget

BUDGET = Budget(macs=0.5, drop=0.01)


def test_every_operation_but_baking_can_be_part_of_a_search():
    assert set(CHAIN) == {*OPS, "quantize"} - {"bake"}


def test_what_is_done_follows_from_the_budget_where_nobody_says():
    assert [step.op.kind for step in steps(None, BUDGET)] == ["prune"]
    assert [step.op.kind for step in steps(None, Budget(latency=0.5))] == ["prune", "quantize"]
    assert [step.op.kind for step in steps(None, Budget(bytes=0.2))] == ["prune", "quantize"]


@pytest.mark.parametrize(
    ("op", "field"),
    [(Prune(criterion="l1", macs=0.5), "ratio"), (Depth(count=1), "ratio"), (MergeUnits(), "ratio"),
     (Factorize(energy=0.9), "ratio"), (Mask(sparsity=0.5), "sparsity")],
)  # fmt: skip
def test_a_strength_is_put_into_its_field_and_other_ways_to_say_it_are_taken_out(op, field):
    [step] = steps([op], BUDGET)
    pulled = step.at(0.25)
    assert getattr(pulled, field) == 0.25
    assert type(pulled) is type(op)
    if isinstance(op, Prune):
        assert (pulled.criterion, pulled.macs) == ("l1", None)


def test_a_setting_begins_with_its_own_strength_and_a_name_with_none():
    assert steps([Prune(ratio=0.3)], BUDGET)[0].lever.first == 0.3
    assert steps(["prune"], BUDGET)[0].lever.first is None
    assert steps([Cluster(levels=8)], BUDGET)[0].lever.most is None


def test_what_comes_last_and_what_may_not_follow():
    assert [step.op.kind for step in steps(["depth", "prune", Quantize()], BUDGET)] == ["depth", "prune", "quantize"]
    with pytest.raises(ConfigError, match="after 'quantize'"):
        steps(["quantize", "prune"], BUDGET)
    with pytest.raises(ConfigError, match="'prune' may not follow 'cluster'"):
        steps(["cluster", "prune"], BUDGET)
    with pytest.raises(ConfigError, match="twice"):
        steps(["prune", Prune()], BUDGET)
    with pytest.raises(ConfigError, match="did you mean 'prune'"):
        steps(["prun"], BUDGET)
    with pytest.raises(ConfigError, match="there is none"):
        steps([], BUDGET)
    with pytest.raises(ConfigError, match="no step"):
        steps([3], BUDGET)
