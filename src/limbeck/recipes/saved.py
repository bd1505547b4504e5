"""Read a finished run's student back and score it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from torch import nn

from limbeck.core.errors import CheckpointError, problem
from limbeck.core.setting import build, tagged
from limbeck.core.taps import Reader
from limbeck.data import Splits, check_labels
from limbeck.evaluation import Scores, score
from limbeck.export import load_weights, read_lineage, rebuild
from limbeck.job import evaluation
from limbeck.models import MODELS
from limbeck.recipes.base import Recipe, override, read

__all__ = ["Saved", "load", "opened", "score_saved"]


def load(folder: str | Path, *, into: nn.Module | None = None) -> nn.Module:
    """A saved student. A network of limbeck's own is built from its lineage; a user's class is filled through `into`.

    Of a compressed model, `into` is the base as its own constructor makes it. It stays as it is, and what is returned
    is a copy that the lineage's operations were replayed on.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to another architecture.
    """
    home = Path(folder) / "student" if (Path(folder) / "student").is_dir() else Path(folder)
    lineage = read_lineage(home)
    base, operations = lineage["base"], lineage.get("operations") or []
    if into is not None:
        return rebuild(home, into, operations) if operations else load_weights(home, into)
    if "model" not in base:
        wrong = f"its student is a {base.get('class', 'module')}, which is not one of ours"
        raise CheckpointError(
            problem(str(folder), wrong, "build it, and fill it with limbeck.load(folder, into=model)")
        )
    where = str(home / "lineage.json")
    settings = build(tagged(MODELS), base["model"], where)
    if not isinstance(base.get("shape"), list) or not isinstance(base.get("classes"), int):
        wrong = "is damaged: it does not say the shape of samples and the number of classes"
        raise CheckpointError(problem(where, wrong, "restore it, or make the run again"))
    return rebuild(home, settings.build(tuple(base["shape"]), base["classes"]), operations)


class Saved(NamedTuple):
    """A finished run's student, where it lies, its recipe, and the recipe's data."""

    model: nn.Module
    home: Path
    recipe: Recipe
    splits: Splits


def opened(folder: str | Path, changes: Sequence[str] = ()) -> Saved:
    """A run's saved student with its recipe's data, changed by `a.b=c`, that it was tried on.

    Raises:
        CheckpointError: the folder holds no finished run, or it is damaged.
        LimbeckError: the data is not there, or does not fit.
    """
    folder = Path(folder)
    model = load(folder)
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise CheckpointError(problem(str(folder), "it holds no recipe.yaml", "name the folder of a run"))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(problem(str(file), f"cannot be read ({error})", "restore it")) from None
    recipe: Recipe = override(read(text, str(file)), changes, str(file))
    splits = recipe.data.load()
    signal = Reader(model, name="the saved student").probe(next(iter(evaluation(splits.test).epoch(0))), ("logits",))
    check_labels(splits.test, int(signal["logits"].shape[-1]), "data")
    return Saved(model, folder / "student", recipe, splits)


def score_saved(folder: Path, changes: Sequence[str] = ()) -> Scores:
    """Scores of a run's saved student on its recipe's test data, changed by `a.b=c`."""
    saved = opened(folder, changes)
    return score(Reader(saved.model, name="the saved student"), evaluation(saved.splits.test).epoch(0))
