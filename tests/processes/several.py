"""What two processes do in the tests of this folder, each case with its result in a file; also run alone, in one.

torchrun --nproc-per-node 2 several.py OUT            # or accelerate launch --cpu --num_processes 2
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import limbeck as lb
from limbeck.core import processes
from limbeck.core.schedules import Linear
from limbeck.core.sharding import whole
from limbeck.objectives import as_objective
from limbeck.train import Engine, Optimizer, State, Student, Tuner, Tuning, fit
from limbeck.train.followers import Average
from limbeck.train.tuning import UNTUNED

G = torch.Generator().manual_seed(0)
X = torch.randn(71, 5, generator=G, dtype=torch.float64)
Y = torch.randint(0, 3, (71,), generator=G)
VALID = torch.rand(71, generator=G) > 0.3
EPOCHS = 8  # three steps each


class Net(nn.Module):
    """Blocks in a list, an output that no term reads, and a layer that has no part in the loss."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(5, width)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(2)])
        self.last = nn.Linear(width, 3)
        self.aside = nn.Linear(width, 2)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.last(x), "aside": self.aside(x)}


def net(seed: int, width: int = 8) -> Net:
    torch.manual_seed(seed)
    return Net(width).double()


class Ragged:
    """Micro-batches of 12 with ragged `valid`, of which each process reads its part; the last one holds 11."""

    def __init__(self, part: tuple[int, int], size: int = 12) -> None:
        self.part, self.size = part, size

    def __len__(self) -> int:
        return math.ceil(len(X) / self.size)

    def epoch(self, epoch: int, start: int = 0):
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(epoch))
        for every in order.split(self.size)[start:]:
            at = torch.tensor_split(every, self.part[1])[self.part[0]]
            yield {"id": at, "valid": VALID[at], "x": X[at], "y": Y[at]}


LAYER = {"student": "first", "teacher": "first"}
MIXED = (lb.KL(temperature=3.0, weight=Linear(start=0.9, end=0.2)), lb.Label(), lb.Hint(**LAYER))
RELATED = (lb.Label(), lb.RKD(**LAYER), lb.Similarity(**LAYER, weight=50.0))


PARTS = Tuning(freeze=("first",), thaw={"blocks.0": 3}, decay=0.7, anchor=0.3)


def trained(
    objective: Any, size: int = 12, *, teacher: Any = None, tuning: Tuning | None = None, **engine: Any
) -> dict[str, Tensor]:
    """The weights of student and heads, and of their moving average, after `EPOCHS` · 3 steps of two micro-batches."""
    engine = Engine(device="cpu", **engine)
    batches = Ragged(engine.part, size)
    master = lb.teacher(net(2, width=6), **(teacher or {}))
    before = {name: value.clone() for name, value in master.model.state_dict().items()}
    example = next(Ragged((0, 1)).epoch(0))
    answers = master.open(["logits", "first"], example)
    torch.manual_seed(5)
    given = Student.build(net(1), as_objective(objective), example, answers).double()
    if tuning is not None:
        Tuner(tuning, given.model).freeze()
    called, held = engine.prepare(given, idle=given.idle(example, answers))
    tuner = UNTUNED if tuning is None else Tuner(tuning, held.model)
    assert (held is given) != engine.sharded
    average = Average(held, 0.9)
    state = State()
    fit(
        called, master, batches, objective, Optimizer(rate=0.05).build(held, tuner), epochs=EPOCHS, engine=engine,
        schedule=lb.schedules.OneCycle(), accumulate=-(-24 // size), clip=0.5, state=state, followers=(average,),
        tuner=tuner,
    )  # fmt: skip
    assert state.step == EPOCHS * 3
    assert all(torch.equal(value, before[name]) for name, value in master.model.state_dict().items())
    own = {name: whole(value.detach()).clone() for name, value in held.state_dict().items()}
    return own | {f"average/{name}": value.clone() for name, value in average.plain().items()}


def shared_scores() -> dict[str, Tensor]:
    """Scores of a pass that the processes share out: 71 samples, seven at a time."""
    engine = Engine(device="cpu")
    model = net(3).float()
    with torch.no_grad():
        batches = [{"id": at, "valid": VALID[at], "x": X[at].float(), "y": Y[at]} for at in torch.arange(71).split(7)]
        spread = engine.spread(lambda batch: {"logits": model(batch["x"])["logits"], "constant": torch.zeros(3)})
        return {"logits": torch.cat([spread(batch)["logits"] for batch in batches])}


def spoilt() -> dict[str, Tensor]:
    """One process has a sample that makes its loss NaN: both leave that step out, and both have its ids."""
    engine = Engine(device="cpu")
    x = X.clone()
    x[int(torch.randperm(71, generator=torch.Generator().manual_seed(0))[0])] = float("nan")  # the first process's

    class Poisoned(Ragged):
        def epoch(self, epoch: int, start: int = 0):
            for batch in super().epoch(epoch, start):
                yield batch | {"x": x[batch["id"]], "valid": torch.ones_like(batch["valid"])}

    seen: list[Any] = []
    example = next(Ragged((0, 1)).epoch(0))
    given = Student.build(net(1), as_objective(lb.Label()), example, {})
    called, held = engine.prepare(given, idle=given.idle(example, {}))
    state = State()
    fit(
        called, None, Poisoned(engine.part), (lb.Label(),), Optimizer(rate=0.05).build(held), epochs=2, engine=engine,
        schedule=lb.schedules.OneCycle(), clip=0.5, non_finite="skip", state=state, faults=seen.append,
    )  # fmt: skip
    assert all(torch.isfinite(value).all() for value in held.state_dict().values())
    return {
        "skipped": torch.tensor(state.skipped),
        "ids": torch.tensor(sorted(i for fault in seen for i in fault.ids)),
    }


CASES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "replicate": lambda: trained(MIXED, parallel="replicate"),
    "shard": lambda: trained(MIXED, parallel="shard"),
    "replicate-gather": lambda: trained(RELATED, size=24, parallel="replicate", gather=True),
    "shard-gather": lambda: trained(RELATED, size=24, parallel="shard", gather=True),
    "shard-teacher": lambda: trained(MIXED, parallel="shard", teacher={"shard": True}),
    "replicate-tuned": lambda: trained(MIXED, parallel="replicate", tuning=PARTS),
    "shard-tuned": lambda: trained(MIXED, parallel="shard", tuning=PARTS),
    "apart": lambda: trained(RELATED, size=24, parallel="replicate"),
    "auto": lambda: {"sharded": torch.tensor(Engine(device="cpu").sharded)},
    "scores": shared_scores,
    "spoilt": spoilt,
}


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        found = copy.copy(case())
        save_file({k: v.contiguous() for k, v in found.items()}, out / f"{name}-{processes.number()}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
