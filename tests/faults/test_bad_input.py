"""Whatever is wrong with the input, the command says where, what, and how to mend it, and leaves with 2.

A process costs seconds, so those in REAL, one of each kind of input, go through the command itself and the others
through its `main`, which is the same code from there on; the slow suite sends all of them through the command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import cases
import pytest
import tiny

from limbeck.cli import main
from limbeck.recipes import find, run_recipe

REAL = (
    "YAML that runs code",
    "NaN in CSV",
    "weights that run code",
    "another recipe",
)
OTHERS = [name for name in cases.CASES if name not in REAL]
WORKS_FIRST = {"loss that explodes"}


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A folder with a finished run, which cases copy and spoil."""
    root = tmp_path_factory.mktemp("faults")
    (root / "finished").mkdir()
    run_recipe(find(str(tiny.written(root / "finished"))), root / "finished" / "out", show=False)
    return root


@pytest.fixture(scope="session")
def answers(request, root) -> Mapping[str, CompletedProcess[str]]:
    """What the command said to each case that is asked for, two at a time."""
    items = (item for item in request.session.items if "answers" in item.fixturenames)
    chosen = list(dict.fromkeys(item.callspec.params["name"] for item in items))

    def ask(name: str) -> CompletedProcess[str]:
        at = folder(root, name, "command")
        return tiny.limbeck(*cases.CASES[name].make(at), cwd=at)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(chosen, pool.map(ask, chosen), strict=True))


def folder(root: Path, name: str, way: str) -> Path:
    at = root / f"{way}-{re.sub(r'[^a-z]+', '-', name.lower())}"
    at.mkdir(exist_ok=True)
    return at


def is_readable(name: str, code: object, out: str, err: str, at: Path) -> None:
    assert code == 2, err
    assert err.startswith("limbeck: ")
    assert err.count("limbeck: ") == 1
    assert "Traceback" not in err + out
    assert "Warning" not in err
    assert "To mend: " in err
    assert len(err) < 1500
    for words in cases.CASES[name].says:
        assert words in err
    assert not (at / cases.EXECUTED).exists(), "code in the input was run"
    if name not in cases.FOLDERS and name not in WORKS_FIRST:
        assert not (at / "out").exists(), "it was told only after a run had begun"


@pytest.mark.parametrize("name", [*REAL, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_the_command_gives_one_message_that_names_the_culprit(name, answers, root):
    said = answers[name]
    is_readable(name, said.returncode, said.stdout, said.stderr, folder(root, name, "command"))


@pytest.mark.parametrize("name", OTHERS)
def test_bad_input_gives_one_message_that_names_the_culprit(name, root, capsys, monkeypatch):
    at = folder(root, name, "main")
    monkeypatch.setattr("sys.argv", ["limbeck", *map(str, cases.CASES[name].make(at))])
    monkeypatch.chdir(at)
    with pytest.raises(SystemExit) as left:
        main()
    is_readable(name, left.value.code, *capsys.readouterr(), at)


def test_no_row_hides_another():
    parts = (cases.RECIPES, cases.DATA, cases.WEIGHTS, cases.FOLDERS)
    assert len(cases.CASES) == sum(map(len, parts))
    assert [len(set(REAL) & set(part)) for part in parts] == [1, 1, 1, 1]


def test_the_recipes_and_data_that_are_spoiled_here_are_sound(tmp_path):
    arrays = tiny.plain({"kind": "npz", "path": str(tiny.arrays(tmp_path / "data.npz")), "val": 0.2})
    for recipe in (None, arrays):
        outcome = run_recipe(find(str(tiny.written(tmp_path, recipe))), None, show=False)
        assert set(outcome.document["arms"]) == {"teacher", "plain", "distilled"}
