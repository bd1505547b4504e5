"""What a reader can do on the page, by mouse and by keyboard: point, hide, sort, change the theme, take the numbers."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import browser as chrome
import made_run
import pytest
from browser import opened

from limbeck.report import render

HOSTILE = "=cmd|'/c calc'!A1"


@pytest.fixture(scope="module")
def browser():
    with chrome.running() as found:
        yield found


def written(folder, given=None):
    made_run.write(folder, given or made_run.scores(), made_run.metrics(epochs=4))
    (folder / "evidence.json").write_text(json.dumps(made_run.evidence()), encoding="utf-8")
    (folder / "recipe.yaml").write_text("student: conv\n", encoding="utf-8")
    return render(folder)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return written(tmp_path_factory.mktemp("page") / "run")


@pytest.fixture
def page(browser, path):
    """The page, at which nothing may be asked for nor complained of whatever is done."""
    with opened(browser, path) as at:
        yield at.page
        assert at.said == []
        assert at.dialogs == []
        assert {url for url in at.requests if not url.startswith(("data:", "blob:"))} == {path.as_uri()}


def press(locator, way):
    """A click, or what somebody does who has no mouse."""
    if way == "mouse":
        locator.click()
    else:
        locator.focus()
        locator.press("Enter")


def saved(page, locator, way="mouse"):
    with page.expect_download() as waiting:
        press(locator, way)
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_text(encoding="utf-8")


def rows(text):
    return list(csv.reader(io.StringIO(text, newline="")))


WAYS = pytest.mark.parametrize("way", ["mouse", "keyboard"])


@WAYS
def test_a_legend_hides_a_series_and_shows_it_again(page, way):
    part = page.locator("#curves .figures").first
    entry = part.get_by_role("button", name="Distilled (outputs)", exact=True)
    lines = part.locator("[data-series='Distilled (outputs)']")
    others = part.locator("[data-series='Teacher']")
    assert entry.get_attribute("aria-pressed") == "true"
    assert [line.is_visible() for line in lines.all()] == [True, True]
    press(entry, way)
    assert entry.get_attribute("aria-pressed") == "false"
    assert [line.is_visible() for line in lines.all()] == [False, False]
    assert [line.is_visible() for line in others.all()] == [True, True]
    press(entry, way)
    assert [line.is_visible() for line in lines.all()] == [True, True]


def test_what_is_hidden_is_not_told(page):
    part = page.locator("#curves .figures").first
    part.get_by_role("button", name="Teacher").click()
    part.locator(".plot").first.press("End")
    assert "Student alone" in page.locator("#tip").inner_text()
    assert "Teacher" not in page.locator("#tip").inner_text()
    part = page.locator("#classes .figures").first
    part.get_by_role("button", name="Teacher").click()
    part.locator(".plot").first.press("Home")
    assert page.locator("#tip").inner_text().startswith("airplane\nStudent alone")


@WAYS
def test_a_table_is_sorted_by_its_numbers_and_back(page, way):
    table = page.locator("#classes table").last

    def recalls():
        return [float(cell.inner_text().removesuffix(" %")) for cell in table.locator("tbody td:nth-child(4)").all()]

    first, head = recalls(), table.locator("thead th").nth(3)
    assert first not in (sorted(first), sorted(first, reverse=True))
    for order, expected in (("ascending", sorted(first)), ("descending", sorted(first, reverse=True)), (None, first)):
        press(head.get_by_role("button"), way)
        assert recalls() == expected
        assert head.get_attribute("aria-sort") == order
    press(table.locator("thead th").first.get_by_role("button"), way)
    names = [cell.inner_text() for cell in table.locator("tbody th").all()]
    assert names == sorted(names)
    assert table.locator("[aria-sort]").count() == 1


def test_what_is_not_known_stays_at_the_end(page):
    table = page.locator("#seeds table").last
    head = table.get_by_role("button", name="Churn")
    for _ in range(2):
        head.click()
        assert table.locator("tbody tr").first.locator("td").nth(3).inner_text() == "8.1 %"


@WAYS
def test_the_theme_is_what_the_reader_says(page, way):
    def ground():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    auto = ground()
    themes = page.get_by_role("group", name="Theme")
    press(themes.get_by_role("button", name="Dark"), way)
    dark = ground()
    assert dark != auto
    assert min(chrome.contrasts(page))[0] >= 4.5
    assert themes.get_by_role("button", name="Dark").get_attribute("aria-pressed") == "true"
    press(themes.get_by_role("button", name="Light"), way)
    assert ground() == auto
    page.emulate_media(color_scheme="dark")
    assert ground() == auto
    press(themes.get_by_role("button", name="Auto"), way)
    assert ground() == dark
    assert themes.locator("[aria-pressed=true]").count() == 1


def test_a_tip_tells_the_mark_under_the_mouse(page):
    dot = page.locator("#seeds circle[data-t*='worst']").first
    dot.scroll_into_view_if_needed()
    dot.hover()
    assert page.locator("#tip").inner_text() == "Student alone\nSeed 0: 71.7 %, the worst"
    page.mouse.move(2, 2)
    assert not page.locator("#tip").is_visible()


def test_arrow_keys_tell_one_mark_after_the_other(page):
    plot = page.locator("#seeds .plot")
    marks = [mark.get_attribute("data-t") for mark in plot.locator("[data-t]").all()]
    tip = page.locator("#tip")
    plot.focus()
    told = []
    for key in ["Home", *["ArrowRight"] * (len(marks) - 1)]:
        plot.press(key)
        told.append(tip.inner_text())
    assert told == marks
    plot.press("ArrowRight")
    assert tip.inner_text() == marks[-1]
    plot.press("ArrowLeft")
    assert tip.inner_text() == marks[-2]
    assert plot.locator(".here").count() == 1
    plot.press("Escape")
    assert not tip.is_visible()
    assert plot.locator(".here").count() == 0


def test_along_a_curve_the_mean_of_every_model_is_told(page):
    validation = [r for r in made_run.metrics(epochs=4) if r["kind"] == "epoch" and r["epoch"] == 4]
    of = {name: [r["validation"]["accuracy"] for r in validation if r["arm"] == name] for name in made_run.ARMS}
    plot = page.locator("#curves .plot").first
    plot.press("End")
    told = page.locator("#tip").inner_text().split("\n")
    labels = [arm["label"] for arm in made_run.scores()["arms"].values()]
    expected = [f"{label}: {100 * sum(v) / len(v):.1f} %" for label, v in zip(labels, of.values(), strict=True)]
    assert told == ["Step 1800", *expected]
    right = json.loads(plot.locator("svg").get_attribute("data-lines"))["box"][2]
    assert float(plot.locator(".guide").get_attribute("x1")) == pytest.approx(right)


def test_every_chart_can_be_reached_and_named(page):
    plots = page.locator(".plot")
    assert plots.count() > 15
    for plot in plots.all():
        assert plot.get_attribute("tabindex") == "0"
        assert plot.get_attribute("aria-label").endswith("Arrow keys move from point to point.")
        plot.press("Home")
        assert page.locator("#tip").inner_text()


@WAYS
def test_a_table_is_taken_as_numbers(page, way):
    name, text = saved(page, page.get_by_role("button", name="Download CSV: Recall by class"), way)
    assert name == "recall-by-class.csv"
    head, *body = rows(text)
    assert head[:2] == ["Class", "Teacher"]
    assert len(body) == 10
    recalls = [run["scores"]["recall_per_class"][3] for run in made_run.scores()["arms"]["model"]["runs"]]
    [cat] = [row for row in body if row[0] == "cat"]
    assert float(cat[3]) == pytest.approx(sum(recalls) / 3, rel=1e-6)


def test_a_curve_is_taken_with_every_seed(page):
    button = page.get_by_role("button", name="Download CSV: Validation accuracy by step")
    page.locator("#curves details.data summary").first.click()
    _, text = saved(page, button)
    head, *body = rows(text)
    assert head == ["series", "seed", "step", "value"]
    expected = [
        r for r in made_run.metrics(epochs=4) if r["kind"] == "epoch" and r["arm"] == "model" and r["seed"] == 2
    ]
    found = [(float(row[2]), float(row[3])) for row in body if row[:2] == ["Distilled (outputs)", "2"]]
    assert [x for x, _ in found] == [r["step"] for r in expected]
    assert [y for _, y in found] == pytest.approx([r["validation"]["accuracy"] for r in expected], rel=1e-4)


def test_every_table_and_every_chart_can_be_taken(page):
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert page.locator("table").count() == page.locator(".box + .save").count()
    charts = page.locator("figure")
    assert all(
        chart.locator("svg[data-lines], table").count() or chart.locator("xpath=ancestor::section//table").count()
        for chart in charts.all()
    )
    for button in page.get_by_role("button", name="Download").all():
        assert saved(page, button)[1].strip()
        page.wait_for_timeout(120)  # Chromium drops what is more than ten downloads a second


def test_all_records_are_taken_as_they_are(page):
    name, text = saved(page, page.get_by_role("button", name="Download all records (JSON)"))
    assert name == "cifar10-conv-records.json"
    found = json.loads(text)
    assert found["scores"] == made_run.scores()
    assert found["metrics"] == made_run.metrics(epochs=4)
    assert found["recipe"] == "student: conv\n"
    assert found["evidence"]["costs"] == made_run.evidence()["costs"]
    assert found["left_out_of_metrics"] == []


def test_no_spreadsheet_computes_a_name(browser, tmp_path):
    given = made_run.scores()
    given["classes"][3] = HOSTILE
    given["classes"][4] = 'a,"b"\nc'
    with opened(browser, written(tmp_path / "run", given)) as at:
        _, text = saved(at.page, at.page.get_by_role("button", name="Download CSV: Recall by class"))
        names = [row[0] for row in rows(text)]
        assert "'" + HOSTILE in names
        assert 'a,"b"\nc' in names
        assert min(float(row[-1]) for row in rows(text)[1:]) < 0, "a number below zero is no formula"


def test_on_paper_everything_is_open_and_nothing_is_a_button(page):
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("nav, .themes, .save").locator("visible=true").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#made pre").is_visible()


def test_who_wants_no_motion_gets_none(browser, path):
    with opened(browser, path, reduced_motion="reduce") as at:
        moving = at.page.evaluate("""() => [...document.querySelectorAll("*")].filter((each) => {
          const look = getComputedStyle(each);
          return look.animationName !== "none" || look.transitionDuration.split(",").some((s) => parseFloat(s) > 0)
            || look.scrollBehavior === "smooth";
        }).length""")
        assert moving == 0
