"""Is `objective="auto"` never worse than plain training, and how much of a hand-picked gain does it find?

    python benchmarks/auto.py                                    # digits: minutes
    python benchmarks/auto.py --set cifar10 --data ../shared/data   # an hour or two; the pretrained ResNet-56
    python benchmarks/auto.py --only tiny --seeds 0 1 2

Students from too small to ample, many labels and few. Digits: dense students of 4, 16 and 64 units, ten epochs, all
labels or 60 of them (the others stay, without a label). CIFAR-10: students of two convolutions, 20,000 images for five
epochs, or 2,000 for twenty. At one seed everything has the same split, initial weights and order. The teacher's answers
are stored once for a seed. Hand-picked are all candidates of auto and some more, each at full length; the best of them
is picked by its mean on test, which favours it. Scores are test accuracy after the last epoch; auto chooses on
validation. Writes benchmarks/results/auto-<set>.json, and goes on from it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import limbeck as lb
from limbeck.auto import defaults
from limbeck.choosing import choosing, shortened, steps_of
from limbeck.core.folder import RunFolder, environment
from limbeck.data import Digits, Npz, Splits
from limbeck.evaluation.study import compare
from limbeck.job import Job
from limbeck.member import train_member
from limbeck.models import MLP, CifarResNet, Conv
from limbeck.recipes.base import read_weights
from limbeck.recipes.build import shape_of
from limbeck.recipes.cifar10 import CIFAR10

RESULTS = Path(__file__).parent / "results"
IMAGENET = lb.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HAND_PICKED = {
    **defaults(),
    "kl-1": (lb.KL(temperature=1.0, weight=0.5), lb.Label(weight=0.5)),
    "kl-2-heavy": (lb.KL(temperature=2.0, weight=0.9), lb.Label(weight=0.1)),
    "kl-4-light": (lb.KL(temperature=4.0, weight=0.5), lb.Label(weight=0.5)),
    "kl-4": (lb.KL(temperature=4.0, weight=0.9), lb.Label(weight=0.1)),
    "dkd": (lb.DKD(temperature=2.0, alpha=1.0, beta=2.0, weight=0.5), lb.Label(weight=0.5)),
    "standardized-light": (lb.KL(temperature=2.0, weight=2.0, standardize=True), lb.Label(weight=0.5)),
    "standardized-heavy": (lb.KL(temperature=2.0, weight=9.0, standardize=True), lb.Label(weight=0.1)),
    "dist": (lb.DIST(temperature=1.0, weight=1.0), lb.Label(weight=0.5)),
}


@dataclass(frozen=True)
class Setting:
    """A student, its data by seed, and how it is trained."""

    student: Any
    data: Callable[[int, Path | None], Splits]
    teacher: Callable[[int, Path | None], Any]
    training: lb.Training
    store: str
    """Where the teacher's answers are kept: settings and seeds with the same inputs share them. `{}` is the seed."""
    augment: lb.Augment | None = None
    views: int = 1


@cache
def digits_teacher(seed: int, data: Path | None) -> Any:  # noqa: ARG001 - all teachers are made alike
    """A wide network that knows all training labels of this split."""
    splits = Digits(val_share=0.2, seed=seed).load()
    torch.manual_seed(1000 + seed)
    model = MLP(hidden=(256, 256)).build((1, 8, 8), 10)
    how = {"epochs": 30, "batch_size": 60, "seed": seed, "progress": False}
    lb.distill(model, None, train=splits.train, val=splits.val, **how)
    return lb.teacher(model)


def digits() -> Iterator[tuple[str, Setting]]:
    training = lb.Training(epochs=10, batch_size=60, optimizer=lb.Optimizer(rate=0.1))
    for size, units in (("tiny", 4), ("small", 16), ("ample", 64)):
        for word, labelled in (("many", None), ("few", 60)):

            def data(seed: int, _: Path | None, labelled: int | None = labelled) -> Splits:
                return Digits(val_share=0.2, seed=seed, labelled=labelled).load()

            yield f"{size}-{word}", Setting(MLP(hidden=(units,)), data, digits_teacher, training, "{}")


@cache
def cifar_teacher(seed: int, data: Path | None) -> Any:  # noqa: ARG001 - one for all seeds
    """The pretrained ResNet-56."""
    if data is None:
        raise SystemExit("cifar10 needs --data, the folder with cifar10.npz and teachers/")
    model = CifarResNet(depth=56).build((3, 32, 32), 10)
    (path,) = (data / "teachers").glob("*resnet56*")
    model.load_state_dict(read_weights(str(path), "teacher"))
    return lb.teacher(model, normalize=IMAGENET)


def cifar10() -> Iterator[tuple[str, Setting]]:
    for size, channels in (("tiny", (4, 8)), ("small", (16, 32)), ("ample", (32, 64))):
        for word, images, epochs in (("many", 20_000, 5), ("few", 2_000, 20)):

            def data(_: int, folder: Path | None, images: int = images) -> Splits:
                return Npz(
                    path=str((folder or Path()) / "cifar10.npz"), normalize=CIFAR10, limit=images, val=2000
                ).load()

            training = lb.Training(epochs=epochs, batch_size=100, optimizer=lb.Optimizer(rate=0.1),
                                   precision="auto", channels_last=True)  # fmt: skip
            yield f"{size}-{word}", Setting(Conv(channels=channels), data, cifar_teacher, training, word,
                                            lb.Augment(flip=True), 2)  # fmt: skip


