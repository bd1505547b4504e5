"""A recipe over several seeds, each in a folder and, if asked, a process of its own: is the student as steady?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import IO, TypeAlias

from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, ProcessError, problem
from limbeck.core.folder import RunFolder
from limbeck.core.processes import processes
from limbeck.core.progress import bar
from limbeck.core.records import write_lines, write_text
from limbeck.core.setting import as_plain
from limbeck.recipes.base import Recipe, show
from limbeck.recipes.build import loaded_teacher
from limbeck.recipes.members import Members, Say
from limbeck.recipes.remember import remember_for
from limbeck.recipes.run import Outcome, check_recipe, conclude
from limbeck.recipes.seed import train_seed

__all__ = ["RATES", "study_recipe"]

RATES = (0.1, 0.3, 3.0, 10.0, 30.0)
"""Factors on the learning rate that a study tries where its recipe names none."""

_News: TypeAlias = "tuple[_Child, str | None]"
"""A line that a process said; None when it has ended."""


def study_recipe(
    recipe: Recipe,
    out: Path,
    *,
    jobs: int = 1,
    say: Say = lambda _: None,
    bars: bool = True,
) -> Outcome:
    """Train every arm over the recipe's seeds and rates, and write how steady each is beside the plain student.

    At one seed all arms have the same initial weights and the same order of samples. The same call on the same folder
    goes on where it stopped; more seeds may be asked for later.

    Args:
        recipe: the run; `seeds` says how many, `rates` at which factors on the learning rate.
        out: the folder; `seeds/` in it holds a run folder for each seed.
        jobs: seeds that are trained at a time, each in a process with its share of the cores.
        say: hears a line when a member is done.
        bars: a bar where stderr is a terminal.

    Raises:
        LimbeckError: the input is at fault.
        ProcessError: a process that trains a seed is gone.
        KeyboardInterrupt: Ctrl-C, after every process has saved its work.
    """
    whole("jobs", jobs)
    if processes() > 1:
        mend = "start the study itself once, and let it have its own with --jobs"
        raise ConfigError(problem("study", "it was started by a launcher of several processes", mend))
    started = time.perf_counter()
    splits = recipe.data.load()
    taught = recipe.teacher.data.load() if recipe.teacher.data is not None else splits
    check_recipe(recipe, taught, splits, out)
    with RunFolder(out, as_plain(recipe), device=recipe.training.device) as folder:
        every = [(each, out / "seeds" / str(each.seed)) for each in _seeds(recipe, out)]
        if recipe.targets is not None and recipe.teacher.weights is not None:
            # Once, before several processes would each make them.
            remember_for(every[0][0], splits.train, loaded_teacher(recipe, splits.train),
                         Path(str(every[0][0].targets.path)), seed=recipe.seed, say=say, show=bars)  # type: ignore[union-attr]  # fmt: skip
        made = Members()
        if jobs > 1:
            _in_processes(every, jobs, say=say, bars=bars)
            say = _quiet
        for each, home in every:
            made.add(train_seed(each, home, say=say, show=bars))
        folder.lines = made.lines
        write_lines(out / "metrics.jsonl", folder.lines)
        return conclude(recipe, splits, folder, made, seconds=time.perf_counter() - started)


def _quiet(_: str) -> None:
    """Say nothing: the processes have said it."""


def _seeds(recipe: Recipe, out: Path) -> Iterator[Recipe]:
    """The recipe of each seed. A loaded teacher's answers lie in one place for all."""
    kept = recipe.targets
    if kept is not None and kept.path is None and recipe.teacher.weights is not None:
        kept = replace(kept, path=str(out / "targets"))
    for seed in range(recipe.seed, recipe.seed + recipe.seeds):
        yield replace(recipe, seeds=1, seed=seed, targets=kept)


def _in_processes(every: Sequence[tuple[Recipe, Path]], jobs: int, *, say: Say, bars: bool) -> None:
    """Train so many seeds at a time. When one fails or is stopped, the others are asked to save and end."""
    waiting = list(every)
    running: list[_Child] = []
    news: Queue[_News] = Queue()
    heard = 0
    members = sum((1 + len(each.rates)) * len(each.arms) + 1 for each, _ in every)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with bar("study", members, show=bars) as advance, _ending(running):
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Child(*waiting.pop(0), threads, news))
            child, line = news.get()
            if line is None:
                running.remove(child)
                child.check()
                continue
            heard += 1
            advance(heard, " ".join(line.split()))
            say(line)


class _Child:
    """A process that trains one seed, in a session of its own, so that a Ctrl-C reaches it through us and once."""

    def __init__(self, recipe: Recipe, home: Path, threads: int, news: Queue[_News]) -> None:
        self.home = home
        asked = home.parent / f"{home.name}.yaml"
        write_text(asked, show(recipe))
        command = [sys.executable, "-m", "limbeck.recipes.seed", str(asked), str(home)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, encoding="utf-8",
            start_new_session=True,
        )  # fmt: skip
        self._wrong: list[str] = []
        complaints = threading.Thread(target=self._complaints, args=(self.process.stderr,), daemon=True)
        complaints.start()
        threading.Thread(target=self._listen, args=(self.process.stdout, complaints, news), daemon=True).start()

    def _complaints(self, pipe: IO[str]) -> None:
        with pipe:
            self._wrong += [line.rstrip("\n") for line in pipe]

    def _listen(self, pipe: IO[str], complaints: threading.Thread, news: Queue[_News]) -> None:
        """Pass on each line that it says, and None when it has ended."""
        with pipe:
            for line in pipe:
                news.put((self, line.rstrip("\n")))
        complaints.join()
        self.process.wait()
        news.put((self, None))

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def check(self) -> None:
        """Raise what went wrong in it."""
        code = self.process.returncode
        if code == 0:
            return
        if code == 130:
            raise KeyboardInterrupt
        said = "\n".join(self._wrong[-20:]).strip()
        if code == 2:
            raise ProcessError(said)
        wrong = f"its process ended with {code} ({said.splitlines()[-1] if said else 'no message'})"
        raise ProcessError(problem(f"study, {self.home}", wrong, "run the same command again: what was done is saved"))


@contextmanager
def _ending(running: Sequence[_Child]) -> Iterator[None]:
    """However the block is left, the processes are asked to save and end, and waited for. SIGTERM leaves it too."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, leave) if main else None
    try:
        yield
    finally:
        for child in running:
            if not child.ended:
                child.process.terminate()
        for child in running:
            child.process.wait()
        if main:
            signal.signal(signal.SIGTERM, before)
