"""Does distillation make training steadier? A study on CIFAR-10 with the two small convolutional networks.

    python benchmarks/steadiness.py --data cifar10.npz --out runs/steadiness    # results in results/steadiness.json

Plain training, label smoothing, distillation at two temperatures, and distillation whose student is an average of its
weights (EMA): same initial weights and the same order of samples at one seed, 20,000 images, no clipping of gradients
(it would hide a training that breaks), five seeds; each arm also at other learning rates. Nothing was chosen on the
test data.
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


def recipe(data: Path, images: int, epochs: int) -> Recipe:
    base = find("cifar10-conv", [f"data.path={data}", f"data.limit={images}", "data.val=2000"])
    training = dataclasses.replace(base.training, epochs=epochs, clip=None)
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
        teacher=dataclasses.replace(base.teacher, training=dataclasses.replace(training, clip=1.0)),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "steadiness.json")
    given = parser.parse_args()
    asked = recipe(given.data, given.images, given.epochs)
    done = lb.study(asked, seeds=given.seeds, rates=(3.0, 10.0), jobs=given.jobs, out=given.out, say=print)
    told = {
        "environment": {k: v for k, v in environment().items() if k != "command"},
        "settings": {"images": given.images, "epochs": given.epochs, "seeds": given.seeds},
        "summary": {arm: {k: v for k, v in row.items() if k in SHOWN} for arm, row in done.summary.items()},
        "churn": {arm: row["mean"] for arm, row in done.evidence["churn"].items()},
        "rates": done.evidence["rates"],
        "comparisons": done.evidence["comparisons"],
    }
    given.results.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
