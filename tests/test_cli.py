"""Every command does what its help says; codes and messages for bad input are in tests/faults."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.main import get_command

import limbeck
from limbeck.catalog import TABLES
from limbeck.cli import app, main
from limbeck.core.errors import ConfigError
from limbeck.data import Table
from limbeck.models import MLP
from limbeck.objectives import KL, Label
from limbeck.recipes import RECIPES, SQUEEZES, Arm, Master, Recipe, find, find_squeeze, read, show
from limbeck.train import Training

COMMANDS = get_command(app).commands


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a tiny run, made by the command itself."""
    home = tmp_path_factory.mktemp("cli")
    random = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{i % 2}" for i, (a, b) in enumerate(random.normal(0, 1, (60, 2)))]
    (home / "data.csv").write_text("\n".join(["a,b,kind", *rows]))
    training = Training(epochs=1, batch_size=10)
    recipe = Recipe(
        title="tiny",
        story="One dense network teaches another.",
        data=Table(path=str(home / "data.csv"), label="kind"),
        teacher=Master(model=MLP(hidden=(8,)), training=training),
        student=MLP(hidden=(4,)),
        arms={"plain": Arm(label="Plain", objective=(Label(),)), "taught": Arm(label="Taught", objective=(KL(),))},
        training=training,
        seeds=2,
    )
    (home / "tiny.yaml").write_text(show(recipe))
    line = [Path(sys.executable).parent / "limbeck", "run", "tiny.yaml", "--set", "seed=3", "--out", "run"]
    said = subprocess.run(line, capture_output=True, text=True, cwd=home, check=True)
    assert not said.stderr, "a run that is not at a terminal is silent on stderr"
    assert re.search(r"taught +seed 4 +accuracy [\d.]+ %", said.stdout)
    assert "Page: run/report.html" in said.stdout
    return home / "run"


