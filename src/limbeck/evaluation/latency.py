"""How long a call takes, of several models in turns, on a machine that has other work to do as well.

What was tried on two cores with other work for three to five, with two copies of one network that ought to come out
alike (figures in `dev/LOG.md`): medians of all calls, minima and lower quantiles were apart by 3 % or more in a third
to a half of the tries. Three things helped. Turns of two milliseconds, each model's time divided by that of its
neighbours, so that what slows the machine cancels. Fresh copies of the models in every round: one copy of a network of
wide layers was slower than another by 8 % for as long as it lived, by where its weights lay in memory. And the time
for which the thread waited for a core is taken off: it is the other work's, and a call of more than three milliseconds
is seldom spared it.
"""

from __future__ import annotations

import copy
import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from limbeck.core.check import positive, whole
from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting
from limbeck.core.still import undisturbed
from limbeck.evaluation.macs import Example, batch_size, call
from limbeck.metrics.intervals import median_interval

__all__ = ["Latency", "Timing", "compare_calls", "compare_latency", "cores", "threads_set"]

Call = Callable[[], object]

_TURN = 0.002
"""Seconds of calls that a model has in a turn, if one call takes less."""
_SHORT = 10
"""Calls in a turn above which waiting is not looked at: medians pass over the few calls of that length that wait."""
_LEAST, _MOST = 20, 2000
"""Rounds that are made whatever they say, and after which nothing more is learned."""
_COPIED = 2**28
"""Bytes of parameters and buffers above which a model is not copied: so many pages lie everywhere anyway."""
_KEPT = 200


@setting
class Latency:
    """Seconds for one call on a batch.

    `p50` is the median over rounds, `low` to `high` its interval at 95 % (order statistics: no distribution is
    assumed); `p10` and `p90` are those of the single calls, `seconds` up to 200 of these, in the order in which they
    were made. Of several models measured together, each call is divided by how slow its turn was for all of them, so
    that ratios between the models hold although the machine has other work. Time for which the calling thread was ready
    and had no core is not counted, where the system tells it (Linux), in calls of 0.2 ms or more that do not sleep;
    waiting of other threads is.
    """

    p50: float
    p10: float
    p90: float
    low: float
    high: float
    batch: int | None
    threads: int
    repeats: int
    """Calls that were timed."""
    seconds: tuple[float, ...] = ()


@setting
class Timing:
    """How latency is measured beside a run's scores.

    Args:
        batches: samples a call.
        threads: numbers of threads, set by `torch.set_num_threads`; None takes one, and one a core up to eight.
        seconds: at most so many for all of it (models that take long are still called three times).
    """

    batches: tuple[int, ...] = (1, 32)
    threads: tuple[int, ...] | None = None
    seconds: float = 6.0

    def __post_init__(self) -> None:
        """Refuse what cannot be timed."""
        positive("timing.seconds", self.seconds)
        for name, counts in (("batches", self.batches), ("threads", self.threads)):
            if counts is not None and not counts:
                raise ConfigError(problem(f"timing.{name}", "there is none", "give one number or more"))
            for count in counts or ():
                whole(f"timing.{name}", count)

    def counts(self) -> tuple[int, ...]:
        """The numbers of threads on this machine."""
        return tuple(dict.fromkeys(self.threads or (1, min(cores(), 8))))


def compare_latency(
    models: Mapping[str, tuple[nn.Module, Example]],
    *,
    seconds: float = 2.0,
    precision: float = 0.01,
    threads: int | None = None,
) -> dict[str, Latency]:
    """Latency by name, measured in turns: of models in evaluation mode without gradient, each on its own example.

    A round makes fresh copies of all models, since where weights lie in memory changes how long a call takes. Models
    above 256 MB, and those that cannot be copied, are called themselves. All are left as they were. See
    `compare_calls` for what a round is and how many there are.

    Args:
        models: by name; an example is a batch on the model's device, samples on the first axis.
        seconds: at most so many, for all together, and the rounds that are made in any case.
        precision: half an interval, beside its median, at which there have been rounds enough.
        threads: for operations on a CPU, set by `torch.set_num_threads` and put back; None leaves it as it is.

    Raises:
        ConfigError: seconds, precision or threads cannot be done.
        DataError: an example holds no sample.
        ModelError: a model cannot be called on its example.
    """
    batches = {name: batch_size(example) for name, (_, example) in models.items()}
    with undisturbed(*(model for model, _ in models.values())):
        for model, example in models.values():
            call(model, example)
        makers = {name: _maker(model, example) for name, (model, example) in models.items()}
        return compare_calls(makers, seconds=seconds, precision=precision, threads=threads, batches=batches)