SETS = {"digits": digits, "cifar10": cifar10}


def trained(job: Job, student: nn.Module) -> dict[str, Any]:
    """A training from this start, and what it scored on test."""
    started = time.perf_counter()
    with RunFolder(None, {}) as folder:
        result = train_member(replace(job, student=copy.deepcopy(student)), folder)
    scores = {name: round(float(result.scores[name]), 5) for name in ("accuracy", "nll")}
    return {**scores, "steps": result.state.step, "seconds": round(time.perf_counter() - started, 3)}


def chosen(job: Job, student: nn.Module) -> dict[str, Any]:
    """The same with the objective chosen; steps and seconds are those of all trials and the training."""
    started = time.perf_counter()
    job = replace(job, student=copy.deepcopy(student))
    with RunFolder(None, {}) as folder, choosing(lb.Auto(), job, folder) as choice:
        found = trained(choice.job, choice.job.student)
    steps = found["steps"] + sum(trial["steps"] for trial in choice.trials)
    seconds = round(time.perf_counter() - started, 3)
    trials = [{k: t[k] for k in ("candidate", "round", "steps", "accuracy", "nll", "kept")} for t in choice.trials]
    return {**found, "steps": steps, "seconds": seconds, "chose": choice.name, "trials": trials}


def cell(setting: Setting, splits: Splits, teacher: Any, seed: int, home: Path, names: Sequence[str]) -> dict[str, Any]:
    """Plain, auto and the hand-picked objectives at one seed."""
    started = time.perf_counter()
    lb.remember(teacher, splits.train, out=home, views=setting.views, augment=setting.augment, progress=False)
    targets = lb.Targets(home)  # without the teacher, who would answer all test images for every arm, to no use here
    stored = time.perf_counter() - started
    torch.manual_seed(seed)
    student = setting.student.build(shape_of(splits.train), 10)
    job = Job(student, targets, splits.train, splits.val, splits.test, (lb.Label(),), setting.training,
              augment=setting.augment, seed=seed, show=False)  # fmt: skip
    full = steps_of(job)
    made = {"plain": trained(shortened(job, (lb.Label(),), full), student), "auto": chosen(job, student)}
    for name in names:
        made[name] = trained(shortened(job, HAND_PICKED[name], full), student)
    return {"seed": seed, "steps": full, "seconds_to_store": round(stored, 2), "arms": made}


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """What auto gains beside plain, of how much, and at what cost."""

    def of(name: str, what: str = "accuracy") -> list[float]:
        return [float(cell["arms"][name][what]) for cell in cells]

    points = {name: round(100 * statistics.mean(a - b for a, b in zip(of(name), of("plain"), strict=True)), 2)
              for name in HAND_PICKED if all(name in cell["arms"] for cell in cells)}  # fmt: skip
    best = max(points, key=lambda name: points[name])
    row = compare("auto", "plain", "accuracy", of("auto"), of("plain"), lower_is_better=False)
    gain, low, high = (None if row[end] is None else round(100 * row[end], 2) for end in ("mean", "low", "high"))
    steps = [a / b for a, b in zip(of("auto", "steps"), of("plain", "steps"), strict=True)]
    return {
        "plain": round(100 * statistics.mean(of("plain")), 2),
        "auto": round(100 * statistics.mean(of("auto")), 2),
        "gain": gain,
        "low": low,
        "high": high,
        "best": best,
        "best_gain": points[best],
        "share": round(gain / points[best], 2) if gain is not None and points[best] > 0 else None,
        "hand_picked": points,
        "cost_steps": round(statistics.mean(steps), 3),
        "cost_seconds": round(sum(of("auto", "seconds")) / sum(of("plain", "seconds")), 2),
        "chose": [cell["arms"]["auto"]["chose"] for cell in cells],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS, default="digits")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="settings whose name holds this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--device", default="auto", help="for students; the teacher answers where it is fastest")
    parser.add_argument("--picked", nargs="+", choices=HAND_PICKED, default=list(HAND_PICKED))
    given = parser.parse_args()
    out = given.out or RESULTS / f"auto-{given.set}.json"
    held = json.loads(out.read_text())["settings"] if out.exists() else {}
    asked = [(seed, *each) for seed in given.seeds for each in SETS[given.set]() if given.only in each[0]]
    with tempfile.TemporaryDirectory() as folder:
        for seed, name, setting in asked:
            cells = held.setdefault(name, {"cells": []})["cells"]
            if any(cell["seed"] == seed for cell in cells):
                continue
            home = Path(folder) / setting.store.format(seed)
            setting = replace(setting, training=replace(setting.training, device=given.device))  # noqa: PLW2901
            teacher = setting.teacher(seed, given.data)
            cells.append(cell(setting, setting.data(seed, given.data), teacher, seed, home, given.picked))
            held[name]["summary"] = told = summary(cells)
            print(f"{name:>12}  seed {seed}  plain {told['plain']}  auto {told['gain']:+} ({told['chose'][-1]})  best "
                  f"{told['best']} {told['best_gain']:+}  cost {told['cost_steps']}", flush=True)  # fmt: skip
            about = {k: v for k, v in environment().items() if k != "command"}
            out.write_text(json.dumps({"environment": about, "settings": held}, indent=1) + "\n")
    print(f"written: {out.name}")


if __name__ == "__main__":
    main()
