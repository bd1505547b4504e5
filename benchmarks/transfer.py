"""What does a student gain from a teacher's weights, before and beside its answers?

    python benchmarks/transfer.py images --weights resnet56.pth --data cifar10.npz    # results/transfer-images.json
    python benchmarks/transfer.py lstm --data sst2                                    # results/transfer-lstm.json
    python benchmarks/transfer.py encoder --data sst2                                 # results/transfer-encoder.json

`images`: a pretrained ResNet-56 and students shrunk to a quarter of its multiply-accumulates, on 20,000 images of
CIFAR-10 (crop and flip) for 5 epochs. `lstm` and `encoder`: a classifier trained on SST-2, and students of half its
width.
Every arm trains the same network on the same data with the same settings and as many steps:

- random: fresh weights, labels alone
- inherited: the teacher's weights (`inherit`), labels alone
- inherited + distilled: and the teacher's answers
- staged hints: fresh weights; layers first, then answers (Romero et al. 2015)
- assistant chain: fresh weights; the answers of a network half way, itself taught by the teacher (Mirzadeh et al.
  2020), whose own training comes on top

Steps until validation accuracy reaches the threshold are counted every few steps; test accuracy is of the last step.
With several `--rates`, the random and the inherited start are first trained at each, at a seed of their own, and the
one that ends highest on validation is used by every arm with that start. Seed by seed, all arms in turn; differences
are paired over seeds. Nothing was chosen on the test data. What is in the file already is not done again.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import limbeck as lb
from limbeck.core.folder import environment
from limbeck.core.still import undisturbed
from limbeck.data import Batches, Npz, Source, as_source
from limbeck.data import split as hold_out
from limbeck.models import CifarResNet
from limbeck.recipes.base import read_weights

IMAGENET = lb.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ANSWERS = (lb.KL(temperature=2.0, weight=0.5), lb.Label(weight=0.5))
WORDS, LENGTH = 8000, 40
TUNING_SEED = 1000
ALIKE = ("task", "epochs", "teacher_epochs", "images", "val", "tests", "threshold", "width", "criterion")
"""The settings that all runs of a file have in common."""


class Task(NamedTuple):
    """What is learnt, by whom, and how."""

    teacher: nn.Module
    train: Source
    val: Source
    test: Source
    shrink: dict[str, Any]
    assistant: dict[str, Any]
    hints: tuple[str, ...]
    settings: dict[str, Any]


class Watch:
    """Counts a student's training steps, and notes when its validation accuracy first reaches a threshold."""

    def __init__(self, student: nn.Module, val: Source, threshold: float, every: int) -> None:
        self.steps, self.reached, self.curve = 0, None, []  # type: ignore[var-annotated]
        self.batches = Batches(val, batch_size=min(500, len(val)), shuffle=False)
        self.threshold, self.every = threshold, every
        self.handle = student.register_forward_pre_hook(self._before)

    def _before(self, student: nn.Module, _args: Any) -> None:
        if student.training and torch.is_grad_enabled():
            if self.steps % self.every == 0:
                self.look(student)
            self.steps += 1

    def look(self, student: nn.Module) -> None:
        """Measure now."""
        device, right, total = next(student.parameters()).device, 0, 0
        with undisturbed(student):
            for batch in self.batches.epoch(0):
                right += int((student(batch["x"].to(device)).argmax(-1).cpu() == batch["y"]).sum())
                total += len(batch["y"])
        self.curve.append((self.steps, round(right / total, 5)))
        if self.reached is None and right / total >= self.threshold:
            self.reached = self.steps


def at_rate(task: Task, rate: float) -> Task:
    """The same, trained at this rate."""
    return task._replace(settings=task.settings | {"optimizer": replace(task.settings["optimizer"], rate=rate)})


def start(arm: str) -> str:
    """What the students of an arm begin with."""
    return "inherited" if arm.startswith("inherited") else "random"