def compare_calls(
    makers: Mapping[str, Callable[[], Call]],
    *,
    seconds: float = 2.0,
    precision: float = 0.01,
    threads: int | None = None,
    batches: Mapping[str, int] | None = None,
) -> dict[str, Latency]:
    """Latency by name of anything that can be called.

    A round asks every maker for something to call. It has one turn or more, until three times as long has passed as
    making took: in a turn each is called once untimed and then for two milliseconds; calls that take longer than that
    are timed once. The order is drawn, and turned round in the turn after. The garbage collector is off meanwhile, and
    a GPU that was used is waited for. Rounds end when every interval is narrow enough, and at the latest when the time
    is up; at least twenty are made within twice that time, and three in any case.

    Args:
        makers: by name: each call gives a function that does the same as the one before.
        seconds: at most so many, for all together.
        precision: half an interval, beside its median, at which there have been rounds enough.
        threads: for operations on a CPU; None leaves it as it is.
        batches: noted in the result.

    Raises:
        ConfigError: seconds, precision or threads cannot be done.
    """
    positive("latency.seconds", seconds)
    positive("latency.precision", precision)
    if not makers:
        return {}
    with threads_set(threads), torch.no_grad(), _collector_as_now():
        rounds = _Rounds(makers)
        end = time.perf_counter() + seconds
        while not rounds.enough(precision, late=time.perf_counter() - end, seconds=seconds):
            rounds.run()
        return rounds.result(batches or {})


@contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """So many threads for torch's operations on a CPU, in this process; what was set is put back.

    It is `torch.set_num_threads`, and nothing else: environment variables and the threads between operations stay.

    Raises:
        ConfigError: the count is below 1.
    """
    if count is None:
        yield
        return
    whole("threads", count)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Cores of the machine that this process may use; two threads of one core count once where the system tells."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    place = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(place.format(one)).read_text(encoding="ascii") for one in usable})
    except OSError:
        return max(1, len(usable))


def _maker(model: nn.Module, example: Example) -> Callable[[], Call]:
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    try:
        copied = size <= _COPIED and copy.deepcopy(model) is not None
    except Exception:  # whatever a user's module does when it is copied: then it is timed where it lies
        copied = False

    def make() -> Call:
        fresh = copy.deepcopy(model) if copied else model
        return lambda: call(fresh, example)

    return make


