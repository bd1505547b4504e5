"""The command line. Exit code 0 done, 2 the input is at fault (one message), 130 interrupted, 1 anything else."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

import limbeck
from limbeck.core.errors import LimbeckError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable.")
]
_ENDED: dict[object, str] = {130: "interrupted", 143: "terminated"}
Out = Annotated[Path | None, typer.Option("--out", help="The run folder; the same folder goes on where a run stopped.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"limbeck {limbeck.__version__}")
        raise typer.Exit


@app.callback()
def whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Pour a large model into a small one and prove what was kept."""


@app.command(epilog="Example: limbeck demo")
def demo(out: Out = Path("runs/demo")) -> None:
    """Distil a small network on real digits with few labels, over five seeds, and write the page. Takes a minute."""
    run("digits", out=out)


@app.command(epilog="Example: limbeck run cifar10-conv --set data.path=cifar10.npz --set seeds=1 --out runs/first")
def run(recipe: str, change: Set = None, out: Out = None) -> None:
    """Run a recipe, by its name or from a YAML file: teacher, plain student, distilled students, page."""
    from limbeck.core.processes import first  # noqa: PLC0415 - torch takes seconds to import
    from limbeck.recipes import find, run_recipe  # noqa: PLC0415

    found = find(recipe, change or ())
    folder = out or Path("runs") / Path(found.title).name
    say = typer.echo if first() else lambda *_: None
    say(f"{found.title}: {found.story}\n")
    document = run_recipe(found, folder, say=say).document
    if first():
        _tell(document)
        say(f"\nPage: {folder / 'report.html'}")


@app.command(
    epilog="Example: limbeck remember cifar10-resnet --set teacher.weights=resnet56.pth --views 8 --out targets/first"
)
def remember(
    recipe: str,
    change: Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder; the same one goes on, and grows.")] = None,
    views: Annotated[int | None, typer.Option(help="Augmented versions of each sample (targets.views).")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="The I-th of N parts; N processes fill a folder.")
    ] = None,
) -> None:
    """Run a recipe's teacher once over its training data and keep the answers on disk."""
    from limbeck.core.processes import first  # noqa: PLC0415
    from limbeck.recipes import find, part, remember_recipe  # noqa: PLC0415

    changes = [*(change or ()), *([f"targets.views={views}"] if views is not None else [])]
    targets = remember_recipe(find(recipe, changes), out, shard=part(shard) if shard else None, say=typer.echo)
    if first():
        _describe_targets(targets.path)


@app.command(epilog="Example: limbeck study digits --seeds 5 --jobs 2 --out runs/steady")
def study(
    recipe: str,
    change: Set = None,
    out: Out = None,
    seeds: Annotated[int, typer.Option(help="How many seeds; more may be asked for later.")] = 5,
    jobs: Annotated[
        int | None, typer.Option(help="Seeds trained at a time, in processes of their own; one a core when left out.")
    ] = None,
) -> None:
    """Is the distilled student as steady as the plain one? Spread, churn, jitter, sensitivity, broken trainings.

    Every arm is also trained at other learning rates: --set "rates=[0.3, 3]" names the factors, "rates=[1]" leaves it.
    """
    from limbeck.recipes import find  # noqa: PLC0415
    from limbeck.studying import study as start  # noqa: PLC0415

    found = find(recipe, change or ())
    folder = out or Path("runs") / f"{Path(found.title).name}-study"
    typer.echo(f"{found.title}: {found.story}\n")
    many = jobs if jobs is not None else max(1, min(seeds, os.cpu_count() or 1))
    _tell(dict(start(found, seeds=seeds, jobs=many, out=folder, say=typer.echo).document))
    typer.echo(f"\nPage: {folder / 'report.html'}")


@app.command(epilog="Example: limbeck squeeze digits-squeeze --set budget.drop=0.02 --out runs/small")
def squeeze(recipe: str, change: Set = None, out: Out = None) -> None:
    """Make a model smaller until it fits a budget: prune, merge, factorise, quantise, each repaired and scored."""
    from limbeck.recipes import find_squeeze, squeeze_recipe  # noqa: PLC0415

    found = find_squeeze(recipe, change or ())
    folder = out or Path("runs") / Path(found.title).name
    typer.echo(f"{found.title}: {found.story}\n")
    done = squeeze_recipe(found, folder, say=typer.echo)
    _tell(dict(done.document))
    typer.echo(f"\nPage: {done.page}")


