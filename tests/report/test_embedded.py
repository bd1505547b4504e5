"""The records that a page holds: whole where they are short, shortened with a word where they are not, never markup."""

from __future__ import annotations

import json

import pytest
from made_run import evidence, metrics, scores

from limbeck.report import records
from limbeck.report.reading import Run
from limbeck.report.records import embedded


def held(run):
    return json.loads(embedded(run))


def test_short_records_are_whole_but_for_pictures():
    found = held(Run(scores(), metrics(epochs=1), {"python": "3.11"}, "student: conv", evidence()))
    assert found["scores"] == scores()
    assert found["metrics"] == metrics(epochs=1)
    assert (found["environment"], found["recipe"]) == ({"python": "3.11"}, "student: conv")
    assert found["evidence"]["churn"] == evidence()["churn"]
    assert found["evidence"]["gallery"][0] == {"id": 1, "label": "bird", "maps": [{"arm": "model"}]}
    assert found["left_out_of_metrics"] == []


@pytest.mark.parametrize(
    ("most", "kinds", "left_out"),
    [(10**6, {"step", "epoch"}, []), (30_000, {"epoch"}, ["steps"]), (500, set(), ["steps", "epochs"])],
)
def test_long_records_lose_steps_first_then_epochs_and_it_is_said(monkeypatch, most, kinds, left_out):
    monkeypatch.setattr(records, "MOST", most)
    found = held(Run(scores(), metrics(epochs=2), {}, ""))
    assert {line["kind"] for line in found["metrics"]} == kinds
    assert found["left_out_of_metrics"] == left_out
    assert found["scores"] == scores()


def test_other_learning_rates_are_left_out_and_it_is_said():
    line = {"kind": "epoch", "arm": "model", "seed": 0}
    found = held(Run({}, [line, line | {"arm": "model@10"}], {}, ""))
    assert found["metrics"] == [line]
    assert found["left_out_of_metrics"] == ["other learning rates"]
    found = held(Run({}, [line, *(line | {"arm": arm} for arm in ("model@1e-05", "auto@1-kl-2"))], {}, ""))
    assert found["left_out_of_metrics"] == ["other learning rates", "trials"]
    assert held(Run({}, [line, line | {"arm": "auto@2-plain"}], {}, ""))["left_out_of_metrics"] == ["trials"]


def test_what_is_no_number_is_null():
    given = {"a": float("nan"), "b": [float("inf"), 1.5]}
    assert held(Run(given, [], {}, ""))["scores"] == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "&lt;", "\ud800", "\u2028"]
)
def test_no_text_can_end_the_element_it_is_in(text):
    said = embedded(Run({text: text}, [], {text: [text]}, text))
    assert not set("<>&") & set(said)
    said.encode("ascii")
    assert json.loads(said)["scores"] == {text: text}
