"""The page of a search: what it opens with, its attempts, and several chains on one page."""

from __future__ import annotations

import copy
import json
import re

import pytest
from made_run import search

from limbeck.report import charts, lines, render
from limbeck.report.asked import headline, points
from limbeck.report.compare import Held, join
from limbeck.report.opening import tiles
from limbeck.report.reading import Run
from limbeck.report.searching import searches
from limbeck.report.sections import attempts
from limbeck.report.sections.blocks import Figures, Table


def document(accuracy=0.88):
    def arm(role, label, value):
        return {"role": role, "label": label, "describe": "MLP", "objective": [], "footprint": None,
                "runs": [{"seed": 0, "scores": {"accuracy": value, "macro_f1": value, "samples": 50}}]}  # fmt: skip

    return {"format": 1, "kind": "squeeze", "title": "small", "split": "test", "samples": 50, "said": ["In words."],
            "arms": {"teacher": arm("teacher", "Original", 0.9), "student": arm("distilled", "Squeezed", accuracy)},
            "notes": []}  # fmt: skip


def searched(**limits):
    found = search()
    found["limits"] = {**found["limits"], **limits}
    return Run(document(), [], {}, "", found)


def test_a_budget_that_is_met_is_said_with_what_was_kept():
    run = searched(ceilings={"parameters": 700.0})
    assert headline(run) == "The budget is met: 67 % of the parameters, accuracy 88.0 % instead of 90.0 %."
    told = {each.about: each for each in points(run)}
    assert told["Parameters"].tone == "better"
    assert told["Parameters"].sentence == (
        "67 % of the original's parameters (667 instead of 1 k); asked for: at most 70 %."
    )
    assert told["Accuracy limit"].sentence.startswith("89.50 % on the validation samples (the original: 90.00 %)")
    assert "macro F1 88.0 % instead of 90.0 %" in told["Kept"].sentence
    assert told["Search"].sentence.startswith("3 changed models scored, 2 of them within")


def test_a_budget_that_is_missed_says_by_how_much():
    run = searched(ceilings={"parameters": 700.0, "macs": 25_000.0})
    assert headline(run) == (
        "The budget is missed: 67 % of the parameters, 67 % of the multiply-accumulates (50 % asked for), "
        "accuracy 88.0 % instead of 90.0 %."
    )
    [missed] = [each for each in points(run) if each.tone == "worse"]
    assert (missed.about, missed.sure) == ("Multiply-accumulates", "missed: 1.33 × as much")


def test_a_time_says_of_which_calls_it_is():
    found = search()
    for attempt, seconds in zip(found["attempts"], (0.08, 0.01, 0.02, 0.02), strict=True):
        attempt["costs"]["latency"] = seconds
    found["limits"]["ceilings"] = {"latency": 0.03}
    for calls, said in (
        ({"batch": 32, "threads": 2}, "20 ms instead of 80 ms, calls of 32 samples on 2 threads"),
        ({"batch": 1, "threads": 1}, "20 ms instead of 80 ms, calls of 1 sample on 1 thread"),
        ("none", "20 ms instead of 80 ms"),
    ):
        told = {each.about: each for each in points(Run(document(), [], {}, "", found | {"calls": calls}))}
        assert told["Time a call"].sentence == (
            f"25 % of the original's time a call ({said}); asked for: at most 38 %."
        )


def test_the_time_at_the_top_is_the_one_that_was_asked_for_and_not_that_of_the_network_in_floats():
    found, said = search(), document()
    for attempt, seconds in zip(found["attempts"], (0.08, 0.01, 0.02, 0.02), strict=True):
        attempt["costs"]["latency"] = seconds
    for arm, seconds in (("teacher", 0.1), ("student", 0.06)):
        said["arms"][arm]["footprint"] = {"parameters": 5, "latency": {"p50": seconds, "batch": 1, "threads": 1}}
    cost = {tile.label: (tile.value, tile.note) for tile in tiles(Run(said, [], {}, "", found))}
    assert cost["Latency of the original's"] == ("25 %", "20 ms of 80 ms")
    assert cost["Parameters of the original's"] == ("100 %", "5 of 5")
    del found["attempts"][0]["costs"]["latency"]
    cost = {tile.label: (tile.value, tile.note) for tile in tiles(Run(said, [], {}, "", found))}
    assert cost["Latency of the original's"] == ("60 %", "60 ms of 100 ms")