@app.command(name="list", epilog="Example: limbeck list objectives")
def list_(
    what: Annotated[
        str, typer.Argument(help="recipes, squeezes, operations, objectives, models, data, codecs, schedules")
    ] = "recipes",
) -> None:
    """List what comes along, a line each."""
    from limbeck.catalog import TABLES, first_lines  # noqa: PLC0415
    from limbeck.core.setting import pick  # noqa: PLC0415

    for name, line in first_lines(pick(TABLES(), what, "list")):
        typer.echo(f"{name:<20} {line}")


@app.command(epilog="Example: limbeck show digits > mine.yaml")
def show(name: str, change: Set = None) -> None:
    """Print a recipe as YAML, the settings of anything with a name, a run's scores, or what targets hold."""
    from limbeck.catalog import describe  # noqa: PLC0415

    if (Path(name) / "scores.json").exists():
        _tell(_scores(Path(name)))
    elif (Path(name) / "manifest.json").exists():
        _describe_targets(Path(name))
    else:
        typer.echo(describe(name, change or ()), nl=False)


@app.command(epilog="Example: limbeck evaluate runs/first --set data.path=cifar10.npz")
def evaluate(folder: Path, change: Set = None) -> None:
    """Score the saved student of a run on its recipe's test data."""
    from limbeck.recipes.saved import score_saved  # noqa: PLC0415

    for name, value in score_saved(folder, change or ()).items():
        if isinstance(value, int | float):
            typer.echo(f"{name:<14} {value:.4f}" if isinstance(value, float) else f"{name:<14} {value}")


@app.command(epilog="Example: limbeck export runs/first --to int8")
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    to: Annotated[str, typer.Option("--to", help="onnx, int8, program, folder, or bfloat16.")] = "onnx",
    out: Annotated[Path | None, typer.Option("--out", help="A folder; RUN/export/FORM when left out.")] = None,
    change: Set = None,
) -> None:
    """Write the saved student of a run in another form, prove that it answers alike, and say what it lost."""
    from limbeck.exporting import export_run, told  # noqa: PLC0415

    for name, line in told(export_run(folder, to, out, change or ())):
        typer.echo(f"{name:<14} {line}")


@app.command(epilog="Example: limbeck report runs/first")
def report(folder: Path) -> None:
    """Write the page of a run folder anew from its records, and name it."""
    from limbeck.report import render  # noqa: PLC0415

    _scores(folder)
    typer.echo(render(folder))


@app.command(epilog="Example: limbeck compare runs/first runs/second --out runs/both")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the page and what it is made from.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN/ARM", help="Compared with this; else with a student trained alone.")
    ] = None,
) -> None:
    """Put finished runs beside each other on one page, with paired differences where seeds are equal."""
    from limbeck.comparing import compare as join  # noqa: PLC0415

    found = join(runs, out=out, baseline=baseline)
    _tell(dict(found.document))
    typer.echo(f"\nPage: {found.page}")


def _scores(folder: Path) -> dict[str, object]:
    from limbeck.core.records import read_object  # noqa: PLC0415

    return read_object(folder / "scores.json")


def _describe_targets(folder: Path) -> None:
    """Size, coverage, and what targets were made from."""
    from limbeck.recipes import told  # noqa: PLC0415

    for name, line in told(folder):
        typer.echo(f"{name:<14} {line}")


def _tell(document: dict[str, object]) -> None:
    """Verdict and table on the terminal."""
    from limbeck.report import lines, table  # noqa: PLC0415

    rows = table(document)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    typer.echo()
    for row in rows:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        typer.echo("  ".join(cells).rstrip())
    typer.echo()
    for line in lines(document):
        typer.echo(line)


def main() -> None:
    """The entry point: errors made on purpose become one message and exit code 2."""
    try:
        app()
    except LimbeckError as error:
        _say_alone(str(error))
        sys.exit(2)
    except SystemExit as end:
        # typer turns Ctrl-C into exit code 130 before it gets here; a run that was asked to end leaves with 143.
        if end.code in _ENDED:
            said = f"{_ENDED[end.code]}. What was done is saved; the same command goes on from there."
            _say_alone(said)
        raise


def _say_alone(said: str) -> None:
    """One message, however many processes have it: the others wait for their launcher to end them.

    What only one of them has to say is said by it.
    """
    own = int(os.environ.get("RANK", "0"))
    if own:
        time.sleep(3)
    typer.echo(f"limbeck{f' (process {own + 1})' if own else ''}: {said}", err=True)
