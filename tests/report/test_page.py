from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_run import metrics, scores, write

from limbeck.core.errors import CheckpointError
from limbeck.report import lines, render

VOID = {"meta", "link", "br", "hr", "img", "input"}
EVIL = "<script>alert(1)</script><img src=x onerror=y>"


class Page(HTMLParser):
    """Tags that balance, the text that is shown, and the tags that were met."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.shown, self.ids = [], [], [], []
        self.scripts, self.policy = [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and tag == "section"]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"]
        assert not any(name.startswith("on") or name == "src" for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] = (self.scripts[-1][0], data)
        elif self.open[-1:] != ["style"]:
            self.shown.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.shown).split())


def page(folder):
    return render(folder).read_text(encoding="utf-8")


def test_the_page_is_whole_self_contained_and_balanced(run):
    path = render(run)
    html = path.read_text(encoding="utf-8")
    found = Page(html)
    assert path == run / "report.html"
    assert found.ids == ["scores", "differences", "seeds", "curves", "calibration", "classes", "frontier", "footprint",
                         "notes", "made", "glossary"]  # fmt: skip
    assert not re.search(r"https?://|src=|@import|url\(", html)
    assert html.startswith("<!doctype html>")
    assert sorted(p.name for p in run.iterdir()) == ["environment.json", "metrics.jsonl", "recipe.yaml", "report.html",
                                                     "scores.json"]  # fmt: skip


def test_the_only_script_is_our_own_and_the_policy_names_it(run):
    html = page(run)
    found = Page(html)
    (data, records), (attributes, script) = found.scripts
    assert data == {"type": "application/json", "id": "records"}
    assert json.loads(records)["scores"] == scores()
    assert attributes == {}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = base64.b64encode(
        hashlib.sha256(re.search(r"<style>(.*?)</style>", html, re.S)[1].encode()).digest()
    ).decode()
    assert found.policy == (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'sha256-{style}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert " style=" not in html, "the policy would refuse it"


def test_the_page_says_the_verdict_and_the_numbers(run):
    text = Page(page(run)).text
    given_ = scores()
    assert all(sentence in text for sentence in lines(given_))
    accuracies = [100 * r["scores"]["accuracy"] for r in given_["arms"]["model"]["runs"]]
    recall = sum(r["scores"]["recall_per_class"][3] for r in given_["arms"]["plain"]["runs"]) / 3
    for said in (f"{sum(accuracies) / 3:.1f} ± 0.3", f"{100 * recall:.1f} %", "+1.1 to +2.1", "60.4 k", "241 kB",
                 "5.6 M", "1.2 ms", "1.1 ms", "{kind: kl, temperature: 4.0}", "12 min 3 s",
                 "its own spread is not known",
                 "Better than training alone", "10 000 test samples"):  # fmt: skip
        assert said in text


def test_the_best_student_of_a_column_is_bold_and_the_teacher_never(run):
    html = page(run)
    best = re.findall(r'<td class="best"[^>]*>([^<]*)</td>', html)
    assert best[0] == "73.6 ± 0.3"
    assert "76.0" not in best
    assert "0.764 ± 0.003" in best


def test_equal_records_give_an_equal_page(run):
    assert page(run) == page(run)


def test_a_not_better_run_has_no_praise(run):
    given_ = scores()
    given_["comparisons"][0].update(verdict="no clear difference", mean=0.001, low=-0.004, high=0.006)
    text = Page(page(write(run, given_, []))).text
    assert "Better than training alone" not in text
    assert "No clear difference from training alone" in text
    assert "distillation is not shown to help here" in text


def evil(value):
    if isinstance(value, dict):
        renamed = {"arms", "summary"}
        return {k: {EVIL + n: evil(x) for n, x in v.items()} if k in renamed else evil(v) for k, v in value.items()}
    if isinstance(value, list):
        return [evil(item) for item in value]
    known = ("better", "worse", "distilled", "plain", "teacher")
    return EVIL + value if isinstance(value, str) and value not in known else value


def test_html_in_any_name_is_shown_and_never_executed(run):
    given_ = evil(scores())
    for row in given_["comparisons"]:
        row.update(arm=EVIL + row["arm"].removeprefix(EVIL), baseline=EVIL + "plain", metric=row["metric"])
    given_["baseline"] = EVIL + "plain"
    given_["arms"][EVIL + "model"]["runs"][0]["scores"][EVIL] = 0.5
    records = [evil(record) | {"kind": record["kind"]} for record in metrics()]
    for record in records:
        record["arm"] = EVIL + str(record["arm"]).removeprefix(EVIL)
        if "terms" in record:
            record["terms"] = {EVIL + k: v for k, v in record["terms"].items()}
    write(run, given_, records)
    (run / "recipe.yaml").write_text(EVIL, encoding="utf-8")
    (run / "environment.json").write_text(json.dumps({EVIL: EVIL, "limbeck": EVIL, "started": EVIL}), encoding="utf-8")
    found = Page(page(run))
    assert "img" not in found.tags
    assert len(found.scripts) == 2
    assert found.scripts[1] == Page(page(write(run.parent / "plain", scores(), []))).scripts[1]
    assert EVIL in json.loads(found.scripts[0][1])["scores"]["title"]
    assert found.text.count("<script>alert(1)</script>") > 30
    assert "classes" in found.ids
    assert "differences" in found.ids


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        (lambda s: s.pop("comparisons"), {"differences"}),
        (lambda s: s.pop("notes"), {"notes"}),
        (lambda s: [arm.pop("footprint") for arm in s["arms"].values()], {"footprint", "frontier"}),
        (lambda s: [arm.update(footprint=None) for arm in s["arms"].values()], {"footprint", "frontier"}),
        (lambda s: [r["scores"].pop("recall_per_class") for a in s["arms"].values() for r in a["runs"]], {"classes"}),
        (lambda s: s["arms"].pop("teacher"), set()),
        (lambda s: s.update(classes=None, story=None, summary={}), set()),
        (
            lambda s: s.update(arms={}),
            {"scores", "differences", "seeds", "calibration", "classes", "frontier", "footprint", "glossary"},
        ),
    ],
)
def test_a_section_without_data_is_not_there(run, change, gone):
    before = Page(page(run)).ids
    given_ = scores()
    change(given_)
    after = Page(page(write(run, given_, []))).ids
    assert set(before) - set(after) == gone


@pytest.mark.parametrize("name", ["metrics.jsonl", "environment.json", "recipe.yaml", "scores.json"])
def test_an_absent_file_is_no_fault(run, name):
    (run / name).unlink()
    assert ("curves" in Page(page(run)).ids) == (name != "metrics.jsonl")


def test_an_empty_folder_gives_a_page_with_its_name(tmp_path):
    (tmp_path / "first").mkdir()
    text = Page(page(tmp_path / "first")).text
    assert "first" in text
    assert "No scores were recorded." in text


@pytest.mark.parametrize("content", ["{", "[1]", "3", '{"format": 2}', b"\xff\xfe"])
def test_a_damaged_or_newer_file_is_refused_by_name(run, content):
    (run / "scores.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=r"scores\.json[\s\S]*To mend"):
        render(run)
    assert not (run / "report.html").exists()


def test_metrics_that_are_no_text_are_refused_and_a_cut_line_is_passed_over(run):
    path = run / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "step", "ar', encoding="utf-8")
    assert "curves" in Page(page(run)).ids
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        render(run)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        render(tmp_path / "none")


def test_a_long_run_gives_a_small_page(tmp_path):
    folder = write(tmp_path / "run", scores(), metrics(epochs=10, logged=60, seeds=15))
    assert (folder / "metrics.jsonl").stat().st_size > 4e6
    html = page(folder)
    drawn = re.sub(r' data-lines="[^"]*"|<script.*?</script>', "", html, flags=re.S)
    assert len(drawn.encode()) < 300_000
    assert len(html.encode()) < 600_000
    assert max(line.count(",") for line in re.findall(r'points="([^"]*)"', html)) <= 200


def test_a_loss_that_was_not_finite_leaves_a_gap_and_not_a_crash(run):
    records = metrics(epochs=2)
    for record in records[::3]:
        record["loss"] = None
    assert "curves" in Page(page(write(run, scores(), records))).ids


def test_many_classes_are_cut_to_those_that_differ(run):
    given_ = scores()
    given_["classes"] = [f"c{i}" for i in range(100)]
    for arm in given_["arms"].values():
        for one in arm["runs"]:
            one["scores"]["recall_per_class"] = [0.5] * 100
    for one in given_["arms"]["model"]["runs"]:
        one["scores"]["recall_per_class"] = [0.5] * 99 + [0.9]
    html = page(write(run, given_, []))
    assert "60 classes on which the models differ less are left out" in html
    assert '<th scope="row">c99</th>' in html


def test_half_a_character_in_a_name_is_no_reason_for_no_page(run):
    given_ = scores()
    given_["title"] = given_["classes"][0] = "a\ud800b"
    assert "a?b" in Page(page(write(run, given_, []))).text


def test_latencies_taken_under_other_conditions_are_not_compared(run):
    given_ = scores()
    given_["arms"]["model"]["footprint"]["latency"]["threads"] = 1
    text = Page(page(write(run, given_, []))).text
    assert "Latency of the teacher" not in text
    assert text.count("42 %") == 2


def places(value, path=()):
    yield path
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in steps:
        yield from places(item, (*path, key))


PLACES = [path for path in places(scores()) if path]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), st.sampled_from([None, 3, "x", [], {}, [None], {"a": None}, True, float("nan")]))
def test_whatever_one_value_is_replaced_by_there_is_a_page(tmp_path, path, value):
    found = scores()
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if path == ("format",) and value == 3:
        return
    Page(page(write(tmp_path / "run", found, [])))


def test_the_part_never_imports_torch_nor_a_template_engine():
    code = "import sys, limbeck.report; assert not {'torch', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
