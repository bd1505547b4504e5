"""What the page opens with: the verdict in plain words, from the numbers of the records."""

from __future__ import annotations

import re

import pytest
from made_run import evidence, scores

from limbeck.report.opening import headline, points, tiles
from limbeck.report.reading import Run


def told(given=None, measured=None):
    """The points of the verdict by what they are about."""
    run = Run(given or scores(), [], {}, "", evidence() if measured is None else measured)
    return {point.about: point for point in points(run)}


def test_what_was_kept_is_a_share_of_the_teacher():
    assert pytest.approx(0.968, abs=5e-4) == 0.736 / 0.760
    assert told()["Kept"].sentence == "96.8 % of the teacher's accuracy: 73.6 % instead of 76.0 %."
    assert headline(scores()) == (
        "The distilled student (model) keeps 96.8 % of its teacher's accuracy, 1.6 points better than the same student "
        "trained alone."
    )


def test_a_student_above_its_teacher_kept_all():
    given = scores()
    given["summary"]["model"]["accuracy"]["mean"] = 0.77
    assert told(given)["Kept"].sentence == "all of the teacher's accuracy: 77.0 % instead of 76.0 %."


@pytest.mark.parametrize(
    ("verdict", "mean", "low", "high", "words", "tone"),
    [
        ("better", 0.016, 0.011, 0.021, "1.6 points better than the same student trained alone", "better"),
        ("worse", -0.016, -0.021, -0.011, "1.6 points worse than the same student trained alone", "worse"),
        ("no clear difference", 0.003, -0.004, 0.01, "No clear difference from the same student trained alone", "same"),
    ],
)
def test_how_sure_the_difference_is_comes_from_the_interval(verdict, mean, low, high, words, tone):
    given = scores()
    given["comparisons"][0].update(verdict=verdict, mean=mean, low=low, high=high)
    point = told(given)["Distilling"]
    assert point.sentence == f"{words}: 73.6 % instead of 72.0 %."
    assert point.tone == tone
    assert point.sure.startswith("not sure: " if tone == "same" else "sure: ")
    assert point.sure.endswith(" points")
    assert ("better" in headline(given)) == (verdict == "better")


def test_one_seed_is_not_sure_of_anything():
    given = scores()
    given["comparisons"][0].update(low=None, high=None, n=1)
    point = told(given)["Distilling"]
    assert (point.tone, point.sure) == ("same", "not sure")
    assert "cannot be told from chance" in point.sentence
    assert "better" not in headline(given)


def test_the_worst_seed_of_both_is_named():
    assert told()["Worst seed"].sentence == "Accuracy of 73.3 % at seed 0; trained alone, 71.7 % at its worst."


def test_what_was_compared_besides_is_told_with_both_numbers_better_first():
    measured = evidence()
    measured["churn"]["plain"] = {"mean": 0.1}
    found = told(measured=measured)
    steady = "Steadier from seed to seed: 8.1 % of its answers change (churn) instead of 10.0 %."
    assert found["Steadiness"].sentence == steady
    assert (found["Steadiness"].tone, found["Steadiness"].sure) == ("better", "sure")
    ece = scores()["summary"]
    both = [f"{100 * ece[name]['ece']['mean']:.1f} %" for name in ("model", "plain")]
    off = f"Less calibrated: its confidence is {both[0]} off the truth instead of {both[1]}."
    assert found["Confidence"].sentence == off
    assert found["Confidence"].tone == "worse"
    order = list(found)
    assert order.index("Steadiness") < order.index("Confidence")


def test_a_difference_without_its_numbers_is_told_without_them():
    assert told()["Steadiness"].sentence == "Steadier from seed to seed."


def test_what_is_undecided_is_named_in_one_line():
    measured = evidence()
    measured["comparisons"][0].update(verdict="no clear difference", low=-0.04, high=0.01)
    found = told(measured=measured)
    assert "Steadiness" not in found
    assert (found["Undecided"].sentence, found["Undecided"].sure) == ("No clear difference in: steadiness.", "not sure")


def test_cost_is_beside_the_teacher():
    assert told(measured={})["Cost"].sentence == (
        "28 % of its teacher's parameters (16.9 k instead of 60.4 k), "
        "42 % of its time per call (500 µs instead of 1.2 ms)."
    )


def test_differences_of_another_model_or_baseline_are_not_this_students():
    given = scores()
    given["comparisons"] = [row | {"baseline": "other"} for row in given["comparisons"]]
    measured = evidence()
    measured["comparisons"][0]["arm"] = "knowledge"
    found = told(given, measured)
    assert not {"Steadiness", "Confidence"} & set(found)
    assert found["Distilling"].sure == "not sure"


def test_every_number_has_a_unit_or_says_what_it_is():
    for point in told().values():
        for match in re.finditer(r"\d+(?:\.\d+)?", point.sentence):
            before, after = point.sentence[: match.start()], point.sentence[match.end() :]
            unit = after.startswith((" %", " points", " k", " µs", " ms"))
            assert unit or before.endswith(("seed ", "correlation of ")), point.sentence


def test_without_a_student_there_is_no_verdict():
    assert headline({}) == ""
    assert points(Run({}, [], {}, "")) == []
    assert tiles(Run({}, [], {}, "")) == []


def test_without_a_student_alone_it_is_said_that_the_gain_is_not_known():
    given = scores()
    del given["arms"]["plain"]
    given["baseline"] = None
    assert "not known" in told(given)["Distilling"].sentence
