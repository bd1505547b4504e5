"""The targets of a recipe: its teacher's answers to its training data, in its views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from limbeck.core.errors import ConfigError, problem
from limbeck.data import Source
from limbeck.recipes.base import Kept, Recipe
from limbeck.recipes.build import loaded_teacher
from limbeck.remembering import remember
from limbeck.targets import Store
from limbeck.teachers import ModuleTeacher
from limbeck.teachers.stored import Targets

__all__ = ["part", "remember_for", "remember_recipe", "teacher_names", "told"]

Say = Callable[[str], None]


def teacher_names(recipe: Recipe) -> list[str]:
    """What the arms read of the teacher."""
    return sorted({name for arm in recipe.arms.values() for term in arm.terms for name in term.needs().teacher})


def remember_for(
    recipe: Recipe,
    train: Source,
    teacher: ModuleTeacher,
    out: Path,
    *,
    seed: int,
    shard: tuple[int, int] | None = None,
    say: Say = lambda _: None,
    show: bool = True,
) -> Targets:
    """Make or complete the targets of this teacher, for all arms of the recipe."""
    how = recipe.targets or Kept()
    # `logits.ids` and its like are what a codec makes of `logits`.
    outputs = sorted({name.partition(".")[0] if name.startswith("logits.") else name for name in teacher_names(recipe)})
    return remember(
        teacher, train, out=out, views=how.views, outputs=outputs or ["logits"],
        codec=how.codec, augment=recipe.augment, seed=seed, batch_size=how.batch_size, shard=shard,
        workers=recipe.workers, device=recipe.training.device, progress=show, say=say,
    )  # fmt: skip


def remember_recipe(
    recipe: Recipe,
    out: Path | None,
    *,
    shard: tuple[int, int] | None = None,
    say: Say = lambda _: None,
    show: bool = True,
) -> Targets:
    """What `limbeck remember` does: the targets of a recipe whose teacher is loaded from a file.

    Raises:
        ConfigError: the recipe trains its teacher, or no folder is named.
        LimbeckError: the input is at fault.
    """
    if recipe.teacher.weights is None:
        mend = "set teacher.weights to its file, or let `limbeck run` make the targets (--set targets.views=8)"
        raise ConfigError(problem("teacher.weights", "the recipe trains its teacher, so there is none yet", mend))
    kept = recipe.targets.path if recipe.targets is not None else None
    if out is None and kept is None:
        raise ConfigError(problem("--out", "no folder is named", "add --out targets/NAME"))
    splits = recipe.data.load()
    teacher = loaded_teacher(recipe, splits.train)
    return remember_for(
        recipe, splits.train, teacher, out or Path(str(kept)), seed=recipe.seed, shard=shard, say=say, show=show
    )


def part(text: str) -> tuple[int, int]:
    """`"2/4"` as (2, 4).

    Raises:
        ConfigError: it is not of that form.
    """
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal()):
        raise ConfigError(problem("--shard", f"{text!r} is no part of a whole", "write I/N, such as 1/4"))
    return int(index), int(parts)


def told(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and line of what a person wants to know of targets.

    Raises:
        CheckpointError: they are damaged, or no targets.
    """
    about = Store.open(folder).describe()
    samples = about["samples"]["count"]
    rows = samples * about["views"]
    yield "targets", f"{samples:,} samples, {about['views']} views, {about['bytes'] / 1e6:.1f} MB in {folder}"
    complete = about["shards"] == about["shards_there"] and not about["damaged"]
    done = "all" if complete else f"{about['shards_there']} of"
    yield "coverage", f"{done} {about['shards']} files, {'sealed' if about['sealed'] else 'not sealed'}"
    for name, fault in about["damaged"].items():
        yield "damaged", f"{name}: {fault}"
    for name, output in about["outputs"].items():
        codec = " ".join(f"{key} {value}" for key, value in output["codec"].items() if key != "kind")
        each = "token" if output["tokens"] else "row"
        line = f"{output['codec']['kind']} {codec}, {tuple(output['shape'])}, {output['bytes_a_row']} bytes a {each}"
        size = "" if output["tokens"] else f", {rows * output['bytes_a_row'] / 1e6:.1f} MB"
        yield "output", f"{name}: {line}{size}"
    for name in ("teacher", "data", "augmentation"):
        yield name, ", ".join(f"{key} {value}" for key, value in about[name].items() if value not in (None, {}))
    yield "seed", str(about["seed"])
    yield "made by", ", ".join(f"{key} {value}" for key, value in about["made_by"].items())
