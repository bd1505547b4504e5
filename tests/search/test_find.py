"""The search on toys whose best answer is known: a model is its size and how far each lever was pulled."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.search import Budget, Lever, find


class Toy(NamedTuple):
    macs: float = 1000.0
    accuracy: float = 0.9
    hurt: float = 0.0
    done: tuple = ()


PRUNE, FOLD, HALVE = Lever(name="prune"), Lever(name="fold", most=None, free=True), Lever(name="halve", most=None)


def change(toy, lever, strength):
    if lever.name == "fold":
        return toy._replace(macs=toy.macs * 0.9, done=(*toy.done, "fold"))
    if lever.name == "halve":
        return toy._replace(macs=toy.macs / 2, hurt=toy.hurt + 0.002, done=(*toy.done, "halve"))
    if lever.name == "never":
        return None
    # Linear in what it saves; what it costs grows with the square.
    return toy._replace(macs=toy.macs * (1 - strength), hurt=toy.hurt + 0.2 * strength**2, done=(*toy.done, strength))


def weigh(toy):
    return {"macs": toy.macs, "parameters": toy.macs}


def score(toy):
    return {"accuracy": toy.accuracy - toy.hurt, "macro_f1": toy.accuracy - toy.hurt}


def searched(levers, budget, **settings):
    heard = []
    found = find(Toy(), levers, budget, change=change, weigh=weigh, score=score, hear=heard.append, **settings)
    assert [attempt.number for attempt in sorted(heard, key=lambda a: a.number)] == list(range(len(found.attempts)))
    return found


def test_a_lever_is_pulled_as_far_as_the_costs_need_and_no_further():
    found = searched([PRUNE], Budget(macs=0.7, drop=0.1))
    assert found.met
    assert 0.7 - 1 / 128 <= found.model.macs / 1000 <= 0.7
    assert len(found.attempts) == 2


def test_a_repair_that_is_undone_is_no_result_though_it_scores_the_same():
    found = searched([PRUNE], Budget(macs=0.7, drop=0.1), repair=lambda toy, lever, strength: toy)
    undone = [attempt for attempt in found.attempts if attempt.repaired]
    assert undone
    assert all("undone" in attempt.why for attempt in undone)
    assert found.best.kept


def test_what_later_steps_save_need_not_be_saved_before():
    found = searched([PRUNE, HALVE], Budget(macs=0.4, drop=0.1))
    assert found.met
    strength, last = found.model.done
    assert last == "halve"
    assert strength == pytest.approx(0.2, abs=1 / 64)  # halving leaves half, so 0.8 is enough before it


def test_a_lever_that_breaks_a_score_is_weakened_by_bisection():
    found = searched([PRUNE], Budget(macs=0.1, drop=0.05), tries=6)
    assert not found.met
    assert found.best.held
    # 0.2 s² <= 0.05 holds up to s = 0.5
    assert found.model.done[0] == pytest.approx(0.5, abs=0.9 / 2**6)
    assert found.model.done[0] <= 0.5
    assert found.missed["macs"] == pytest.approx(found.model.macs / 100)
    assert not found.lost


def test_what_one_lever_could_not_the_next_may():
    other = Lever(name="other")
    found = searched([PRUNE, other], Budget(macs=0.3, drop=0.08), tries=5)
    assert found.model.done[1] > 0
    assert found.best.held


def test_the_original_is_given_back_where_nothing_holds():
    found = searched([PRUNE, HALVE], Budget(macs=0.1, drop=0.0))
    assert found.model == Toy()
    assert found.best.number == 0
    assert found.missed == {"macs": pytest.approx(10)}
    assert not found.met


def test_nothing_is_done_where_nothing_is_asked():
    found = searched([PRUNE, HALVE], Budget(macs=1.0, drop=0.1))
    assert found.met
    assert found.model == Toy()


def test_what_loses_nothing_is_taken_without_repair():
    def repair(toy, lever, strength):
        raise AssertionError(lever)

    found = searched([FOLD], Budget(macs=0.95), repair=repair)
    assert found.model.done == ("fold",)


def test_a_step_that_cannot_be_taken_is_passed_over():
    found = searched([Lever(name="never", most=None), Lever(name="never"), PRUNE], Budget(macs=0.7, drop=0.1))
    assert found.met


def test_a_repair_that_makes_it_worse_is_undone():
    def worse(toy, lever, strength):
        return toy._replace(hurt=toy.hurt + 0.01)

    found = searched([PRUNE], Budget(macs=0.7, drop=0.1), repair=worse)
    assert found.met
    assert found.model.hurt == pytest.approx(0.2 * found.model.done[0] ** 2)
    assert [attempt.why for attempt in found.attempts if attempt.repaired] == [
        "the repair made it no better, and was undone"
    ]


def test_a_repair_that_helps_is_kept():
    def better(toy, lever, strength):
        return toy._replace(hurt=toy.hurt / 10)

    found = searched([PRUNE], Budget(macs=0.3, drop=0.05), repair=better)
    assert found.met
    assert found.best.repaired


def test_the_strength_to_begin_with_is_tried_first_and_then_adjusted():
    half = Lever(name="prune", first=0.5)
    found = searched([half], Budget(parameters=0.999, drop=0.02), tries=4)
    strengths = [attempt.strength for attempt in found.attempts[1:]]
    assert strengths[:2] == [0.5, 0.25]
    assert found.best.held
    assert 0.25 <= found.model.done[0] <= 0.3163  # 0.2 s² <= 0.02


def test_a_strength_that_is_stated_is_begun_with_though_the_search_would_not_go_so_far():
    found = searched([Lever(name="prune", most=0.25, first=0.5)], Budget(macs=0.4, drop=0.2))
    assert [attempt.strength for attempt in found.attempts] == [None, 0.5]


def test_what_a_last_step_saves_less_than_on_the_original_is_made_up_for():
    """A file has a fixed part, which counts more the smaller the rest is."""

    def fixed(toy, lever, strength):
        if lever.name == "halve":
            return toy._replace(macs=toy.macs / 2 + 50, done=(*toy.done, "halve"))
        return change(toy, lever, strength)

    found = find(Toy(), [PRUNE, HALVE], Budget(macs=0.2, drop=0.2), change=fixed, weigh=weigh, score=score)
    assert found.met
    assert found.model.done[-1] == "halve"
    assert found.model.done.count("halve") == 1
    assert found.model.macs == pytest.approx(200, abs=5)


def test_a_last_step_is_not_taken_again_where_nothing_before_it_could_change():
    """It saves less than on the original, and what comes before it has no more to give."""

    def spent(toy, lever, strength):
        if lever.name == "halve":
            return toy._replace(macs=toy.macs / 2 + 50, done=(*toy.done, "halve"))
        return None if toy.done else change(toy, lever, strength)

    given = [Lever(name="prune", first=0.6), HALVE]
    found = find(Toy(), given, Budget(macs=0.2, drop=0.2), change=spent, weigh=weigh, score=score)
    assert not found.met
    assert found.model.done == (0.6, "halve")
    assert [attempt.lever for attempt in found.attempts] == ["original", "prune", "halve"]
    assert found.attempts[-1].kept


@given(macs=st.floats(0.05, 1), drop=st.floats(0, 0.3), more=st.floats(0, 0.2), tries=st.integers(0, 5))
def test_more_to_spend_is_never_worse(macs, drop, more, tries):
    def outcome(budget):
        found = find(Toy(), [PRUNE, HALVE], budget, change=change, weigh=weigh, score=score, tries=tries)
        assert found.best.held
        assert found.limits.lost(found.best.scores) == {}
        return found

    tight, wide = outcome(Budget(macs=macs, drop=drop)), outcome(Budget(macs=min(1.0, macs + more), drop=drop))
    if tight.met:
        assert wide.met


def test_a_lever_leaves_room_for_the_steps_that_follow():
    """Halving loses 0.002, so that pruning may lose no more than the rest, though the floor alone would allow it."""
    found = searched([PRUNE, HALVE], Budget(macs=0.25, drop=0.01), tries=8)
    assert found.model.done[-1] == "halve"
    assert found.model.done[0] == pytest.approx(0.2, abs=0.01)  # 0.2 s² + 0.002 <= 0.01
    assert any("with halve to follow" in attempt.why for attempt in found.attempts)


def test_a_step_that_breaks_a_score_by_itself_is_not_counted_on():
    found = searched([PRUNE, HALVE], Budget(macs=0.95, drop=0.001), tries=3)
    assert found.met
    assert found.model.done == (pytest.approx(0.05, abs=1 / 64),)