def train(task: Task, student: nn.Module, teacher: Any, objective: Any, *, seed: int, epochs: int, test: bool) -> Any:
    return lb.distill(
        student, teacher, train=task.train, val=task.val, test=task.test if test else None, objective=objective,
        epochs=epochs, seed=seed, progress=False, **task.settings,
    )  # fmt: skip


def random_start(task: Task, student: nn.Module, seed: int, epochs: int) -> Any:
    return train(task, student, None, (lb.Label(),), seed=seed, epochs=epochs, test=True)


def inherited(task: Task, student: nn.Module, seed: int, epochs: int) -> Any:
    return train(task, student, None, (lb.Label(),), seed=seed, epochs=epochs, test=True)


def distilled(task: Task, student: nn.Module, seed: int, epochs: int) -> Any:
    return train(task, student, task.teacher, ANSWERS, seed=seed, epochs=epochs, test=True)


def staged(task: Task, student: nn.Module, seed: int, epochs: int) -> Any:
    first = max(1, round(0.3 * epochs))
    hints = tuple(lb.Hint(student=path, teacher=path) for path in task.hints)
    train(task, student, task.teacher, hints, seed=seed, epochs=first, test=False)
    return train(task, student, task.teacher, ANSWERS, seed=seed, epochs=max(1, epochs - first), test=True)


def chained(task: Task, student: nn.Module, seed: int, epochs: int) -> Any:
    assistant = lb.transfer.shrink(task.teacher, seed=seed, **task.assistant)
    train(task, assistant, task.teacher, ANSWERS, seed=seed, epochs=epochs, test=False)
    return train(task, student, assistant, ANSWERS, seed=seed, epochs=epochs, test=True)


ARMS: dict[str, Callable[..., Any]] = {
    "random": random_start,
    "inherited": inherited,
    "inherited + distilled": distilled,
    "staged hints": staged,
    "assistant chain": chained,
}


def images(given: argparse.Namespace) -> Task:
    splits = Npz(path=str(given.data), normalize=IMAGENET, limit=given.images, val=given.val).load()
    model = CifarResNet(depth=56).build((3, 32, 32), 10)
    model.load_state_dict(read_weights(str(given.weights), "--weights"))
    settings = {
        "augment": lb.Augment(crop=4, flip=True), "batch_size": 128, "clip": 5.0, "precision": given.precision,
        "optimizer": lb.Optimizer(rate=0.1, weight_decay=5e-4), "channels_last": True,
        "device": given.device,
    }  # fmt: skip
    hints = ("layer1", "layer2", "layer3")
    test = splits.test.subset(torch.arange(min(given.tests, len(splits.test))))
    return Task(model, splits.train, splits.val, test, {"macs": 0.25}, {"macs": 0.5}, hints, settings)


class Sentences(nn.Module):
    """An embedding of words and positions, layers, and the mean over words."""

    def __init__(self, kind: str, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width, padding_idx=0)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        if kind == "lstm":
            self.body: nn.Module = nn.LSTM(width, width, batch_first=True)
        else:
            layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True)
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 2] of word numbers [B, T]."""
        found = self.body(self.drop(self.embed(x) + self.position))
        found = found[0] if isinstance(found, tuple) else found
        known = (x > 0).unsqueeze(-1)
        return self.head(self.drop((found * known).sum(1) / known.sum(1).clamp_min(1)))


def words(folder: Path, limit: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Sentences of SST-2 as numbers of the words that are most frequent in training."""
    tables = {}
    for part in ("train", "dev", "test"):
        with (folder / f"{part}.tsv").open(encoding="utf-8", newline="") as file:
            tables[part] = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    tables["train"] = tables["train"][:limit]
    counts = Counter(word for sentence, _ in tables["train"] for word in sentence.split())
    known = {word: at + 2 for at, (word, _) in enumerate(counts.most_common(WORDS - 2))}
    found = {}
    for part, rows in tables.items():
        x = torch.zeros(len(rows), LENGTH, dtype=torch.long)
        for at, (sentence, _) in enumerate(rows):
            numbers = [known.get(word, 1) for word in sentence.split()[:LENGTH]]
            x[at, : len(numbers)] = torch.tensor(numbers)
        found[part] = (x, torch.tensor([int(label) for _, label in rows]))
    return found


