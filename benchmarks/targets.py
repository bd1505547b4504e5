"""What does a teacher cost at every step, stored and live, beside the same step without one?

    python benchmarks/targets.py                     # writes benchmarks/results/targets.json
    python benchmarks/targets.py --rounds 3 --steps 2 --threads 1 --clock process --out rough.json
    python benchmarks/targets.py --device cuda --batch 1024 --steps 50 --out results/targets-cuda.json

ResNet-56 teaches ResNet-20 on batches of 128 images of 32x32, in bfloat16 and channels-last as the recipe
`cifar10-resnet` trains it, through the real loop (`fit`) on ready-made batches. The five sides take turns of `--steps`
steps in one process, after a warm-up, in an order that swaps each round:

    plain      (a) a step on labels alone
    stored     (b) the same student's step with the teacher's signals read from disk
    live       (c) the same student's step with the prepared teacher
    prepared   (d) the prepared teacher alone
    eager      (e) the teacher as it was handed over, in evaluation mode and without gradient

On a GPU the stored signals are kept on it, as in any run, and a turn ends when the GPU is done; how busy it was is what
its driver says, asked ten times a second.

Promises: b <= 1.05 a; c <= 1.02 (a + d); e >= 2 d. Each is a ratio of medians over all rounds, beside it the quartiles
of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import limbeck as lb
from limbeck.core.folder import environment
from limbeck.models import CifarResNet
from limbeck.objectives import as_objective
from limbeck.teachers import ModuleTeacher
from limbeck.train import Engine, Optimizer, Student, fit

DISTILLED = (lb.KL(temperature=4.0, weight=0.9), lb.Label(weight=0.1))
PLAIN = (lb.Label(),)
BATCHES = 4
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}

Batch = dict[str, Tensor]
Turn = Callable[[int], None]


class Ready:
    """The same few batches over and over: data costs nothing on any side."""

    def __init__(self, batches: Sequence[Batch], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return (self.batches[i % len(self.batches)] for i in range(start, self.steps))


def data(size: int) -> list[Batch]:
    g = torch.Generator().manual_seed(0)
    return [
        {
            "id": torch.arange(size) + i * size,
            "valid": torch.ones(size, dtype=torch.bool),
            "view": torch.zeros(size, dtype=torch.int64),
            "x": torch.randn(size, 3, 32, 32, generator=g),
            "y": torch.randint(0, 10, (size,), generator=g),
        }
        for i in range(BATCHES)
    ]


def big(weights: Path | None, batches: Sequence[Batch]) -> nn.Module:
    """The teacher: real weights where they are given, or random ones whose norms have seen the data."""
    torch.manual_seed(0)
    model = CifarResNet(depth=56).build((3, 32, 32), 10)
    if weights:
        found = torch.load(weights, map_location="cpu", weights_only=True)
        state = found.get("state_dict", found)
        model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    else:
        with torch.no_grad():
            for batch in batches:
                model.train()(batch["x"])
    return model.eval()


def stored(model: nn.Module, batches: Sequence[Batch], folder: Path, device: torch.device) -> lb.Targets:
    """The teacher's answers to these batches, kept on disk in the default codec, ready to be read."""
    x, y = (torch.cat([batch[name] for batch in batches]) for name in ("x", "y"))
    lb.remember(model, (x, y), out=folder, progress=False)
    targets = lb.Targets(folder)
    targets.open(("logits",), batches[0], device=device)
    return targets


def student_turn(teacher: Any | None, batches: Sequence[Batch], engine: Engine) -> Turn:
    """Steps of a student through the real loop; `teacher` is opened already."""
    torch.manual_seed(1)
    model = CifarResNet(depth=20).build((3, 32, 32), 10).to(engine.device, memory_format=torch.channels_last)
    objective = as_objective(PLAIN if teacher is None else DISTILLED)
    answers = {} if teacher is None else teacher(batches[0])
    built = Student.build(model, objective, batches[0], answers)
    optimizer = Optimizer(rate=1e-4, weight_decay=5e-4).build(built)

    def turn(steps: int) -> None:
        fit(
            built, teacher, Ready(batches, steps), objective, optimizer, epochs=1, engine=engine,
            schedule=lb.schedules.Constant(), log_steps=10_000,
        )  # fmt: skip

    return turn


