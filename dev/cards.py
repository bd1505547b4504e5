"""Write docs/methods/: one card a method, from the code's own words and the recorded measurements.

    python dev/cards.py            # writes the cards; a test compares them with what is committed

What a method matches, its formula, source, defaults, use, cost and limits stand in the docstring of its term, the
promise and the arguments in that of its function, the settings in its fields, and the numbers in benchmarks/results/.
So a new method needs no card of its own, and a card cannot disagree with the code.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

from limbeck.core.setting import as_plain
from limbeck.objectives import TERMS
from limbeck.recipes import digits_collective, digits_teaching

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "docs" / "methods"
RESULTS = ROOT / "benchmarks" / "results"
HEADINGS = ("Matches", "Formula", "Source", "Defaults", "Helps", "Cost", "Limits")
FORMULAS = {"label": "label_cross_entropy"}
"""Functions of terms that call theirs themselves and are named otherwise."""
TASKS = {
    "digits": "digits: 300 labels, two convolutions of 4 and 8 channels, 60 epochs",
    "cifar10": "CIFAR-10: ResNet-56 to ResNet-8, 20,000 images, 6 epochs",
}


_PAGES = {"stages": digits_teaching, "collective": digits_collective}
STRATEGIES = {name.replace("_", "-"): getattr(home, name) for home in _PAGES.values() for name in home.__all__}
"""Ways of teaching that are more than a term: each is a recipe, and its docstring a card."""


INTRODUCTION = """
Every objective alone beside the labels: same student, same initial weights, same data order, same number of steps, test
scores after the last epoch, three seeds. The rate is tuned for the plain student, and `kd_tuned` is plain KD with
temperature and share tuned as well, both on validation at another seed; every other arm has its published weight,
untuned. Made from `benchmarks/results/methods-*.jsonl` by `dev/cards.py`; `benchmarks/methods.py` made those. The
interval is of the paired difference over seeds (t, two degrees of freedom): with three seeds it is wide, and one that
spans 0 shows nothing either way.
"""


def sections(term: Any) -> tuple[str, dict[str, str]]:
    """The promise, and what stands under each heading."""
    said = inspect.getdoc(term) or ""
    promise = said.partition("\n")[0]
    found: dict[str, str] = {}
    name = ""
    for line in said.splitlines()[1:]:
        heading = re.match(r"(\w+): (.*)", line)
        if heading and heading[1] in HEADINGS:
            name = heading[1]
            found[name] = heading[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return promise, found


def settings(term: type) -> list[str]:
    """The fields of a term and their defaults, as a table."""
    rows = ["| setting | default |", "|---|---|"]
    for field in dataclasses.fields(term):  # type: ignore[arg-type]
        if field.name != "kind":
            default = "(required)" if field.default is dataclasses.MISSING else f"`{_short(field.default)}`"
            rows.append(f"| `{field.name}` | {default} |")
    return rows


def _short(value: Any) -> str:
    plain = as_plain(value)
    if isinstance(plain, dict):
        rest = ", ".join(f"{k}={v}" for k, v in plain.items() if k != "kind")
        return f"{plain.get('kind', '')}({rest})"
    return str(plain)


def runs(task: str) -> list[dict[str, Any]]:
    """Every run on record."""
    path = RESULTS / f"methods-{task}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def by_arm(task: str) -> dict[str, list[dict[str, Any]]]:
    """The test runs of each arm that has all its seeds, in order of seed."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs(task), key=lambda r: r["seed"]):
        if run["purpose"] == "test":
            arms.setdefault(run["arm"], []).append(run)
    return {name: each for name, each in arms.items() if len(each) == 3}


def spread(values: list[float], digits: int = 1, factor: float = 100) -> str:
    """Mean and standard deviation."""
    return f"{factor * statistics.mean(values):.{digits}f} ± {factor * statistics.stdev(values):.{digits}f}"


def paired(task: str, arm: str, other: str) -> str:
    """The mean difference over seeds with its 95 % interval (t with two degrees of freedom), in points."""
    arms = by_arm(task)
    gaps = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(arms[arm], arms[other], strict=True)]
    reach = 4.303 * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return (
        f"{statistics.mean(gaps):+.1f} ({statistics.mean(gaps) - reach:+.1f} to {statistics.mean(gaps) + reach:+.1f})"
    )


def measured(kind: str) -> list[str]:
    """What is on record about a method: accuracy beside the baselines, and the time of its loss."""
    lines: list[str] = []
    for task, words in TASKS.items():
        arms = by_arm(task)
        own = [name for name in arms if name == kind or name.startswith(f"{kind}_")]
        if own and "plain" in arms:
            lines += [f"Test accuracy in % ({words}; 3 seeds, mean ± sd; labels beside it, its weight untuned):", ""]
            for name in ("plain", "kd_tuned", *own):
                if name in arms:
                    lines.append(f"- {name}: {spread([r['accuracy'] for r in arms[name]])}")
            lines.append("")
    path = RESULTS / "losses.json"
    rows = json.loads(path.read_text())["results"] if path.exists() else {}
    formula = getattr(TERMS[kind], "formula", None)
    name = formula.__name__ if formula is not None else FORMULAS.get(kind, kind)
    if name in rows:
        row = rows[name]
        ratio = f"{row['time_ratio']} (quartiles {row['time_p25']} to {row['time_p75']})"
        said = f"Forward and backward on {row['shapes']}, beside the plainest correct formula: time {ratio}"
        lines += [f"{said}, peak memory {row['memory_ratio']}.", ""]
    return lines or ["Nothing is on record yet.", ""]


