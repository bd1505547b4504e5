from __future__ import annotations

import statistics

import pytest

from limbeck.report import lines, table
from limbeck.report.summary import verdict


def comparison(found, arm, metric="accuracy"):
    return next(row for row in found["comparisons"] if (row["arm"], row["metric"]) == (arm, metric))


def test_the_verdict_says_what_was_won_and_at_what_cost(found):
    runs = found["arms"]["model"]["runs"]
    mean = 100 * statistics.fmean(run["scores"]["accuracy"] for run in runs)
    said = lines(found)
    assert said[0] == (
        f"The distilled student (model) answers {mean:.1f} % of the test set correctly, +1.6 points over the same "
        f"student trained alone (95 % interval +1.1 to +2.1, 3 seeds), with {100 * 16900 / 60362:.0f} % of the "
        "teacher's parameters."
    )
    assert said[1].startswith("The distilled student (knowledge) answers 73.3 %")
    assert verdict(found) == "better"


@pytest.mark.parametrize(
    ("given", "interval", "words"),
    [
        ("worse", (-0.016, -0.021, -0.011), ["1.6 points below the same", "−2.1 to −1.1", "did not help here."]),
        ("no clear difference", (0.003, -0.004, 0.010), ["no clear difference from", "+0.3 points", "−0.4 to +1.0",
                                                         "not shown to help here."]),
    ],
)  # fmt: skip
def test_what_is_not_better_is_said_to_be_not_better(found, given, interval, words):
    mean, low, high = interval
    comparison(found, "model").update(verdict=given, mean=mean, low=low, high=high)
    said = lines(found)[0]
    assert all(word in said for word in words)
    assert " over " not in said
    assert verdict(found) == given


def test_one_seed_is_never_a_verdict(found):
    comparison(found, "model").update(low=None, high=None, n=1, verdict="better")
    said = lines(found)[0]
    assert "+1.6 points against the same student trained alone" in said
    assert "cannot be told from chance" in said
    assert verdict(found) == "not compared"


def test_a_bound_that_is_not_zero_is_not_shown_as_zero(found):
    comparison(found, "model").update(mean=0.02, low=0.0002, high=0.04)
    assert "+0.02 to +4.00" in lines(found)[0]


def test_the_headline_student_is_chosen_by_validation_and_not_by_test(found):
    for run in found["arms"]["knowledge"]["runs"]:
        run["validation"]["accuracy"] = 0.99
    assert lines(found)[0].startswith("The distilled student (knowledge)")


def test_without_a_student_alone_the_teacher_is_the_measure(found):
    arms = {"teacher": found["arms"]["teacher"], "student": found["arms"]["model"]}
    one = {"split": "test", "arms": arms}
    [said] = lines(one)
    assert said == (
        "The distilled student answers 73.6 % of the test set correctly, 2.4 points below its teacher (76.0 %), with "
        "28 % of the teacher's parameters; no student was trained alone, so what distillation adds is not known."
    )
    assert verdict(one) == "not compared"


def test_a_student_trained_alone_is_described_alone(found):
    assert lines({"arms": {"student": found["arms"]["plain"]}}) == [
        "The student trained alone answers 72.0 % of the test set correctly."
    ]


def test_without_comparisons_the_difference_is_given_with_a_warning(found):
    del found["comparisons"]
    assert "+1.6 points against the same student trained alone" in lines(found)[0]
    assert lines(found)[0].endswith("no interval was computed, so chance is not excluded.")


def test_a_run_that_is_not_complete_says_so(found):
    found["complete"] = False
    assert lines(found)[-1].startswith("The run is not complete")


@pytest.mark.parametrize("empty", [{}, {"arms": {}}, {"arms": None}, {"arms": {"student": {"runs": []}}}])
def test_nothing_recorded_is_said_plainly(empty):
    assert lines(empty) == ["No scores were recorded."]


def test_another_metric_takes_the_headline_where_there_is_no_accuracy():
    scores = {"arms": {"student": {"role": "distilled", "runs": [{"scores": {"perplexity": 12.5}}]}}}
    assert lines(scores)[0].startswith("The distilled student reaches Perplexity 12.500 on the test set")


def test_lower_is_better_is_respected_in_words(found):
    for arm in found["arms"].values():
        for run in arm["runs"]:
            run["scores"] = {"nll": run["scores"]["nll"]}
    del found["summary"]
    comparison(found, "model", "nll").update(verdict="worse", mean=0.05, low=0.04, high=0.06)
    assert "0.050 above the same student trained alone" in lines(found)[0]


def test_the_table_has_means_and_deviations_of_the_runs(found):
    header, *rows = table(found)
    assert header == ["arm", "accuracy", "macro F1", "NLL", "ECE", "agreement", "parameters"]
    by_name = {row[0]: row for row in rows}
    values = [100 * run["scores"]["accuracy"] for run in found["arms"]["model"]["runs"]]
    assert by_name["Distilled (outputs)"][1] == f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} %"
    assert by_name["Teacher"] == ["Teacher", "76.0 %", "75.6 %", "0.740", "3.40 %", "–", "100 %"]
    assert {len(row) for row in rows} == {len(header)}
    del found["summary"]
    assert table(found) == [header, *rows]
