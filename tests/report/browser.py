"""An installed Chromium on pages from disk: what a page asks for, what it complains of, what a reader finds in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

__all__ = ["Opened", "audit", "chromium", "contrasts", "opened", "running", "screenshot", "widths"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MEND = "install Chromium (Debian: apt install chromium), or name one with LIMBECK_CHROMIUM=path"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


class Opened(NamedTuple):
    """A page and what it did so far: URLs it asked for, what its console said, errors, dialogs."""

    page: Page
    requests: list[str]
    said: list[str]
    dialogs: list[str]


def chromium() -> str | None:
    """The browser that LIMBECK_CHROMIUM names, else the first that is installed."""
    return os.environ.get("LIMBECK_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def running() -> Iterator[Browser]:
    """A browser; without one the test is skipped, or fails where LIMBECK_BROWSER says that it is required."""
    path = chromium()
    if path is None:
        (pytest.fail if os.environ.get("LIMBECK_BROWSER") == "required" else pytest.skip)(f"no browser: {MEND}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGS])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, path: Path, *, phone: bool = False, **context: Any) -> Iterator[Opened]:
    """The page of that file, at the width of a desk or a phone; whatever else it asks for is refused and noted."""
    size = PHONE if phone else DESK
    with browser.new_context(viewport=size, accept_downloads=True, **context) as at:
        found = _watched(at, path)
        found.page.goto(path.as_uri())
        yield found


def _watched(at: BrowserContext, path: Path) -> Opened:
    def answer(route: Route) -> None:
        if route.request.url == path.as_uri():
            route.continue_()
        else:
            route.abort()

    at.route("**/*", answer)
    at.set_default_timeout(30_000)
    page = at.new_page()
    found = Opened(page, [], [], [])
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.said.append(f"error: {error}"))

    def dismiss(dialog: Any) -> None:
        found.dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    return found


def screenshot(page: Page, name: str) -> None:
    """Keep what the whole page looks like, where LIMBECK_SCREENSHOTS names a folder."""
    folder = os.environ.get("LIMBECK_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def widths(page: Page) -> tuple[int, int]:
    """How wide the document is, and how wide the window."""
    scroll, client = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    return scroll, client


def contrasts(page: Page) -> list[tuple[float, str]]:
    """The contrast (WCAG 2.2, 1.4.3) of every text outside drawings, lowest first, with the text."""
    return [(ratio, text) for ratio, text in page.evaluate(_CONTRASTS)]


def audit(page: Page) -> list[str]:
    """What a reader with a keyboard or a screen reader would miss: one line a fault."""
    found: list[str] = page.evaluate(_AUDIT)
    return found


_CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  // Painted over what is below, so that any notation of a colour and any transparency is read as the eye does.
  const painted = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("svg, script, style, template")) continue;
    if (!element.checkVisibility({visibilityProperty: true})) continue;
    const below = [];
    let opacity = 1;
    for (let each = element; each; each = each.parentElement) {
      below.unshift(getComputedStyle(each).backgroundColor);
      opacity *= Number(getComputedStyle(each).opacity);
    }
    if (opacity < 1) continue;  // on its way in or out
    const ground = ["white", ...below];
    const [a, b] = [painted(ground), painted([...ground, getComputedStyle(element).color])].map(light);
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.textContent.trim().slice(0, 60)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""

_AUDIT = """() => {
  const faults = [], all = (query) => [...document.querySelectorAll(query)];
  const told = (e) => `<${e.tagName.toLowerCase()}${e.id ? "#" + e.id : ""}> ${e.outerHTML.slice(0, 90)}`;
  const words = (ids) => (ids || "").split(/\\s+/).filter(Boolean).map((id) => document.getElementById(id));
  const name = (e) => (e.getAttribute("aria-label") || words(e.getAttribute("aria-labelledby"))
    .map((n) => n?.textContent).join(" ") || e.textContent || e.getAttribute("title") || "").trim();
  if (!document.documentElement.lang) faults.push("the language is not said");
  if (!document.title.trim()) faults.push("there is no title");
  if (all("h1").length !== 1) faults.push(`${all("h1").length} headings of the first level`);
  if (all("main").length !== 1) faults.push(`${all("main").length} main parts`);
  const ids = all("[id]").map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) faults.push(`id twice: ${id}`);
  let level = 0;
  for (const e of all("h1, h2, h3, h4, h5, h6")) {
    if (Number(e.tagName[1]) > level + 1) faults.push(`a level of headings is passed over: ${told(e)}`);
    level = Number(e.tagName[1]);
  }
  for (const e of all("img")) if (!e.hasAttribute("alt")) faults.push(`no alt: ${told(e)}`);
  for (const e of all("button, summary, a[href], [role=button], [tabindex='0']"))
    if (!name(e)) faults.push(`no name: ${told(e)}`);
  for (const e of all("input, select, textarea"))
    if (!name(e) && !e.labels?.length) faults.push(`no label: ${told(e)}`);
  for (const e of all("svg")) {
    if (e.getAttribute("aria-hidden") === "true" || e.parentElement.closest("svg")) continue;
    if (e.getAttribute("role") !== "img" || !e.getAttribute("aria-label")?.trim()) {
      // With parts of its own that take focus it is a group with a name.
      const groups = ["group", "figure", "graphics-document"];
      const holds = e.querySelector("[tabindex]") && groups.includes(e.getAttribute("role"));
      if (!holds || !name(e)) faults.push(`a drawing without role and name: ${told(e)}`);
    }
  }
  for (const e of all("[aria-controls], [aria-labelledby], [aria-describedby]"))
    for (const a of ["aria-controls", "aria-labelledby", "aria-describedby"])
      if (words(e.getAttribute(a)).includes(null)) faults.push(`${a} leads nowhere: ${told(e)}`);
  for (const e of all("a[href^='#']"))
    if (!document.getElementById(decodeURIComponent(e.getAttribute("href").slice(1))))
      faults.push(`a link leads nowhere: ${told(e)}`);
  for (const e of all("[tabindex]")) if (e.tabIndex > 0) faults.push(`a tab order of its own: ${told(e)}`);
  for (const e of all("th")) if (!name(e)) faults.push(`an empty header: ${told(e)}`);
  return faults;
}"""
