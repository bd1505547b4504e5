"""The sections, above all those from `evidence.json`: shown where they are there, right, and never executed."""

from __future__ import annotations

import json
import statistics

import pytest
from made_run import PICTURE, confusion, evidence, metrics, scores, write

from limbeck.report import render
from limbeck.report.reading import Run, arms
from limbeck.report.sections import SECTIONS, calibration, costs, sections
from limbeck.report.sections import confusion as confusions
from limbeck.report.sections.blocks import Figures, Folded, Table

HOSTILE = '<img src=x onerror="window.pwned=1">'


def page_with(run, found):
    (run / "evidence.json").write_text(json.dumps(found), encoding="utf-8")
    return render(run).read_text(encoding="utf-8")


def test_what_was_measured_is_shown(run):
    page = page_with(run, evidence())
    for said in ("−2.1 points", "here it is 0.0625 at least", "8.1 %", "+12.0 points", "2 of 2", "1.37", "0.61", "0.02",
                 "2 of 3 broke down", "Accuracy by learning rate", "Attack in one step (FGSM)", "93 %",
                 PICTURE):  # fmt: skip
        assert said in page, said
    assert page.count(f'src="{PICTURE}"') == 3


def test_markup_in_it_is_text_and_what_is_no_picture_is_left_out(run):
    found = evidence()
    found["gallery"][0]["label"] = found["disagreements"][0]["teacher"]["class"] = HOSTILE
    found["disagreements"][0]["image"] = '" onload="x'
    page = page_with(run, found)
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=&#34;window.pwned=1&#34;&gt;" in page
    assert "javascript:" not in page
    assert "onload" not in page


def test_without_it_the_page_is_as_it_was(run):
    before = render(run).read_text(encoding="utf-8")
    assert page_with(run, {"format": 1}).replace("What was measured besides", "") != ""
    assert 'id="steadiness"' not in before
    assert 'id="gallery"' not in before


def test_pieces_of_the_wrong_kind_are_passed_over(run):
    found = evidence() | {
        "churn": 3,
        "rates": [1],
        "comparisons": {"a": 1},
        "trials": [4, {}],
        "gallery": ["x"],
        "random": None,
    }
    found["arms"] = {"model": [3, {"robustness": "none"}]}
    assert "Where student and teacher disagree most" in page_with(run, found)


def test_curves_of_other_rates_stay_in_their_own_section(run):
    lines = [{"kind": "step", "arm": "model@10", "seed": 0, "step": i, "loss": 1.0, "terms": {}} for i in range(5)]
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert "model@10" not in render(run).read_text(encoding="utf-8")


def whole(**changes):
    """The records of the made run, without its files."""
    parts = {"scores": scores(), "metrics": metrics(epochs=2), "environment": {"python": "3.11"}, "recipe": "a: b",
             "evidence": evidence()}  # fmt: skip
    return Run(**{**parts, **changes})


def named(run, name):
    return next(section for section in sections(run) if section.name == name)


def tables(section):
    """Every table of a section by its caption, those under its drawings too."""
    found = {}
    for block in section.blocks:
        inner = block.block if isinstance(block, Folded) else block
        figures = [figure.table for figure in inner.figures] if isinstance(inner, Figures) else []
        found |= {table.caption: table for table in [*figures, inner] if isinstance(table, Table)}
    return found


def test_every_section_has_a_name_of_its_own_and_is_left_out_without_records():
    shown = sections(whole())
    names = [section.name for section in shown]
    assert len(set(names)) == len(names) == len(SECTIONS)
    assert sections(Run({}, [], {}, "")) == []


def test_every_row_is_as_long_as_its_head():
    for section in sections(whole()):
        for caption, table in tables(section).items():
            assert {len(row) for row in table.rows} <= {len(table.head)}, caption
            assert table.rows, caption