def test_every_attempt_is_in_the_table_and_in_the_drawing():
    section = attempts.section(searched())
    [table] = [block for block in section.blocks if isinstance(block, Table)]
    assert [row[0].raw for row in table.rows] == [0, 1, 2, 3]
    assert [row[1].value for row in table.rows] == ["kept", "left", "result", "left"]
    assert [row[2].value for row in table.rows] == ["100 %", "50 %", "67 %", "67 %"]
    assert "repaired" in table.rows[3][0].note
    assert table.rows[1][-1].value == "accuracy is 0.0900 beyond what may be lost"
    [figures] = [block for block in section.blocks if isinstance(block, Figures)]
    assert [figure.caption for figure in figures.figures] == ["Accuracy against parameters",
                                                              "Accuracy against multiply-accumulates"]  # fmt: skip
    for figure, share in zip(figures.figures, ("70 %", "50 %"), strict=True):
        assert figure.svg.count("<circle") == len(figure.table.rows) == 4
        assert figure.svg.count('class="limit"') == 2
        assert f"Asked for: at most {share} of the cost, at least 89.00 %." in figure.svg
        assert figure.svg.count("(the result)") == 1


def test_its_page_speaks_of_a_budget_and_not_of_a_student(tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps(document()))
    (tmp_path / "evidence.json").write_text(json.dumps(search()))
    page = re.sub("<[^>]+>", " ", render(tmp_path).read_text().partition("<main>")[2].partition("<script")[0])
    assert "Attempts" in page
    for word in ("teacher", "trained alone", "istilled"):
        assert word not in page, word
    assert lines(document()) == ["In words."]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found.update(attempts="none"),
        lambda found: found.update(best=77),
        lambda found: found.update(attempts=[3, {"number": "x"}]),
        lambda found: found.pop("best"),
    ],
)
def test_records_that_cannot_be_read_are_passed_over(spoil):
    found = search()
    spoil(found)
    run = Run(document(), [], {}, "", found)
    assert searches(run) == []
    assert attempts.section(run) is None
    assert (headline(run), points(run)) == ("", [])


def test_a_search_without_limits_or_costs_still_has_its_table():
    found = search()
    found["limits"] = 3
    found["attempts"][1]["costs"] = None
    section = attempts.section(Run(document(), [], {}, "", found))
    [table] = [block for block in section.blocks if isinstance(block, Table)]
    assert table.rows[1][2].value == "–"


def test_chains_are_put_beside_each_other_and_the_one_that_meets_its_budget_is_first():
    met = {**search(), "limits": {"ceilings": {"parameters": 700.0}, "floors": {}, "lids": {}}}
    held = [Held(name, copy.deepcopy(document(accuracy)), found, [], {}, {})
            for name, accuracy, found in (("removed", 0.89, search()), ("merged", 0.88, met))]  # fmt: skip
    joined = join(held)
    run = Run(joined.scores, [], {}, "", joined.evidence)
    assert lines(joined.scores) == ["removed: In words.", "merged: In words."]
    assert headline(run) == "The budget is met by “merged”: 67 % of the parameters, accuracy 88.0 % instead of 90.0 %."
    assert [(each.about, each.tone) for each in points(run)] == [("merged", "better"), ("removed", "worse")]
    section = attempts.section(run)
    assert len([block for block in section.blocks if isinstance(block, Table)]) == 2
    [figures] = [block for block in section.blocks if isinstance(block, Figures)]
    assert [name for _, name in figures.legend] == ["Original", "removed", "merged"]
    assert figures.figures[0].svg.count("<circle") == 7, "the original is there once"


def test_a_drawing_of_nothing_is_empty():
    assert charts.limits_chart([], title="", axis="", value=str) == ""
