"""One seed of a study in a process of its own: `python -m limbeck.recipes.seed RECIPE FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from limbeck.core.errors import LimbeckError
from limbeck.core.folder import RunFolder
from limbeck.core.setting import as_plain
from limbeck.recipes.base import Recipe, read
from limbeck.recipes.members import Members, Say, members

__all__ = ["train_seed"]


def train_seed(recipe: Recipe, out: Path, *, say: Say, show: bool) -> Members:
    """Train and examine the members of one seed in a folder of their own, or read what is there."""
    splits = recipe.data.load()
    taught = recipe.teacher.data.load() if recipe.teacher.data is not None else splits
    with RunFolder(out, as_plain(recipe), device=recipe.training.device) as folder:
        made = members(recipe, taught, splits, folder, say=say, show=show)
        made.lines = list(folder.lines)
    return made


def _main() -> int:
    recipe, out = sys.argv[1:]
    try:
        train_seed(read(Path(recipe).read_text(encoding="utf-8"), recipe), Path(out), say=_say, show=False)
    except LimbeckError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(_main())