@contextmanager
def _collector_as_now() -> Iterator[None]:
    collecting = gc.isenabled()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Rounds:
    """What was timed so far."""

    def __init__(self, makers: Mapping[str, Callable[[], Call]]) -> None:
        self.makers = makers
        self.draw = random.Random(0)
        self.order = list(range(len(makers)))
        self.calls: list[Call] = []
        self.calls = self._fresh()
        self.repeats = [max(1, int(_TURN / self._steady(run))) for run in self.calls]
        self.even: list[list[np.ndarray]] = []  # of each round and model all calls, divided by how slow the turn was
        self.middles: list[list[float]] = []  # their medians
        self.slow: list[float] = []  # of each turn, as a logarithm
        self.turns = 0
        self.elsewhere = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # a GPU does not wait for a core

    def _fresh(self) -> list[Call]:
        """New things to call, made in an order that is drawn. The old ones are let go after, so that places differ."""
        made: dict[int, Call] = {}
        makers = list(self.makers.values())
        for index in self.draw.sample(self.order, len(self.order)):
            made[index] = makers[index]()
        return [made[index] for index in range(len(makers))]

    @staticmethod
    def _steady(run: Call) -> float:
        """Call until it has not become faster for three calls, and say what the fastest took."""
        best, since = _time(run), 0
        for _ in range(30):
            taken = _time(run)
            since = 0 if taken < 0.95 * best else since + 1
            best = min(best, taken)
            if since == 3:
                break
        return max(best, 1e-9)

    def run(self) -> None:
        """One round."""
        gc.enable()  # copies of modules that hold themselves go only so
        start = time.perf_counter()
        self.calls = self._fresh()
        made = time.perf_counter()
        gc.disable()
        turns: list[list[np.ndarray]] = []
        while not turns or (time.perf_counter() - made < 3 * (made - start) and len(turns) < 50):
            turns.append(self._turn())
        self._take([np.stack([turn[index] for turn in turns]) for index in range(len(self.calls))])

    def _take(self, values: list[np.ndarray]) -> None:
        """Put a round on record: of each model [turns, calls]. What slows all models of a turn alike is set apart."""
        slow = np.mean([np.log(np.median(x, axis=1)) for x in values], axis=0)
        even = [(x / np.exp(slow)[:, None]).ravel() for x in values] if len(values) > 1 else [values[0].ravel()]
        self.even.append(even)
        self.middles.append([float(np.median(x)) for x in even])
        self.slow.extend(slow if len(values) > 1 else np.zeros(len(slow)))

    def _turn(self) -> list[np.ndarray]:
        self.turns += 1
        self.order = self.order[::-1] if self.turns % 2 == 0 else self.draw.sample(self.order, len(self.order))
        taken: dict[int, np.ndarray] = {}
        for index in self.order:
            run = self.calls[index]
            if self.repeats[index] > 1:
                run()
            waits = self.repeats[index] <= _SHORT and not self.elsewhere
            taken[index] = np.array([_time(run, waits=waits) for _ in range(self.repeats[index])])
        return [taken[index] for index in range(len(self.calls))]

    def enough(self, precision: float, *, late: float, seconds: float) -> bool:
        """Whether there have been rounds enough; `late` is the time since the limit."""
        count = len(self.middles)
        if count >= _MOST or (late >= 0 and count >= _LEAST) or (late >= seconds and count >= 3):
            return True
        if count < _LEAST or count % 10:
            return False
        spans = [(median_interval(column), float(np.median(column))) for column in np.array(self.middles).T]
        return all(high - low <= 2 * precision * middle for (low, high), middle in spans)

    def result(self, batches: Mapping[str, int]) -> dict[str, Latency]:
        """What came out, by name."""
        level = float(np.exp(np.median(self.slow)))
        middles = level * np.array(self.middles)
        found = {}
        for index, name in enumerate(self.makers):
            mine = level * np.concatenate([each[index] for each in self.even])
            p10, p90 = (float(x) for x in np.quantile(mine, (0.1, 0.9), method="inverted_cdf"))
            low, high = median_interval(middles[:, index].tolist())
            places = np.unique(np.linspace(0, len(mine) - 1, min(_KEPT, len(mine))).round().astype(int))
            found[name] = Latency(
                p50=float(np.median(middles[:, index])), p10=p10, p90=p90, low=low, high=high, batch=batches.get(name),
                threads=torch.get_num_threads(), repeats=len(mine), seconds=tuple(mine[places].tolist()),
            )  # fmt: skip
        return found


def _time(run: Call, *, waits: bool = False) -> float:
    """Seconds of a call; with `waits` less those for which this thread had no core, never below those it ran.

    A call that sleeps or waits for another thread is counted in full: newer kernels count sleeping as waiting too.
    """
    _wait()
    (waited, slept), ran = (_waited(), time.thread_time()) if waits else ((0.0, 0), 0.0)
    start = time.perf_counter()
    run()
    _wait()
    taken = time.perf_counter() - start
    if not waits:
        return taken
    after, asleep = _waited()
    return taken if asleep != slept else max(taken - (after - waited), min(taken, time.thread_time() - ran))


def _waited() -> tuple[float, int]:
    """Seconds for which this thread was ready and had no core, and how often it slept; zeros where nobody tells."""
    try:
        import resource  # noqa: PLC0415 - not everywhere

        if not hasattr(_OWN, "file"):
            _OWN.file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)  # kept open
        slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return int(os.pread(_OWN.file, 64, 0).split()[1]) * 1e-9, slept
    except (ImportError, AttributeError, OSError, IndexError, ValueError):
        return 0.0, 0


_OWN = threading.local()


def _wait() -> None:
    # A GPU answers before it is done. One that nobody has used yet is left asleep.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own gap
        torch.cuda.synchronize()
