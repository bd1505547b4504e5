"""The worked example in CONTRIBUTING.md is done, step by step, on a copy, and held to the laws."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks():
    """The example's code by the file that it goes into."""
    found = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    return dict(found)


@pytest.mark.runs
def test_adding_a_loss_touches_three_files(tmp_path):
    steps = blocks()
    assert len(steps) == 3
    for part in ("src", "tests/contracts", "tests/objectives", "pyproject.toml"):
        source, target = ROOT / part, tmp_path / part
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target)
    family, table, test = (tmp_path / name for name in steps)
    for path in (family, test):
        path.write_text(path.read_text() + "\n\n" + steps[str(path.relative_to(tmp_path))])
    added_import, row = steps[str(table.relative_to(tmp_path))].strip().split("\n\n")
    text = table.read_text()
    last = text.rindex("\nfrom limbeck.")
    text = text[:last] + "\n" + added_import + text[last:]
    head, rows, rest = re.split(r"(TERMS: dict\[str, type\] = \{\n.*?)(?=\n\})", text, maxsplit=1, flags=re.S)
    table.write_text(head + rows + "\n" + row + rest)

    code = "import limbeck as lb; print(lb.__file__, lb.Hellinger(), lb.functional.hellinger.__name__)"
    said = run(tmp_path, "-c", code)
    assert str(tmp_path) in said
    assert "temperature=1.0" in said
    laws = [
        "tests/contracts/test_terms.py",
        "tests/contracts/test_functional.py",
        "tests/objectives/test_divergence.py",
    ]
    said = run(tmp_path, "-m", "pytest", "-q", "-p", "no:randomly", *laws, "-k", "hellinger")
    passed = int(re.search(r"(\d+) passed", said)[1])
    assert passed > 40, said


def run(where, *arguments):
    """What Python says when it is run on the copy."""
    settings = {**os.environ, "PYTHONPATH": str(where / "src")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=where, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