def sentences(given: argparse.Namespace) -> Task:
    parts = words(given.data, given.images)
    settings = {
        "batch_size": 32, "precision": given.precision, "device": given.device,
        "optimizer": lb.Optimizer(name="AdamW", rate=1e-3, weight_decay=0.01),
    }  # fmt: skip
    source, val = hold_out(as_source(parts["train"]), 0.1)
    torch.manual_seed(0)
    teacher = Sentences(given.task)
    half: dict[str, Any] = {"width": 0.5, "example": parts["train"][0][:4]}
    task = Task(teacher, source, val, as_source(parts["dev"]), half, half | {"width": 0.75}, ("embed",), settings)
    train(task, teacher, None, (lb.Label(),), seed=0, epochs=given.teacher_epochs, test=False)
    return task


def one(task: Task, arm: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One student."""
    student = lb.transfer.shrink(task.teacher, seed=seed, **task.shrink)
    share = 0.0
    if start(arm) == "inherited":
        how = {"data": task.train, "width": given.width, "criterion": given.criterion}
        share = lb.transfer.inherit(student, task.teacher, **how).share
    watch = Watch(student, task.val, given.threshold, given.every)
    begun = time.perf_counter()
    run = ARMS[arm](task, student, seed, given.epochs)
    watch.handle.remove()
    watch.look(student)
    scores = run.scores["student"]
    return {
        "seed": seed, "rate": task.settings["optimizer"].rate, "inherited": round(share, 4),
        "steps_to_threshold": watch.reached, "steps": watch.steps,
        "start": watch.curve[0][1], "curve": watch.curve, "seconds": round(time.perf_counter() - begun, 1),
        **{k: round(scores[k], 5) for k in ("accuracy", "nll", "ece")},
    }  # fmt: skip


def tuned(task: Task, given: argparse.Namespace) -> tuple[dict[str, Task], dict[str, dict[float, float]]]:
    """By start: the task at the rate that did best on validation, and what each rate did there."""
    tasks, tried = {}, {}
    for arm in ("random", "inherited"):
        found = {}
        for rate in given.rates if len(given.rates) > 1 else ():
            found[rate] = one(at_rate(task, rate)._replace(test=task.val), arm, TUNING_SEED, given)["accuracy"]
            print(f"rate {rate:g}  {arm:>22}  {100 * found[rate]:.2f} % on validation", flush=True)
        best = max(found, key=lambda rate: found[rate]) if found else given.chosen.get(arm, (given.rates or [None])[0])
        tasks[arm], tried[arm] = task if best is None else at_rate(task, best), found
    return tasks, tried


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means, spreads, and differences to the random start paired over seeds."""
    found, random = {}, {run["seed"]: run for run in runs["random"]}
    for arm, mine in runs.items():
        if not mine:
            continue
        accuracy = [100 * run["accuracy"] for run in mine]
        paired = [100 * (run["accuracy"] - random[run["seed"]]["accuracy"]) for run in mine]
        steps = [run["steps_to_threshold"] for run in mine]
        reached = [number for number in steps if number is not None]
        found[arm] = {
            "accuracy": round(statistics.mean(accuracy), 2),
            "sd": round(statistics.stdev(accuracy), 2) if len(accuracy) > 1 else 0.0,
            "over_random": round(statistics.mean(paired), 2),
            "over_random_sd": round(statistics.stdev(paired), 2) if len(paired) > 1 else 0.0,
            "steps_to_threshold": round(statistics.mean(reached), 1) if len(reached) == len(steps) else None,
            "reached": f"{len(reached)} of {len(steps)}",
        }
        if all("start" in run for run in mine):
            found[arm]["start"] = round(100 * statistics.mean(run["start"] for run in mine), 2)
    return found


def earlier(held: dict[str, Any], here: dict[str, Any]) -> list[dict[str, Any]]:
    """The machines that other runs of the file were made on."""
    found = [*held.get("earlier", []), *([held["environment"]] if held else [])]
    return [each for at, each in enumerate(found) if each != here and each not in found[:at]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["images", "lstm", "encoder"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=20_000, help="training samples")
    parser.add_argument("--val", type=int, default=2000, help="of which held out (images)")
    parser.add_argument("--tests", type=int, default=10_000, help="test images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--every", type=int, default=20, help="steps between looks at the validation samples")
    parser.add_argument("--rates", type=float, nargs="+", default=[], help="one, or several to choose from")
    parser.add_argument("--chosen", type=json.loads, default={}, help="rates by start that were chosen before, as JSON")
    parser.add_argument("--width", default="importance", choices=["importance", "first", "project"])
    parser.add_argument("--criterion", default="l2")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or Path(__file__).parent / "results" / f"transfer-{given.task}.json"
    task = images(given) if given.task == "images" else sentences(given)
    arms = [arm for arm in ARMS if arm in {"random", *given.arms}]
    held = json.loads(out.read_text()) if out.exists() else {}
    runs: dict[str, list[dict[str, Any]]] = {arm: held.get("runs", {}).get(arm, []) for arm in arms}
    before = copy.deepcopy(task.teacher.state_dict())
    made = lb.transfer.outline(lb.transfer.shrink(task.teacher, **task.shrink))
    teacher = lb.evaluate(task.teacher, task.test)["accuracy"]
    print(f"teacher {100 * teacher:.2f} %; student: {str(made).splitlines()[0]}", flush=True)
    if held and abs(held["teacher_accuracy"] - 100 * teacher) > 0.006:
        raise SystemExit(f"{out} is of another teacher ({held['teacher_accuracy']} %): give another --out")
    others = {k: v for k, v in held.get("settings", {}).items() if k in ALIKE and v != getattr(given, k)}
    if others:
        raise SystemExit(f"{out} was made with {others}: give the same, or another --out")
    tasks, tried = tuned(task, given)
    for seed, arm in [(seed, arm) for seed in given.seeds for arm in arms]:
        if any(run["seed"] == seed for run in runs[arm]):
            continue
        last = one(tasks[start(arm)], arm, seed, given)
        runs[arm] = sorted([*runs[arm], last], key=lambda run: run["seed"])
        print(f"seed {seed}  {arm:>22}  {100 * last['accuracy']:.2f} %  {last['steps_to_threshold']} steps to "
              f"{given.threshold:.0%} of {last['steps']}  {last['seconds']} s", flush=True)  # fmt: skip
        assert all(torch.equal(v.cpu(), before[k].cpu()) for k, v in task.teacher.state_dict().items())
        here = {k: v for k, v in environment(given.device).items() if k not in ("command", "started")}
        told = {
            "environment": here,
            **({"earlier": elsewhere} if (elsewhere := earlier(held, here)) else {}),
            **({"note": held["note"]} if "note" in held else {}),
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()
                         if k not in ("out", "data", "weights")},
            "rates_on_validation": tried if any(tried.values()) else held.get("rates_on_validation", {}),
            "teacher_accuracy": round(100 * teacher, 2),
            "student": {"parameters": made.plan.after.parameters, "macs": made.plan.after.macs, "width": made.width,
                        "parameters_of_teacher": made.plan.before.parameters, "macs_of_teacher": made.plan.before.macs},
            "arms": summary(runs), "runs": runs,
        }  # fmt: skip
        whole = out.with_suffix(".part")
        whole.write_text(json.dumps(told, indent=2) + "\n")
        whole.replace(out)
    print(json.dumps(summary(runs), indent=2))


if __name__ == "__main__":
    main()