def teacher_turn(answer: Callable[[Batch], Any], batches: Sequence[Batch]) -> Turn:
    def turn(steps: int) -> None:
        for i in range(steps):
            answer(batches[i % len(batches)])

    return turn


def opened(model: nn.Module, batches: Sequence[Batch], device: torch.device, **settings: Any) -> ModuleTeacher:
    """The teacher, made ready as a run does it: sized on two samples, held to its bound on 256."""
    teacher = ModuleTeacher(model, **settings)
    samples = {name: torch.cat([batch[name] for batch in batches[:2]]) for name in batches[0]}
    teacher.open(("logits",), {name: value[:2] for name, value in samples.items()}, device=device, samples=samples)
    return teacher


def sides(
    model: nn.Module, batches: Sequence[Batch], compiled: str, folder: Path, engine: Engine
) -> tuple[dict[str, Turn], dict[str, Any]]:
    """One turn for each side, and the form of the prepared teacher."""
    targets = stored(model, batches, folder, engine.device)
    batches = [dict(engine.batch(batch)) for batch in batches]
    prepared = opened(model.to(engine.device), batches, engine.device, compile=compiled)

    @torch.no_grad()
    def eager(batch: Batch) -> Tensor:
        return model(batch["x"])

    turns = {"plain": student_turn(None, batches, engine)}
    turns["stored"] = student_turn(targets, batches, engine)
    turns["live"] = student_turn(prepared, batches, engine)
    turns["prepared"] = teacher_turn(prepared, batches)
    turns["eager"] = teacher_turn(eager, batches)
    return turns, prepared.form


def measure(turns: dict[str, Turn], steps: int, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds a step, by side and round."""
    taken: dict[str, list[float]] = {side: [] for side in turns}
    for number in range(-2, rounds):
        for side in list(turns) if number % 2 else reversed(list(turns)):
            start = clock()
            turns[side](steps)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if number >= 0:
                taken[side].append((clock() - start) / steps)
    return taken


@contextmanager
def watched(device: torch.device) -> Iterator[dict[str, float]]:
    """How busy a GPU was meanwhile, in percent, as its driver says; nothing of a CPU."""
    said: dict[str, float] = {}
    if device.type != "cuda":
        yield said
        return
    seen: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.1):
            seen.append(torch.cuda.utilization(device))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield said
    finally:
        done.set()
        thread.join()
    said["busy, percent"] = round(statistics.mean(seen), 1)


def ratio(above: list[float], below: list[float], promise: str) -> dict[str, Any]:
    each = sorted(a / b for a, b in zip(above, below, strict=True))
    return {
        "promise": promise,
        "ratio_of_medians": round(statistics.median(above) / statistics.median(below), 4),
        "p25": round(each[len(each) // 4], 4),
        "p75": round(each[(3 * len(each)) // 4], 4),
    }


def judged(taken: dict[str, list[float]]) -> dict[str, Any]:
    """The three promises."""
    both = [a + d for a, d in zip(taken["plain"], taken["prepared"], strict=True)]
    return {
        "stored / plain": ratio(taken["stored"], taken["plain"], "<= 1.05"),
        "live / (plain + prepared)": ratio(taken["live"], both, "<= 1.02"),
        "eager / prepared": ratio(taken["eager"], taken["prepared"], ">= 2"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4, help="steps a turn")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="process: processor time, on a busy machine")
    parser.add_argument("--compile", choices=("none", "default"), default="none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--weights", type=Path, help="the teacher's weights; without them they are random")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "targets.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    batches = data(given.batch)
    engine = Engine(device=given.device, precision="bfloat16")
    with TemporaryDirectory() as folder:
        turns, form = sides(big(given.weights, batches), batches, given.compile, Path(folder) / "targets", engine)
        with watched(engine.device) as busy:
            taken = measure(turns, given.steps, given.rounds, CLOCKS[given.clock])
    result = {
        "environment": {k: v for k, v in environment(given.device).items() if k != "command"},
        "settings": {name: getattr(given, name) for name in ("threads", "rounds", "steps", "clock", "device", "batch")},
        "teacher": form,
        "milliseconds": {side: round(1e3 * statistics.median(seconds), 2) for side, seconds in taken.items()},
        "images a second": {side: round(given.batch / statistics.median(taken[side])) for side in taken},
        **busy,
        "ratios": judged(taken),
    }
    print(
        json.dumps({name: value for name, value in result.items() if name not in ("environment", "settings")}, indent=2)
    )
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
