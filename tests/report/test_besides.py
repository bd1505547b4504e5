"""The parts of the page that come from `evidence.json`: shown where they are there, and never executed."""

from __future__ import annotations

import json

from made_run import PICTURE, evidence

from limbeck.report import render

HOSTILE = '<img src=x onerror="window.pwned=1">'


def page_with(run, found):
    (run / "evidence.json").write_text(json.dumps(found), encoding="utf-8")
    return render(run).read_text(encoding="utf-8")


def test_what_was_measured_is_shown(run):
    page = page_with(run, evidence())
    for said in ("−2.1 points", "0.0625 (least possible 0.0625)", "8.1 %", "12.0 %", "2 of 2", "1.37", "0.61", "0.02",
                 "2 of 3", "Accuracy by learning rate", "Attack in one step (FGSM)", "93 %", PICTURE):  # fmt: skip
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
    found = evidence() | {"churn": 3, "rates": [1], "comparisons": {"a": 1}, "gallery": ["x"], "random": None}
    found["arms"] = {"model": [3, {"robustness": "none"}]}
    assert "Where student and teacher disagree most" in page_with(run, found)


def test_curves_of_other_rates_stay_in_their_own_section(run):
    lines = [{"kind": "step", "arm": "model@10", "seed": 0, "step": i, "loss": 1.0, "terms": {}} for i in range(5)]
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert "model@10" not in render(run).read_text(encoding="utf-8")
