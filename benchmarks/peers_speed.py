"""What does a training step cost here, beside torchdistill, Keras and a loop written by hand?

    python benchmarks/peers_speed.py --weights resnet56.pth --data cifar10.npz   # writes results/peers_speed.json
    python benchmarks/peers_speed.py --rounds 2 --steps 2 --out rough.json       # generated images, random teacher

It needs torchdistill and torchvision, and keras for the last side; a side that cannot be imported says so. The job is
one on all sides: ResNet-56 teaches ResNet-20, CIFAR-10 images, batches of 128, crop 4 and flip, KL at T = 4 weighted
0.9 and labels 0.1, SGD with momentum 0.9 and weight decay 5e-4 (ours leaves biases and norms undecayed), one
normalisation for both models. Loading and augmenting the data is part of a step, on each side as its users have it:

    stored        ours: the teacher's answers read from disk; bfloat16, channels-last, as recipe `cifar10-resnet`
    live          ours: the prepared teacher asked at every step; the same precision
    plain         ours: labels alone; the same precision
    live float32  ours: the teacher left as it is (prepare="none"), float32: what remains is loop and data
    torchdistill  its DistillationBox in the loop of its image classification example; float32, two loader processes
    by hand       teacher in eval and no_grad, F.kl_div, DataLoader with two processes; float32
    keras         keras-io's Distiller on the torch backend, channels first, teacher frozen; float32, the same loader

Where a side has several ways, the one that is faster for it was taken: torchdistill is handed a teacher in evaluation
mode, Keras computes channels first, does not train the teacher, and goes step by step without `fit` and its callbacks.

The sides take turns of `--steps` steps in one process, after a warm-up, in an order that swaps each round, timed by
the wall: threads of the main process and loader processes share the machine. A loader of two processes holds four
batches ready and then waits, so that a side costs the others nothing while it is idle. Taking a batch makes a worker
begin another, in well under the time of a step: as many batches are made within a turn as are taken in it, and a turn
that starts with a full queue ends with one, as in a long run. Each turn starts with `UNTIMED` steps that nobody counts,
for caches and for what the turn before left unfinished.

Promises: torchdistill / stored >= 4.5; torchdistill / live >= 2.3. Each is a ratio of medians over all rounds, beside
it the quartiles of the ratio within a round.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peers import (
    BATCH,
    DECAY,
    HARD,
    MOMENTUM,
    NORMALIZE,
    PACKAGES,
    PEERS,
    RATE,
    SOFT,
    WORKERS,
    Common,
    T,
    agree,
    common,
    peer,
)  # fmt: skip
from torch import Tensor

import limbeck as lb
from limbeck.core.folder import environment
from limbeck.data import Source, as_source
from limbeck.job import Job, make_ready
from limbeck.objectives import as_objective
from limbeck.train import combine, counted, fit

UNTIMED, VIEWS = 2, 2
AUGMENT = lb.Augment(crop=4, flip=True)
DISTILLED = (lb.KL(temperature=T, weight=SOFT), lb.Label(weight=HARD))
PROMISES = {"stored": ">= 4.5", "live": ">= 2.3"}


# Ours -----------------------------------------------------------------------------------------------------------------


class Stretch:
    """The next few batches of an endless stream, as an epoch of the loop."""

    def __init__(self, stream: Iterator[dict[str, Tensor]], steps: int) -> None:
        self.stream, self.steps = stream, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        return itertools.islice(self.stream, self.steps - start)


def ours(given: Common, source: Source, teacher: Any, precision: str) -> Callable[[int], None]:
    """Steps of a run of ours: made ready as `distill` does it, trained by the real loop."""
    training = lb.Training(
        batch_size=BATCH, precision=precision, channels_last=precision == "bfloat16", device="cpu",
        schedule=lb.schedules.Constant(),
        optimizer=lb.Optimizer(rate=RATE, weight_decay=DECAY, options={"momentum": MOMENTUM, "nesterov": False}),
    )  # fmt: skip
    few = source.subset(torch.arange(2 * BATCH))
    job = Job(
        student=copy.deepcopy(given.student), teacher=None if teacher is None else lb.teacher(teacher), train=source,
        val=few, test=few, objective=as_objective((lb.Label(),) if teacher is None else DISTILLED), training=training,
        augment=AUGMENT,
    )  # fmt: skip
    ready = make_ready(job, ExitStack())  # left open: the process ends with the measurement
    optimizer = training.optimizer.build(ready.student)
    stream = itertools.chain.from_iterable(ready.batches.epoch(epoch) for epoch in itertools.count())

    def turn(steps: int) -> None:
        fit(
            ready.student, job.teacher, Stretch(stream, steps), job.objective, optimizer, epochs=1,
            engine=ready.engine, schedule=training.schedule, log_steps=training.log_steps,
        )  # fmt: skip

    return turn


def our_sides(given: Common, folder: Path, remembered: int) -> dict[str, Callable[[], Callable[[int], None]]]:
    source = as_source((given.images, given.labels), normalize=NORMALIZE)
    said, told, y = torch.randn(8, 10), torch.randn(8, 10), torch.arange(8)
    batch = {"y": y, "valid": torch.ones(8, dtype=torch.bool)}
    terms, mine, theirs = as_objective(DISTILLED), {"logits": said}, {"logits": told}
    agree("ours", combine(terms, mine, theirs, batch, progress=0.0, counts=counted(terms, batch))[0], said, told, y)

    def stored() -> Callable[[int], None]:
        part = source.subset(torch.arange(min(remembered, len(source))))
        lb.remember(given.teacher, part, views=VIEWS, augment=AUGMENT, out=folder, progress=False)
        return ours(given, part, lb.Targets(folder), "bfloat16")

    return {
        "stored": stored,
        "live": lambda: ours(given, source, given.teacher, "bfloat16"),
        "plain": lambda: ours(given, source, None, "bfloat16"),
        "live float32": lambda: ours(given, source, lb.teacher(given.teacher, prepare="none"), "float32"),
    }


# How it is measured ---------------------------------------------------------------------------------------------------


def sides(
    given: Common, folder: Path, remembered: int, only: list[str]
) -> tuple[dict[str, Callable[[int], None]], dict[str, str]]:
    """A turn for each side, and for those that cannot be imported why."""
    mine = our_sides(given, folder, remembered)
    makers = {**mine, **{name: lambda make=make: peer(make, given) for name, make in PEERS.items()}}
    turns, absent = {}, {}
    for name in only or makers:
        try:
            turns[name] = makers[name]()
        except ImportError as fault:
            absent[name] = f"not here: {fault}"
    return turns, absent


def measure(turns: dict[str, Callable[[int], None]], steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of the wall a step, by side and round; one round before them warms up."""
    taken: dict[str, list[float]] = {side: [] for side in turns}
    for number in range(-1, rounds):
        for side in list(turns) if number % 2 else reversed(list(turns)):
            turns[side](UNTIMED)
            start = time.perf_counter()
            turns[side](steps)
            if number >= 0:
                taken[side].append((time.perf_counter() - start) / steps)
    return taken


