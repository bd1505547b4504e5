"""Imports point down, and the layers that must not know torch don't."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src" / "limbeck"
PARTS = {"core", "objectives", "metrics", "data", "models", "report", "targets"}
MAY_IMPORT = {
    "core": set(),
    "objectives": set(),
    "metrics": set(),
    "data": set(),
    "models": set(),
    "report": set(),
    "targets": set(),
    "teachers": {"targets"},
    "train": {"objectives"},
    "evaluation": {"metrics"},
    "compress": {"evaluation"},
    "search": set(),
    "transfer": {"compress", "data", "train"},
    "export": {"compress", "evaluation"},
    "functional": {"objectives"},
    "costs": {"data", "evaluation", "examining", "export"},
    "evidence": {"costs", "data", "evaluation", "examining", "export", "objectives", "report", "teachers"},
    "replaying": {"data", "teachers"},
    "remembering": {"data", "replaying", "targets", "teachers", "train"},
    "judging": {"data", "teachers"},
    "job": {"data", "evaluation", "judging", "objectives", "replaying", "teachers", "train"},
    "staging": {"job", "train"},
    "trouble": {"job"},
    "member": {"data", "evaluation", "job", "models", "remembering", "staging", "teachers", "train", "trouble"},
    "examining": {"data", "evaluation", "job", "metrics"},
    "findings": {"evaluation", "metrics"},
    "pictures": {"data", "evaluation", "examining", "job", "metrics"},
    "auto": {"objectives"},
    "choosing": {
        "auto", "data", "evidence", "job", "member", "metrics", "objectives", "remembering", "search", "teachers",
    },
    "workflow": {
        "auto", "choosing", "costs", "data", "evaluation", "evidence", "examining", "export", "findings", "job",
        "member", "objectives", "report", "staging", "teachers", "train",
    },
    "recipes": {
        "costs", "data", "evaluation", "evidence", "examining", "export", "findings", "job", "member", "metrics",
        "judging", "models", "objectives", "pictures", "remembering", "replaying", "report", "targets", "teachers",
        "train", "auto", "choosing", "comparing", "compress", "search", "squeezing", "staging", "transfer", "workflow",
    },
    "levers": {"compress", "export", "search"},
    "workshop": {"compress", "data", "evaluation", "export", "job", "levers", "member", "search"},
    "squeezing": {
        "compress", "data", "evaluation", "evidence", "examining", "export", "job", "levers", "objectives",
        "remembering", "report", "search", "teachers", "train", "workshop",
    },
    "studying": {"costs", "evaluation", "examining", "findings", "recipes", "report", "workflow"},
    "catalog": {"compress", "data", "export", "models", "objectives", "recipes", "targets"},
    "comparing": {"evaluation", "findings", "report"},
    "exporting": {"data", "evaluation", "export", "job", "recipes"},
    "__main__": {"cli"},
    "cli": {"catalog", "comparing", "exporting", "recipes", "report", "studying", "workflow"},
}  # fmt: skip


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: write `from limbeck.x import y`, not a relative import"
            names = [f"limbeck.{a.name}" for a in node.names] if node.module == "limbeck" else [node.module or ""]
        else:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("limbeck."))


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_point_down():
    files = [file for file in ROOT.rglob("*.py") if part_of(file) != "__init__"]
    assert len(files) > 40
    wrong = [
        f"{file.relative_to(ROOT)} imports limbeck.{to}"
        for file in files
        for to in imported(file)
        if to not in MAY_IMPORT[part_of(file)] | {"core", part_of(file)}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_report_needs_no_torch():
    code = "import sys, limbeck.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_is_long_and_no_function_is_longer_than_the_loop():
    for file in ROOT.rglob("*.py"):
        text = file.read_text()
        assert len(text.splitlines()) <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name != "fit":
                body = node.body[1:] if isinstance(node.body[0], ast.Expr) else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{file}: {node.name} has {lines} lines"
