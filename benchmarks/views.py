"""How many stored views of each image does a student need?

    python benchmarks/views.py --weights resnet56.pth --data cifar10.npz     # writes benchmarks/results/views.json

A pretrained ResNet-56 teaches a ResNet-8 on 10,000 images of CIFAR-10 for 16 epochs (crop and flip, KL at T = 4
weighted 0.9, labels 0.1): from 1, 2, 4 and 8 stored views, which the epochs repeat in turn, and live, where every epoch
shows a new one. Plain training on labels, with new views, stands beside. Same initial weights and same order at one
seed; test accuracy after the last epoch, three seeds. Targets are made once and shared by the seeds; nothing was chosen
on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import limbeck as lb
from limbeck.core.folder import environment
from limbeck.data import Npz, Splits
from limbeck.models import CifarResNet
from limbeck.recipes.base import read_weights
from limbeck.recipes.cifar10 import CIFAR10

IMAGENET = lb.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
AUGMENT = lb.Augment(crop=4, flip=True)
OBJECTIVE = (lb.KL(temperature=4.0, weight=0.9), lb.Label(weight=0.1))
ARMS: dict[str, int | None] = {"1 view": 1, "2 views": 2, "4 views": 4, "8 views": 8, "live": None, "plain": None}


def trained(splits: Splits, teacher: Any, seed: int, epochs: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    student = CifarResNet(depth=8).build((3, 32, 32), 10)
    run = lb.distill(
        student, teacher, train=splits.train, val=splits.val, test=splits.test, augment=AUGMENT,
        objective=(lb.Label(),) if teacher is None else OBJECTIVE, epochs=epochs, batch_size=128, seed=seed,
        optimizer=lb.Optimizer(rate=0.2, weight_decay=5e-4), precision="bfloat16", channels_last=True, progress=False,
    )  # fmt: skip
    scores = run.scores["student"]
    return {"seed": seed, "seconds": round(run.state.seconds, 1), **{k: scores[k] for k in ("accuracy", "nll", "ece")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "views.json")
    given = parser.parse_args()
    splits = Npz(path=str(given.data), normalize=CIFAR10, limit=given.images, val=1000).load()
    model = CifarResNet(depth=56).build((3, 32, 32), 10)
    model.load_state_dict(read_weights(str(given.weights), "--weights"))
    teacher = lb.teacher(model, normalize=IMAGENET)
    arms: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, views in ARMS.items():
            start = time.perf_counter()
            master: Any = {"plain": None}.get(name, teacher)
            if views is not None:
                out = Path(folder) / str(views)
                lb.remember(teacher, splits.train, views=views, augment=AUGMENT, out=out, progress=False)
                master = lb.Targets(out)
            made = time.perf_counter() - start
            runs = [trained(splits, master, seed, given.epochs) for seed in range(given.seeds)]
            accuracy = [100 * run["accuracy"] for run in runs]
            mean, spread = statistics.mean(accuracy), statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
            arms[name] = {"accuracy": round(mean, 2), "sd": round(spread, 2), "seconds_to_remember": round(made, 1)}
            arms[name]["runs"] = runs
            print(f"{name:>8}  {mean:.2f} ± {spread:.2f} %  {runs[0]['seconds']} s a run", flush=True)
    settings = {"images": given.images, "epochs": given.epochs, "seeds": given.seeds}
    told = {"environment": {k: v for k, v in environment().items() if k != "command"}, "settings": settings}
    given.out.write_text(json.dumps({**told, "arms": arms}, indent=2) + "\n")
    print(f"written: {given.out.name}")


if __name__ == "__main__":
    main()