def test_reliability_of_seeds_is_that_of_their_samples_together():
    first = {"reliability": {"confidence": [0.5, 0.9], "accuracy": [0.0, 1.0], "count": [1, 9]}}
    second = {"reliability": {"confidence": [0.7, None], "accuracy": [1.0, None], "count": [3, 0]}}
    low, high = calibration.pooled([first, second])
    assert low.confidence == pytest.approx((0.5 + 3 * 0.7) / 4)
    assert low.right == pytest.approx(3 / 4)
    assert (low.answers, high.answers) == (4, 9)


def test_confusions_are_shares_of_the_true_class_over_all_seeds():
    found = confusions.shares([{"confusion": [[3, 1], [0, 4]]}, {"confusion": [[2, 2], [0, 0]]}, {"confusion": "x"}])
    assert found == [[5 / 8, 3 / 8], [0, 1]]
    table = tables(named(whole(), "confusion"))["The most frequent confusions, share of the true class"]
    assert [cell.value for cell in table.rows[0]] == ["airplane", "automobile", "25.0 %", "30.0 %"]
    change = tables(named(whole(), "confusion"))["Change against Student alone"]
    assert change.rows[0][1].raw == pytest.approx(0.75 - 0.70)
    assert confusion(70)[9][0] == 30


def test_the_change_of_a_class_is_the_mean_over_pairs_of_seeds():
    given = scores()
    ours, theirs = given["arms"]["model"]["runs"], given["arms"]["plain"]["runs"]
    del theirs[0]  # a seed that one of them lacks has no pair
    expected = statistics.fmean(a["scores"]["recall_per_class"][3] - b["scores"]["recall_per_class"][3]
                                for a, b in zip(ours[1:], theirs, strict=True))  # fmt: skip
    theirs.reverse()  # pairs are of equal seeds, wherever they stand
    row = tables(named(whole(scores=given), "classes"))["Recall by class"].rows[3]
    assert row[0].value == "cat"
    assert row[-1].raw == pytest.approx(expected)


def test_the_worst_seed_is_the_lowest_and_of_an_error_the_highest():
    table = tables(named(whole(), "seeds"))["How steady each model is"]
    model = next(row for row in table.rows if row[0].value == "Distilled (outputs)")
    assert (model[2].raw, model[2].note) == (pytest.approx(0.733), "seed 0")
    given = scores()
    for arm in given["arms"].values():
        for run in arm["runs"]:
            run["scores"] = {"mse": run["scores"]["nll"]}
    given["summary"], given["comparisons"] = {}, []
    table = tables(named(whole(scores=given), "seeds"))["How steady each model is"]
    model = next(row for row in table.rows if row[0].value == "Distilled (outputs)")
    assert model[2].raw == pytest.approx(1.5 - 0.733)


def test_costs_that_were_measured_go_before_the_footprint():
    run = whole()
    found = tables(named(run, "footprint"))
    rows = {row[0].value: row for row in found["Size and speed of every model"].rows}
    head = [head.label for head in found["Size and speed of every model"].head]
    at = dict(zip(head, rows["Distilled (outputs)"], strict=True))
    assert (at["Size"].raw, at["Size"].note) == (4 * 16900 + 500, "28 %")
    assert at["Latency"].raw == run.evidence["costs"]["model"]["latency"][0]["p50"]
    assert dict(zip(head, rows["Teacher"], strict=True))["Peak memory"].value == "2.5 MB"
    assert rows["Distilled (outputs)"][0].note == "batch 1, 2 threads"
    times = found["How long a call takes"].rows
    assert [(row[1].raw, row[2].raw) for row in times] == [(1, 2), (32, 2)] * 3
    given = run.evidence["costs"]["model"]["latency"][1]
    assert times[-1][3].raw == given["p50"]
    assert times[-1][5].raw == given["p90"]
    assert times[-1][6].raw == pytest.approx(given["p50"] / 32)
    calls = found["Every call, batch 1, 2 threads"].rows
    assert sum(row[0].value == "Teacher" for row in calls) == 30


