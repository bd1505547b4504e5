"""Does distillation make training steadier? A study on CIFAR-10 with the two small convolutional networks.

    python benchmarks/steadiness.py --data cifar10.npz --out runs/free             # results/steadiness-free.json
    python benchmarks/steadiness.py --data cifar10.npz --out runs/clipped --clip 1

Plain training, label smoothing, distillation at two temperatures, and distillation whose student is an average of its
weights (EMA): same initial weights and the same order of samples at one seed, 20,000 images, five seeds, each with a
teacher of its own; each arm also at other learning rates. Twice: with gradients as they are, and clipped at norm 1,
which hides some trainings that would break. Nothing was chosen on the test data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import limbeck as lb
from limbeck.core.folder import environment
from limbeck.recipes import Arm, Recipe, find

SHOWN = ("accuracy", "nll", "ece")
RATE = {"free": 0.03, "clipped": 0.1}
FACTORS = (0.3, 3.0, 10.0)


def recipe(data: Path, images: int, epochs: int, clip: float | None) -> Recipe:
    base = find("cifar10-conv", [f"data.path={data}", f"data.limit={images}", "data.val=2000"])
    rate = RATE["free" if clip is None else "clipped"]
    optimizer = dataclasses.replace(base.training.optimizer, rate=rate)
    common = dataclasses.replace(base.training, epochs=epochs, precision="float32")
    training = dataclasses.replace(common, clip=clip, optimizer=optimizer)
    warm, hot = lb.KL(temperature=2.0, weight=0.5), lb.KL(temperature=8.0, weight=0.5)
    half = lb.Label(weight=0.5)
    arms = {
        "plain": Arm(label="Plain student", objective=(lb.Label(),)),
        "smoothed": Arm(label="Label smoothing 0.1", objective=(lb.Label(smoothing=0.1),)),
        "warm": Arm(label="Distilled, T = 2", objective=(warm, half)),
        "hot": Arm(label="Distilled, T = 8", objective=(hot, half)),
        "averaged": Arm(label="Distilled, T = 2, averaged", objective=(warm, half), ema=0.99),
    }
    evidence = lb.Evidence(measures=("sensitivity",))
    return dataclasses.replace(
        base, title="steadiness", story=__doc__.splitlines()[0], arms=arms, training=training, evidence=evidence,
        teacher=dataclasses.replace(base.teacher, training=common),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--clip", type=float, help="largest gradient norm; without it gradients are left alone")
    parser.add_argument("--results", type=Path, help="by default results/steadiness-free.json or -clipped.json")
    given = parser.parse_args()
    kind = "free" if given.clip is None else "clipped"
    asked = recipe(given.data, given.images, given.epochs, given.clip)
    done = lb.study(asked, seeds=given.seeds, rates=FACTORS, jobs=given.jobs, out=given.out, say=print)
    told = {
        "environment": {k: v for k, v in environment().items() if k != "command"},
        "settings": {name: getattr(given, name) for name in ("images", "epochs", "seeds", "clip")}
        | {"rate": RATE[kind]},
        "summary": {arm: {k: v for k, v in row.items() if k in SHOWN} for arm, row in done.summary.items()},
        "churn": {arm: row["mean"] for arm, row in done.evidence["churn"].items()},
        "rates": done.evidence["rates"],
        "comparisons": done.evidence["comparisons"],
    }
    out = given.results or Path(__file__).parent / "results" / f"steadiness-{kind}.json"
    out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