def ratio(above: list[float], below: list[float]) -> dict[str, Any]:
    each = sorted(a / b for a, b in zip(above, below, strict=True))
    return {
        "ratio_of_medians": round(statistics.median(above) / statistics.median(below), 3),
        "p25": round(each[len(each) // 4], 3),
        "p75": round(each[(3 * len(each)) // 4], 3),
    }


def judged(taken: dict[str, list[float]]) -> dict[str, Any]:
    """Each peer over each of our forms that does the same job: how many times faster we are."""
    rows = {}
    for name, mine in itertools.product(PEERS, ("stored", "live", "live float32")):
        if name in taken and mine in taken:
            promise = {"promise": PROMISES[mine]} if name == "torchdistill" and mine in PROMISES else {}
            rows[f"{name} / {mine}"] = {**promise, **ratio(taken[name], taken[mine])}
    for above, below in (("stored", "plain"), ("live float32", "live")):
        if above in taken and below in taken:
            rows[f"{above} / {below}"] = ratio(taken[above], taken[below])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="of the main process; loaders run beside it")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=6, help="timed steps a turn")
    parser.add_argument("--only", default="", help="sides with commas; nothing is written")
    parser.add_argument("--weights", type=Path, help="the teacher's weights; without them they are random")
    parser.add_argument("--data", type=Path, help="an npz of CIFAR-10; without it images are generated")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--remembered", type=int, default=8192, help="images in the stored targets")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "peers_speed.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    only = [name.strip() for name in asked.only.split(",") if name.strip()]
    with TemporaryDirectory() as folder:
        given = common(asked.weights, asked.data, asked.images)
        turns, absent = sides(given, Path(folder) / "targets", asked.remembered, only)
        taken = measure(turns, asked.steps, asked.rounds)
    for name in turns:
        low, middle, high = np.quantile(taken[name], (0.25, 0.5, 0.75)) * 1e3
        print(f"{name:14} {middle:8.1f} ms a step ({low:.1f} to {high:.1f})")
    for name, why in absent.items():
        print(f"{name:14} {why}")
    ratios = judged(taken)
    for name, row in ratios.items():
        said = f"{row['ratio_of_medians']:6.2f} ({row['p25']:.2f} to {row['p75']:.2f})"
        print(f"{name:28} {said} {row.get('promise', '')}")
    if only:
        return
    place = {k: v for k, v in environment().items() if k != "command"}
    here = {name: version(name) for name in PACKAGES if find_spec({"pillow": "PIL"}.get(name, name))}
    settings = {name: getattr(asked, name) for name in ("threads", "rounds", "steps", "images", "remembered")}
    settings |= {"loader_processes": WORKERS, "untimed_steps_a_turn": UNTIMED, "clock": "wall"}
    settings |= {"weights": "given" if asked.weights else "random", "data": "given" if asked.data else "generated"}
    result = {
        "environment": {**place, "peers": here},
        "settings": settings,
        "milliseconds": {side: round(1e3 * statistics.median(seconds), 2) for side, seconds in taken.items()},
        "absent": absent,
        "ratios": ratios,
    }
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {asked.out.name}")


if __name__ == "__main__":
    main()
