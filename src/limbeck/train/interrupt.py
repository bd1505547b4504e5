"""Ctrl-C and SIGTERM as a wish: the step is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["EXIT_CODES", "halting"]

EXIT_CODES = {"interrupted": 130, "terminated": 143}


@contextmanager
def halting() -> Iterator[Callable[[], str | None]]:
    """Inside, a signal only sets the reason that the yielded function returns; a second Ctrl-C stops at once."""
    reason: list[str] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        if reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        reason.append("interrupted" if number == signal.SIGINT else "terminated")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: reason[0] if reason else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
