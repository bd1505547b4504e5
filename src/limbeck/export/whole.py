"""Files of a foreign writer that appear whole or not at all, and only when what is in them was proved."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck.core.errors import CheckpointError, problem

__all__ = ["staged"]


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A path of the same name in a fresh folder beside `path`; at the end all in that folder moves to `path`'s.

    The file itself moves last, after what belongs to it. An error inside leaves nothing behind.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield work / path.name
            for file in sorted(work.iterdir(), key=lambda file: file.name == path.name):
                file.chmod(0o644)
                file.replace(path.parent / file.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        mend = "choose a folder that can be written, with enough space"
        raise CheckpointError(problem(str(path), f"cannot be written ({error.strerror or error})", mend)) from None
