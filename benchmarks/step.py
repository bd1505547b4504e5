"""What does a step of ours cost beside a loop written by hand with the same settings?

    python benchmarks/step.py                 # both sizes; writes benchmarks/results/step.json

Both sides train the same student from the same teacher on the same ready-made batches with SGD, clipping at norm 1,
KL at T=2 with weight 0.9 and labels with 0.1. They take turns of `TURN` steps in one process, after a warm-up, in an
order that swaps each round; the ratio is of the medians of seconds a step over all rounds, with the spread of the
ratio over pairs of neighbouring turns. The promise is at most 1.02 x (student step + teacher forward).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck as lb
from limbeck.core.folder import environment
from limbeck.models import CifarResNet, Conv
from limbeck.objectives import as_objective
from limbeck.train import Engine, Optimizer, Student, fit

SIZES = {
    "conv 32-64 to 16-32, batch 100": (Conv(channels=(32, 64)), Conv(channels=(16, 32)), 100, 40, 30),
    "ResNet-56 to ResNet-20, batch 128": (CifarResNet(depth=56), CifarResNet(depth=20), 128, 4, 14),
}
OBJECTIVE = (lb.KL(temperature=2.0, weight=0.9), lb.Label(weight=0.1))


class Ready:
    """The same few batches over and over: data costs nothing on either side."""

    def __init__(self, batches: list[dict[str, Tensor]], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        return (self.batches[i % len(self.batches)] for i in range(start, self.steps))


def by_hand(student: nn.Module, teacher: nn.Module, batches: list[dict[str, Tensor]]) -> Callable[[int], None]:
    teacher.eval().requires_grad_(False)
    decayed = [p for p in student.parameters() if p.dim() > 1]
    rest = [p for p in student.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1e-4, momentum=0.9, nesterov=True)
    parameters = decayed + rest

    def turn(steps: int) -> None:
        student.train()
        for i in range(steps):
            x, y = batches[i % len(batches)]["x"], batches[i % len(batches)]["y"]
            with torch.no_grad():
                told = teacher(x)
            said = student(x)
            soft = F.kl_div(
                (said / 2).log_softmax(-1), (told / 2).log_softmax(-1), reduction="batchmean", log_target=True
            )
            loss = 0.9 * 4 * soft + 0.1 * F.cross_entropy(said, y)
            if not torch.isfinite(loss):
                raise ArithmeticError("not finite")
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return turn


def ours(student: nn.Module, teacher: nn.Module, batches: list[dict[str, Tensor]]) -> Callable[[int], None]:
    master = lb.teacher(teacher)
    answers = master.open(["logits"], batches[0])
    built = Student.build(student, as_objective(OBJECTIVE), batches[0], answers)
    optimizer = Optimizer(rate=1e-4).build(built)
    engine = Engine(device="cpu")

    def turn(steps: int) -> None:
        fit(
            built, master, Ready(batches, steps), OBJECTIVE, optimizer, epochs=1, engine=engine,
            schedule=lb.schedules.Constant(), clip=1.0, log_steps=50,
        )  # fmt: skip

    return turn


def measure(name: str) -> dict[str, float]:
    big, small, batch, steps, rounds = SIZES[name]
    g = torch.Generator().manual_seed(0)
    shape = (3, 32, 32)
    batches = [
        {
            "id": torch.arange(batch),
            "valid": torch.ones(batch, dtype=torch.bool),
            "x": torch.randn(batch, *shape, generator=g),
            "y": torch.randint(0, 10, (batch,), generator=g),
        }
        for _ in range(4)
    ]
    teacher = big.build(shape, 10)
    sides = {}
    for side, make in (("ours", ours), ("by hand", by_hand)):
        torch.manual_seed(1)
        sides[side] = make(small.build(shape, 10), teacher, batches)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for round_ in range(-2, rounds):
        for side in list(sides) if round_ % 2 else reversed(list(sides)):
            start = time.perf_counter()
            sides[side](steps)
            if round_ >= 0:
                seconds[side].append((time.perf_counter() - start) / steps)
    pairs = sorted(a / b for a, b in zip(seconds["ours"], seconds["by hand"], strict=True))
    medians = {side: statistics.median(taken) for side, taken in seconds.items()}
    return {
        "ours_ms": round(1e3 * medians["ours"], 3),
        "by_hand_ms": round(1e3 * medians["by hand"], 3),
        "ratio_of_medians": round(medians["ours"] / medians["by hand"], 4),
        "ratio_p25": round(pairs[len(pairs) // 4], 4),
        "ratio_median": round(statistics.median(pairs), 4),
        "ratio_p75": round(pairs[3 * len(pairs) // 4], 4),
        "rounds": rounds,
        "steps_a_turn": steps,
    }


def main() -> None:
    results = {}
    for name in SIZES:
        results[name] = measure(name)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    place = {k: v for k, v in environment().items() if k != "command"}
    out = Path(__file__).parent / "results" / "step.json"
    out.write_text(json.dumps({"environment": place, "results": results}, indent=2) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
