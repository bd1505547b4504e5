"""What the README and the docs show runs."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]


@pytest.mark.runs
@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})
    if "report()" in block:
        accuracy = float(capsys.readouterr().out.split()[0])
        assert accuracy > 0.5
        assert (tmp_path / "runs/first/report.html").exists()


# Those that bring another framework run in a process of their own: tests/examples.
@pytest.mark.runs
@pytest.mark.parametrize(
    "example", [e for e in sorted((ROOT / "examples").glob("*.py")) if "_teacher" not in e.name], ids=lambda p: p.name
)
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_command_that_is_named_exists():
    from typer.main import get_command

    from limbeck.cli import app

    known = set(get_command(app).commands)
    named = {m for page in PAGES for m in re.findall(r"^limbeck (\w+)", page.read_text(), re.M)}
    assert named
    assert named <= known
