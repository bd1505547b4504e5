"""Progress bars for what takes longer than a moment; silent when nobody watches a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Advance", "bar", "quiet"]

Advance = Callable[[int, str], None]
"""Called with how much is done and a few words about it."""


def quiet(done: int, words: str) -> None:
    """An `Advance` that shows nothing."""


@contextmanager
def bar(label: str, total: int, *, show: bool = True) -> Iterator[Advance]:
    """A bar with elapsed and remaining time on stderr, inside the block."""
    if not (show and sys.stderr.isatty()):
        yield quiet
        return
    from rich.console import Console  # noqa: PLC0415 - slow to import
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, words="")
        yield lambda done, words: progress.update(task, completed=done, words=words)
