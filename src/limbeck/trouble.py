"""What can happen to a run from outside: memory that runs out, a process that dies. Told in words, or worked around."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from limbeck.core.errors import ConfigError, ProcessError, problem
from limbeck.core.processes import number, processes
from limbeck.job import Job

__all__ = ["halving", "telling"]

_LOST = ("closed by peer", "reset by peer", "connection refused", "broken pipe", "nccl", "gloo", "barrier", "tcpstore")
"""What the libraries below say when a process at the other end is gone."""

T = TypeVar("T")


def halving(job: Job, attempt: Callable[[Job], T], say: Callable[[int], None]) -> T:
    """Try with whole batches, and with micro-batches half as large each time that memory runs out.

    Args:
        job: its `accumulate` is "auto".
        attempt: trains it.
        say: hears into how many micro-batches a step is cut, when that changes.

    Raises:
        ConfigError: one sample a step does not fit.
    """
    from accelerate.utils import find_executable_batch_size  # noqa: PLC0415 - seconds to import

    batch = job.training.batch_size
    pieces = [n for n in range(1, batch + 1) if batch % n == 0 and not n & (n - 1)]  # 1, 2, 4, … as far as it divides
    tried = iter(pieces[1:])

    def smaller() -> int:
        cut = next(tried, None)
        if cut is None:
            wrong = f"memory runs out with {batch // pieces[-1]} samples at a time"
            mend = f"{'give a batch size that can be halved more often, ' if batch > pieces[-1] else ''}a smaller model"
            raise ConfigError(problem("accumulate", wrong, f"{mend}, or another device"))
        say(cut)
        return batch // cut

    @find_executable_batch_size(starting_batch_size=batch, reduce_batch_size_fn=smaller)  # type: ignore[untyped-decorator]
    def executable(size: int) -> T:
        training = dataclasses.replace(job.training, accumulate=batch // size)
        return attempt(dataclasses.replace(job, training=training))

    result: T = executable()
    return result


@contextmanager
def telling(home: Path | None) -> Iterator[None]:
    """Inside, the end of a data worker or of another process of the run becomes one readable error.

    Raises:
        ProcessError: which of them is gone, and what to do.
    """
    again = "the same command goes on from the last checkpoint" if home else "give `out=`, so that a run can go on"
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if isinstance(error, ProcessError):
            raise
        if "DataLoader worker" in said and ("killed" in said or "exited" in said):
            wrong = f"a process that reads data is gone ({said.splitlines()[0].rstrip('.')})"
            mend = f"look for what ended it (often memory: fewer `workers`, smaller samples); {again}"
            raise ProcessError(problem("workers", wrong, mend)) from error
        if processes() > 1 and any(word in said.lower() for word in _LOST):
            own = f"process {number() + 1} of {processes()}"
            wrong = f"another process of the run is gone (this is {own}; {said.splitlines()[0].rstrip('.')})"
            raise ProcessError(problem("processes", wrong, f"see what it said; {again}")) from error
        raise
