"""Which of several processes this one is. A launcher (`torchrun`, `accelerate launch`) says so in the environment.

Every process goes through the same code; the first one alone speaks and writes.
"""

from __future__ import annotations

import atexit
import os
import time
from typing import Any

import torch.distributed as dist

__all__ = ["collect", "first", "leave_at_exit", "number", "processes", "wait"]


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def processes() -> int:
    """How many there are: those that have found each other, or, before that, those that were launched."""
    return dist.get_world_size() if _joined() else max(int(os.environ.get("WORLD_SIZE", "1")), 1)


def number() -> int:
    """This one's number, from 0."""
    return dist.get_rank() if _joined() else int(os.environ.get("RANK", "0"))


def first() -> bool:
    """Whether this is the process that speaks and writes."""
    return number() == 0


def wait() -> None:
    """Go on when all have come here; alone, at once."""
    if _joined() and processes() > 1:
        dist.barrier()


def collect(value: Any) -> list[Any]:
    """The small plain values of all processes, in their order."""
    if not _joined() or processes() == 1:
        return [value]
    every: list[Any] = [None] * processes()
    dist.all_gather_object(every, value)
    return every


def leave_at_exit() -> None:
    """Part from the others when this process ends, so that its end is not an abort.

    The threads of the group let go of tensors, for which they need the interpreter; one that comes too late for that
    aborts the process. So they are given a moment in which nobody else wants it.
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if _joined():
        dist.destroy_process_group()
        time.sleep(0.1)
