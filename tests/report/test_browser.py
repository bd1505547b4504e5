"""The page in a browser: it asks for nothing, runs nothing of what it shows, and is there for every reader."""

from __future__ import annotations

import json

import browser as chrome
import made_run
import pytest
from browser import opened

from limbeck.report import render

HOSTILE = (
    "<img src=x onerror=window.pwned=1>\"><script>window.pwned=1</script>'</script></style><svg onload=window.pwned=1>"
)
SCHEMES = {"light": {"color_scheme": "light"}, "dark": {"color_scheme": "dark"}, "phone": {"phone": True},
           "phone in the dark": {"phone": True, "color_scheme": "dark"}}  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with chrome.running() as found:
        yield found


def made():
    """Scores, evidence (none where the made run has none) and records of the made run."""
    evidence = getattr(made_run, "evidence", dict)()
    return made_run.scores(), evidence, made_run.metrics()


def written(folder, scores, evidence, records):
    made_run.write(folder, scores, records)
    if evidence:
        (folder / "evidence.json").write_text(json.dumps(evidence), encoding="utf-8")
    return render(folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run that has everything."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text("student: conv\n" * 30 + f"# {'a long line ' * 30}\n", encoding="utf-8")
    (folder / "environment.json").write_text('{"limbeck": "0.1.0", "platform": "Linux", "seconds": 7.0}')
    return written(folder, *made())


ARMS = tuple(made_run.ARMS)
BY_ARM = ("arms", "summary", "churn", "rates", "costs")
NAMES = ("arm", "baseline")
KEPT = ("role", "verdict", "metric", "measure", "kind", "image")


def spoiled(value, key=""):
    """The same records with markup in every name, title and path; what the page reads as a word of its own stays."""
    if isinstance(value, dict):
        known = key in BY_ARM or key == "terms"
        return {HOSTILE + k if known else k: spoiled(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [spoiled(item, key) for item in value]
    return HOSTILE + value if isinstance(value, str) and key not in KEPT else value


def test_nothing_is_asked_for_and_the_console_is_silent(browser, page):
    with opened(browser, page) as at:
        at.page.wait_for_load_state("load")
        assert {url for url in at.requests if not url.startswith("data:")} == {page.as_uri()}
        assert at.said == []


@pytest.mark.parametrize("name", SCHEMES)
def test_text_can_be_read_and_nothing_overflows(browser, page, name):
    with opened(browser, page, **SCHEMES[name]) as at:
        at.page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
        scroll, client = chrome.widths(at.page)
        assert scroll <= client
        found = chrome.contrasts(at.page)
        assert len(found) > 100
        assert min(found)[0] >= 4.5, found[:5]
        dark = at.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert dark == ("dark" in name)
        chrome.screenshot(at.page, name.replace(" ", "-"))
        assert at.said == []


def test_markup_in_any_name_is_shown_and_never_executed(browser, tmp_path):
    scores, evidence, records = (spoiled(each) for each in made())
    folder = tmp_path / "<img src=x onerror=window.pwned=1>"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(HOSTILE, encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE, "limbeck": HOSTILE}), encoding="utf-8")
    path = written(folder, scores, evidence, records)
    with opened(browser, path) as at:
        at.page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
        for mark in at.page.locator("button:visible, [tabindex='0']:visible").all()[:40]:
            mark.focus()
            mark.hover(force=True)
        assert at.page.evaluate("window.pwned") is None
        assert at.page.locator("img[src=x], svg[onload]").count() == 0
        assert at.page.inner_text("body").count(HOSTILE[:34]) > 30
        assert at.page.title().startswith(HOSTILE[:34])
        assert at.page.locator("#differences, #classes").count() == 2
        assert at.dialogs == []
        assert at.said == []
        assert {url for url in at.requests if not url.startswith("data:")} == {path.as_uri()}


def test_the_page_is_there_for_every_reader(browser, page):
    with opened(browser, page) as at:
        assert chrome.audit(at.page) == []


def test_without_script_all_of_it_is_shown(browser, page):
    def shown(at):
        return {name: at.page.locator(f"{name}:visible").count() for name in ("svg", "table", "h2", "img", "summary")}

    with opened(browser, page) as with_script, opened(browser, page, java_script_enabled=False) as without:
        assert shown(without)["svg"] > 5
        assert shown(without)["table"] >= 4
        assert shown(without) == shown(with_script)
        assert without.page.locator("button:visible").count() == 0, "a button that does nothing"
        assert without.said == []