def card(kind: str) -> str:
    """The page of one method."""
    term = TERMS[kind]
    promise, found = sections(term)
    lines = [f"# {kind}", "", promise, ""]
    for heading in HEADINGS:
        said = found.get(heading, "")
        lines += [f"**{heading}.** {said[:1].upper()}{said[1:]}", ""]
    lines += ["## Settings of `limbeck." + term.__name__ + "`", "", *settings(term), ""]
    formula = getattr(term, "formula", None)
    if formula is not None:
        lines += [
            f"## `limbeck.functional.{formula.__name__}`",
            "",
            "```text",
            inspect.getdoc(formula) or "",
            "```",
            "",
        ]
    lines += ["## Measured", "", *measured(kind)]
    return "\n".join(lines).rstrip() + "\n"


def results() -> str:
    """The honest table of all arms, best first."""
    lines = ["# Which methods help?", "", *INTRODUCTION.strip().splitlines(), ""]
    everything = {name for task in TASKS for name in by_arm(task)}
    for task, words in TASKS.items():
        arms = by_arm(task)
        if "plain" not in arms:
            continue
        base = "kd_tuned" if "kd_tuned" in arms else "plain"
        lines += [f"## {words}", ""]
        lines += [f"| arm | accuracy, % | NLL | ECE, % | against plain | against {base} |", "|---|---|---|---|---|---|"]
        order = sorted(arms, key=lambda a: -statistics.mean(r["accuracy"] for r in arms[a]))
        for name in order:
            each = arms[name]
            cells = [
                f"**{name}**" if name in ("plain", "kd_tuned") else name,
                spread([r["accuracy"] for r in each]),
                spread([r["nll"] for r in each], 3, 1),
                spread([r["ece"] for r in each]),
                "" if name == "plain" else paired(task, name, "plain"),
                "" if name == base else paired(task, name, base),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        better = [n for n in order if n != "plain" and _surely(task, n, "plain") > 0]
        worse = [n for n in order if n != "plain" and _surely(task, n, "plain") < 0]
        beyond = [n for n in order if n != base and _surely(task, n, base) > 0]
        lines += [
            "",
            f"Better than plain training beyond the interval: {', '.join(better) or 'none'}.",
            f"Worse beyond the interval: {', '.join(worse) or 'none'}.",
            f"Better than {base} beyond the interval: {', '.join(beyond) or 'none'}.",
            f"The rest of the {len(order)} arms cannot be told from plain training with three seeds.",
            *(
                [f"Not run here, for want of time: {', '.join(left)}."]
                if (left := sorted(everything - set(arms)))
                else []
            ),
            "",
        ]
        tuned = [r for r in runs(task) if r["purpose"] == "tune"]
        if tuned:
            said = ", ".join(f"{r['arm']} {100 * r['validation'][-1]:.1f}" for r in tuned)
            lines += [f"Tuning, validation accuracy in % at seed 100: {said}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def strategy(name: str) -> str:
    """The page of one strategy: what its recipe says of it."""
    promise, found = sections(STRATEGIES[name])
    page = next(page for page, home in _PAGES.items() if name.replace("-", "_") in home.__all__)
    lines = [f"# {name}", "", promise, ""]
    for heading in HEADINGS:
        said = found.get(heading, "")
        lines += [f"**{heading}.** {said[:1].upper()}{said[1:]}", ""]
    lines += [
        "```bash",
        f"limbeck run {name}",
        "```",
        "",
        f"How it is put together: [{page}.md](../{page}.md).",
    ]
    return "\n".join(lines) + "\n"


def _left_out(arms: set[str]) -> list[str]:
    """What to say of arms that others have and this one has not."""
    return [f"Not run here, for want of time: {', '.join(sorted(arms))}."] if arms else []


def _surely(task: str, arm: str, other: str) -> int:
    low, high = map(float, re.findall(r"\(([+-][\d.]+) to ([+-][\d.]+)\)", paired(task, arm, other))[0])
    return 1 if low > 0 else -1 if high < 0 else 0


def index() -> str:
    """The page that lists them."""
    lines = [
        "# Methods",
        "",
        "One card a method, written from the code and the records by `dev/cards.py`. [Which of them help](results.md)",
        "is a table of its own. `limbeck list objectives` and `limbeck show dkd` say the same on a terminal.",
        "",
        "| term | what it does |",
        "|---|---|",
        *(f"| [{kind}]({kind}.md) | {sections(term)[0]} |" for kind, term in TERMS.items()),
        "",
        "Strategies, which say who teaches, in which order, and from which weights: [stages](../stages.md),",
        "[together](../collective.md).",
        "",
        "| recipe | what it does |",
        "|---|---|",
        *(f"| [{name}]({name}.md) | {sections(made)[0]} |" for name, made in STRATEGIES.items()),
    ]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Every page by its file name."""
    strategies = {f"{name}.md": strategy(name) for name in STRATEGIES}
    return {"README.md": index(), "results.md": results(), **{f"{kind}.md": card(kind) for kind in TERMS}, **strategies}


def main() -> None:
    """Write them, and take away cards of methods that are gone."""
    CARDS.mkdir(parents=True, exist_ok=True)
    for old in CARDS.glob("*.md"):
        if old.name not in pages():
            old.unlink()
    for name, text in pages().items():
        (CARDS / name).write_text(text, encoding="utf-8")
    print(f"{len(pages())} pages in {CARDS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
