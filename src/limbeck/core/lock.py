"""A lock on a folder, held by a process and gone with it, whichever way it ends. Nothing is left in the folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # not everywhere
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock"]

_HELD: WeakSet[Lock] = WeakSet()


class Lock:
    """Hold a folder against the other processes of this machine, and other machines where the file system can.

    Where it cannot lock at all, nothing is held and nobody is refused.

    Args:
        folder: an existing folder.
        block: wait until it is free.

    Raises:
        BlockingIOError: another holds it, and `block` is off.
    """

    def __init__(self, folder: Path, *, block: bool = False) -> None:
        self._handle: int | None = None
        if fcntl is None:
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:
            os.close(handle)
            return
        self._handle = handle
        _HELD.add(self)

    def release(self) -> None:
        """Let go; twice does no harm."""
        if self._handle is not None and fcntl is not None:  # None, too, while the interpreter closes
            fcntl.flock(self._handle, fcntl.LOCK_UN)  # for a child that has not parted with it yet, too
        self.forget()

    def forget(self) -> None:
        """Close it here alone, as a child must: the lock is its parent's."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)

    def __del__(self) -> None:
        self.release()


def _forget() -> None:
    """In a child, such as a data worker: it would hold its parent's folder on after the parent's death."""
    for lock in list(_HELD):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
