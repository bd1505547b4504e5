"""Which objective carries a ResNet-20 furthest in thirty epochs of CIFAR-10?

    python benchmarks/long_run.py remember --weights resnet56.pth --data cifar10.npz --targets targets --val 5000
    python benchmarks/long_run.py train kl --weights … --data … --targets targets --val 5000 --seed 0 --out runs.jsonl

A pretrained ResNet-56 teaches from stored views of every training image (crop and flip); batches of 128, bfloat16,
one-cycle, weight decay 5e-4, gradients clipped at 5, last epoch. With `--val 5000` that many training images are held
out and scored, to choose on; with `--val 1` all but one are trained on, and the test images are scored, once. One call
is one training and adds one line, so that several can go side by side.
"""

from __future__ import annotations

import argparse
import json
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
LABELS = lb.Label(weight=0.1)
STANDARD = (lb.KL(temperature=2.0, weight=9.0, standardize=True), LABELS)
ARMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": ((lb.Label(),), {}),
    "kl": ((lb.KL(temperature=4.0, weight=0.9), LABELS), {}),
    "kl, rate 0.4": ((lb.KL(temperature=4.0, weight=0.9), LABELS), {"rate": 0.4}),
    "kl, decay 1e-4": ((lb.KL(temperature=4.0, weight=0.9), LABELS), {"weight_decay": 1e-4}),
    "kl, hot": ((lb.KL(temperature=8.0, weight=0.9), LABELS), {}),
    "kl, ema": ((lb.KL(temperature=4.0, weight=0.9), LABELS), {"ema": 0.999}),
    "standardised": (STANDARD, {}),
    "standardised, rate 0.1": (STANDARD, {"rate": 0.1}),
    "standardised, rate 0.4": (STANDARD, {"rate": 0.4}),
    "nkd": ((lb.NKD(),), {}),
}
"""By name: the objective, and what differs from the common settings."""


def data(given: argparse.Namespace) -> Splits:
    return Npz(path=str(given.data), normalize=CIFAR10, val=given.val).load()


def teacher(given: argparse.Namespace) -> Any:
    model = CifarResNet(depth=56).build((3, 32, 32), 10)
    model.load_state_dict(read_weights(str(given.weights), "--weights"))
    return lb.teacher(model, normalize=IMAGENET)


def remember(given: argparse.Namespace) -> None:
    master = teacher(given)
    lb.remember(master, data(given).train, views=given.views, augment=AUGMENT, out=given.targets, device=given.device)


def name(model: torch.nn.Module) -> str:
    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else environment()["processor"]


def train(given: argparse.Namespace) -> None:
    objective, differing = ARMS[given.arm]
    splits = data(given)
    rate, decay = differing.get("rate", 0.2), differing.get("weight_decay", 5e-4)
    torch.manual_seed(given.seed)
    student = CifarResNet(depth=20).build((3, 32, 32), 10)
    run = lb.distill(
        student, None if given.arm == "plain" else lb.Targets(given.targets), train=splits.train, val=splits.val,
        test=splits.test if given.val == 1 else None, augment=AUGMENT, objective=objective, epochs=given.epochs,
        batch_size=128, seed=given.seed, optimizer=lb.Optimizer(rate=rate, weight_decay=decay), clip=5.0,
        ema=differing.get("ema"), precision="bfloat16", channels_last=True, device=given.device, progress=False,
    )  # fmt: skip
    scores = run.scores["student"]
    told = {
        "arm": given.arm, "seed": given.seed, "epochs": given.epochs, "scored on": "test" if given.val == 1 else "val",
        "seconds": round(run.state.seconds, 1), **{k: round(scores[k], 5) for k in ("accuracy", "nll", "ece")},
        "machine": {"torch": torch.__version__, "device": name(student)},
    }  # fmt: skip
    with given.out.open("a") as file:  # one short write a run: lines of runs side by side do not mix
        file.write(json.dumps(told) + "\n")
    print(json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(required=True)
    for name, step in {"remember": remember, "train": train}.items():
        asked = steps.add_parser(name)
        asked.set_defaults(step=step)
        asked.add_argument("--weights", type=Path)
        asked.add_argument("--data", type=Path, required=True)
        asked.add_argument("--targets", type=Path, required=True)
        asked.add_argument("--val", type=int, default=5000)
        asked.add_argument("--device", default="auto")
        if name == "remember":
            asked.add_argument("--views", type=int, default=8)
        else:
            asked.add_argument("arm", choices=ARMS)
            asked.add_argument("--seed", type=int, default=0)
            asked.add_argument("--epochs", type=int, default=30)
            asked.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "long_run.jsonl")
    given = parser.parse_args()
    given.step(given)


if __name__ == "__main__":
    main()