@pytest.fixture
def say(capsys, monkeypatch):
    """Call the entry point in this process; the exit code and what was printed."""

    def call(*args: object) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["limbeck", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, capsys.readouterr().out

    return call


def test_the_folder_of_a_run_holds_all_that_is_promised(finished):
    names = {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "scores.json",
        "evidence.json",
        "checkpoints",
        "student",
    }
    names.add("report.html")
    assert {path.name for path in finished.iterdir()} == names
    assert {path.name for path in (finished / "student").iterdir()} == {
        "model.safetensors",
        "lineage.json",
        "README.md",
    }
    assert read((finished / "recipe.yaml").read_text(), "here").seed == 3
    assert set(json.loads((finished / "scores.json").read_text())["arms"]) == {"teacher", "plain", "taught"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_that_the_command_would_take(name, say):
    code, said = say(name, "--help")
    assert code == 0
    example = re.search(r"Example: limbeck (.+)", " ".join(said.split()))
    assert example, said
    words = shlex.split(example[1].split(" > ")[0])
    assert words[0] == name
    COMMANDS[name].make_context(name, words[1:])  # parses, does not run


def test_the_version_is_that_of_the_package(say):
    assert say("--version") == (0, f"limbeck {limbeck.__version__}\n")


def test_the_help_of_the_whole_names_every_command(say):
    code, said = say("--help")
    assert code == 0
    assert all(name in said for name in COMMANDS)


@pytest.mark.parametrize("family", [*TABLES()])
def test_list_has_a_line_for_every_row(family, say):
    code, said = say("list", family)
    assert code == 0
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in said.splitlines()}
    assert told.keys() == TABLES()[family].keys()
    assert all(promise.strip() for promise in told.values())


def test_list_alone_names_the_recipes(say):
    assert say("list") == say("list", "recipes")


@pytest.mark.parametrize("name", RECIPES)
def test_a_shown_recipe_is_the_recipe(name, say, tmp_path):
    code, said = say("show", name)
    assert code == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text(said)
    assert find(str(mine)) == RECIPES[name]()
    assert say("show", mine) == (0, said)


def test_show_takes_changes(say):
    code, said = say("show", "digits", "--set", "training.epochs=7")
    assert code == 0
    assert yaml.safe_load(said)["training"]["epochs"] == 7


@pytest.mark.parametrize("name", sorted({key for table in TABLES().values() for key in table} - {*RECIPES, *SQUEEZES}))
def test_show_prints_promise_and_settings_of_everything_listed(name, say):
    code, said = say("show", name)
    assert code == 0
    assert f"kind: {name}" in said.splitlines()


@pytest.mark.parametrize("name", SQUEEZES)
def test_show_prints_a_search_as_yaml_that_can_be_read_again(name, say, tmp_path):
    code, said = say("show", name)
    assert code == 0
    file = tmp_path / "mine.yaml"
    file.write_text(said)
    assert find_squeeze(str(file)) == SQUEEZES[name]()


@pytest.mark.parametrize(
    ("finds", "command", "name"),
    [*((find, "squeeze", name) for name in SQUEEZES), *((find_squeeze, "run", name) for name in RECIPES)],
)
def test_a_name_for_another_command_is_told_with_that_command(finds, command, name):
    with pytest.raises(ConfigError, match=f"use `limbeck {command} {name}`"):
        finds(name)


def test_show_prints_the_scores_of_a_run(finished, say):
    code, said = say("show", finished)
    assert code == 0
    assert [line.split()[0] for line in said.splitlines() if line][:4] == ["arm", "Teacher", "Plain", "Taught"]


def test_evaluate_gives_the_scores_that_the_run_wrote_down(finished, say):
    code, said = say("evaluate", finished)
    assert code == 0
    told = dict(line.split() for line in said.splitlines())
    written = json.loads((finished / "scores.json").read_text())["arms"]["taught"]["runs"][0]["scores"]
    for name in ("accuracy", "macro_f1", "nll", "ece"):
        assert float(told[name]) == pytest.approx(written[name], abs=1e-4)


def test_evaluate_takes_other_data(finished, say, tmp_path):
    (tmp_path / "other.csv").write_text("a,b,kind\n" + "0.1,0.2,1\n0.3,0.1,0\n" * 10)
    code, said = say("evaluate", finished, "--set", f"data.path={tmp_path}/other.csv")
    assert code == 0
    assert re.search(r"^samples +4$", said, re.M)


def test_report_writes_the_page_anew_and_names_it(finished, say):
    page = finished / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert say("report", finished) == (0, f"{page}\n")
    assert page.read_bytes() == before


def test_a_finished_run_is_only_read(finished, say, monkeypatch):
    monkeypatch.chdir(finished.parent)
    before = (finished / "metrics.jsonl").read_bytes(), (finished / "student" / "model.safetensors").read_bytes()
    code, said = say("run", "tiny.yaml", "--set", "seed=3", "--out", "run")
    assert code == 0
    assert "Page: run/report.html" in said
    after = (finished / "metrics.jsonl").read_bytes(), (finished / "student" / "model.safetensors").read_bytes()
    assert after == before


def test_usage_errors_leave_with_2(say):
    for words in (["run"], ["nothing"], ["run", "digits", "--sat", "a=b"]):
        assert say(*words)[0] == 2


def test_export_writes_proves_and_says_what_it_made(finished, say, tmp_path):
    for form, file in (("onnx", "model.onnx"), ("int8", "model.onnx"), ("bfloat16", "model.safetensors")):
        code, said = say("export", finished, "--to", form, "--out", tmp_path / form)
        assert code == 0
        told = dict(line.split(maxsplit=1) for line in said.splitlines())
        assert told["file"].startswith(str(tmp_path / form))
        assert (tmp_path / form / file).is_file()
        record = json.loads((tmp_path / form / "model.parity.json").read_text())
        assert int(told["bytes"].split()[0]) == record["bytes"] == (tmp_path / form / file).stat().st_size
        assert re.match(r"on \d+ samples [\d.]+ of the top classes are alike", told["parity"])
        if form == "int8":
            assert record["integer"]
            assert set(record["scores"]) == {"float", "int8"}
            assert re.search(r"^accuracy +[\d.]+ -> [\d.]+$", said, re.M)


def test_an_exported_folder_is_loaded_like_a_student(finished, say, tmp_path):
    import torch

    import limbeck as lb

    assert say("export", finished, "--to", "bfloat16", "--out", tmp_path / "half")[0] == 0
    half, whole = lb.load(tmp_path / "half"), lb.load(finished)
    assert torch.equal(half.linear.weight, whole.linear.weight.bfloat16().float())


def test_without_out_an_export_lies_in_the_run(finished, say):
    try:
        assert say("export", finished, "--to", "program")[0] == 0
        assert (finished / "export" / "program" / "model.pt2").is_file()
    finally:
        shutil.rmtree(finished / "export")  # another test lists what a run leaves
