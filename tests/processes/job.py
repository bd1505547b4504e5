"""A small run with a folder, for one process or several: `job.py OUT [--stop EPOCH] [--die STEP] [--shard]`."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import several
import torch

import limbeck as lb
from limbeck.core import processes
from limbeck.core.errors import LimbeckError
from limbeck.core.folder import RunFolder

EPOCHS = 6  # of four steps


def run(out: Path | None, **settings: Any) -> lb.Run:
    data = (several.X.float(), several.Y)
    return lb.distill(
        several.net(1).float(), several.net(2, width=6).float(), train=data, val=data, test=data, epochs=EPOCHS,
        batch_size=20, accumulate=2, objective=several.MIXED, optimizer=lb.Optimizer(rate=0.05), ema=0.9, out=out,
        checkpoint_seconds=0, log_steps=1, progress=False, **settings,
    )  # fmt: skip


def at(kind: str, what: str, number: int, send: signal.Signals) -> None:
    """Send this process a signal when it logs this line."""
    real = RunFolder.log

    def log(self: RunFolder, **line: Any) -> None:
        real(self, **line)
        if line["kind"] == kind and line[what] == number:
            os.kill(os.getpid(), send)

    RunFolder.log = log  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--stop", type=int)
    parser.add_argument("--die", type=int)
    parser.add_argument("--shard", action="store_true")
    given = parser.parse_args()
    if given.stop and processes.first():
        at("epoch", "epoch", given.stop, signal.SIGTERM)
    if given.die and not processes.first():
        at("step", "step", given.die, signal.SIGKILL)
    try:
        run(given.out, parallel="shard" if given.shard else "replicate")
    except LimbeckError as error:
        raise SystemExit(f"refused: {error}") from None


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
