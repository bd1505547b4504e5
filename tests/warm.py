"""The command in a process of its own that need not import anything: forked from one that has, in a tenth of a second.

What is sent to it, what it leaves behind and how it ends is as with the command itself, which `test_bad_input.py` and
`tests/test_cli.py` start for real.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import weakref
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
# A fork of a process whose threads compute may crash: those of this server never do.
SERVER = multiprocessing.get_context("forkserver")
# What a run comes to need: without it each process would spend seconds on these imports alone.
SERVER.set_forkserver_preload(
    ["__main__", "limbeck.cli", "limbeck.recipes", "limbeck.remembering", "accelerate", "captum.attr", "torch._dynamo"]
)


class Started:
    """As much of `subprocess.Popen` as is needed here, with text of both streams."""

    def __init__(
        self,
        *args: str | Path,
        script: Path | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._said = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._said, ignore_errors=True)
        self.args = [str(arg) for arg in args]
        given = (self.args, script, cwd or Path.cwd(), self._said, {**ENVIRONMENT, **(environment or {})})
        self._process = SERVER.Process(target=_inside, args=given)
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            assert self._process.pid is not None
            os.kill(self._process.pid, number)

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """What it wrote to each stream, once it has ended."""
        self.wait(timeout)
        return self.said("out"), self.said("err")

    def said(self, stream: str) -> str:
        """What it wrote to "out" or "err" so far."""
        written = self._said / stream
        return written.read_text() if written.exists() else ""  # not yet: it is about to begin, or was killed before


def limbeck(*args: str | Path, cwd: Path | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """The command to its end, as `subprocess.run` gives it."""
    return _completed(Started(*args, cwd=cwd), timeout)


def fresh(code: str, at: Path) -> subprocess.CompletedProcess[str]:
    """This code to its end, in a process that has none of our objects. It is written into the folder `at` first."""
    script = at / "fresh.py"
    script.write_text(textwrap.dedent(code))
    return _completed(Started(script=script), 60)


def _completed(process: Started, timeout: float) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.wait(timeout), out, err)


def _inside(args: list[str], script: Path | None, cwd: Path, said: Path, environment: Mapping[str, str]) -> None:
    """In the forked process: the streams go to files, and from here on it is the command, or the script."""
    for name, number in (("out", 1), ("err", 2)):
        to = os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(to, number)
        os.close(to)
    os.environ.update(environment)
    os.chdir(cwd)
    import torch

    torch.set_num_threads(1)
    sys.argv = ["limbeck" if script is None else str(script), *args]
    if script is not None:
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
        return
    from limbeck.cli import main

    main()