def test_of_very_many_calls_the_table_holds_some_and_the_records_all():
    given = evidence()
    one = given["costs"]["model"]["latency"][0]
    one["seconds"] = [1e-3 + 1e-7 * (7 * i % 1000) for i in range(1000)]
    table = tables(named(whole(evidence=given), "footprint"))["Every call, batch 1, 2 threads"]
    shown = [row[1].raw for row in table.rows if row[0].value == "Distilled (outputs)"]
    assert len(shown) == 200
    assert shown == sorted(one["seconds"])[::5]


def test_without_measured_costs_the_footprint_is_shown():
    rest = {key: value for key, value in evidence().items() if key != "costs"}
    found = tables(named(whole(evidence=rest), "footprint"))
    assert list(found) == ["Size and speed of every model"]
    assert "1.2 ms [1.1 ms – 1.5 ms]" in [cell.value for cell in found["Size and speed of every model"].rows[0]]


@pytest.mark.parametrize("broken", [None, 3, "x", [], {"latency": 3}, {"latency": [{"batch": 1}]},
                                    {"latency": [{"batch": 1, "threads": 1, "p10": 0, "p50": -1, "p90": 2}]},
                                    {"disk": "x", "parameters": float("nan"), "latency": [None]}])  # fmt: skip
def test_costs_of_the_wrong_kind_are_passed_over(broken):
    given = evidence()
    given["costs"] = {"model": broken}
    run = whole(evidence=given)
    model = next(arm for arm in arms(run.scores) if arm.name == "model")
    assert costs.timings(run, model) == []
    assert costs.cost(run, model, "bytes") == 67600


def test_each_model_stands_in_the_frontier_with_its_own_cost():
    found = tables(named(whole(), "frontier"))
    size = {row[0].value: (row[1].raw, row[2].raw) for row in found["Accuracy against size"].rows}
    assert size["Teacher"] == (4 * 60362 + 500, pytest.approx(0.76))
    assert size["Distilled (outputs)"] == (4 * 16900 + 500, pytest.approx(0.736))
    assert "Accuracy against latency" in found


def test_times_under_other_conditions_are_not_on_one_axis():
    given = {key: value for key, value in evidence().items() if key != "costs"}
    one = scores()
    one["arms"]["teacher"]["footprint"]["latency"]["threads"] = 1
    table = tables(named(whole(scores=one, evidence=given), "frontier"))["Accuracy against latency"]
    assert "Teacher" not in [row[0].value for row in table.rows]


def test_another_learning_rate_is_in_no_curve():
    lines = [{"kind": kind, "arm": "model@10", "seed": 0, "step": 5, "loss": 1.0, "terms": {"a": 1.0, "b": 2.0},
              "validation": {"accuracy": 0.5}} for kind in ("step", "epoch")]  # fmt: skip
    given = metrics(epochs=2)
    assert named(whole(metrics=[*given, *lines]), "curves") == named(whole(metrics=given), "curves")


def test_the_page_is_rebuilt_from_the_records_alone(tmp_path):
    folder = write(tmp_path / "run", scores(), metrics(epochs=2))
    first = page_with(folder, evidence())
    (folder / "report.html").unlink()
    assert render(folder).read_text(encoding="utf-8") == first


def test_trials_show_the_mean_over_seeds_and_at_how_many_of_them_a_candidate_went_on():
    (table,) = tables(named(whole(), "trials")).values()
    assert [head.label for head in table.head] == ["Candidate", "Round 1", "Round 2", "Terms"]
    assert table.head[1].note == "20 steps"
    plain, kl, dist = table.rows
    assert [cell.value for cell in plain] == ["plain", "55.0 %", "70.0 %", "plain weight 1.0"]
    assert (kl[1].note, kl[2].value) == ("went on at 1 of 2 seeds", "–")
    assert (dist[1].value, dist[1].note, dist[1].tone) == ("–", "went on at 1 of 2 seeds, 2 broke down", "worse")
