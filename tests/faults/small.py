"""One run of a small network with a folder, as a process of its own: `small.py OUT [key=value ...]`."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import limbeck as lb
from limbeck.core.errors import LimbeckError

G = torch.Generator().manual_seed(0)
X = torch.randn(64, 6, generator=G)
Y = torch.randint(0, 3, (64,), generator=G)


OBJECTIVE = (lb.KL(), lb.Label(), lb.Hint(student="0", teacher="0"))


class Rows(Dataset[Any]):
    """A map-style dataset, whose workers die at sample 40 if told to."""

    def __init__(self, dies: bool = False) -> None:
        self.dies = dies

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if self.dies and i == 40 and torch.utils.data.get_worker_info() is not None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        return X[i], int(Y[i])


def run(out: str | Path | None, *, width: int = 16, dies: bool = False, **settings: Any) -> lb.Run:
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(6, width), nn.Dropout(0.1), nn.ReLU(), nn.Linear(width, 3))
    teacher = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    settings = {"epochs": 2, "batch_size": 16, "checkpoint_seconds": 0, "log_steps": 1, **settings}
    data = Rows(dies) if settings.get("workers") else (X, Y)
    return lb.distill(
        student, teacher, train=data, val=(X, Y), test=(X, Y), objective=OBJECTIVE,
        optimizer=lb.Optimizer(name="AdamW", rate=0.01), progress=False, out=out, **settings,
    )  # fmt: skip


def main() -> None:
    out, *words = sys.argv[1:]
    settings = {key: json.loads(value) for key, _, value in (word.partition("=") for word in words)}
    limit = settings.pop("file_bytes", None)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run(out, **settings)
    except LimbeckError as error:
        print(f"refused: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
