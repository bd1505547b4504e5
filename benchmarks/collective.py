"""What do peers, generations, an average and several teachers bring, beside one teacher and none?

    python benchmarks/collective.py digits --out runs/digits
    python benchmarks/collective.py cifar10 --data cifar10.npz --out runs/cifar10   # 20,000 images, 5 epochs

One recipe: the same student (of its own initial weights at a seed), steps, order, rate and schedule in every arm, three
seeds with teachers of their own, test scores after the last epoch, nothing chosen. Of peers the first is the student.
A generation is taught by the one before, the first by the plain student's form. Costs are the seconds of an arm by
those of the plain one, teachers not counted. A seed is a run of its own below `--out`; `--jobs` go side by side.
Writes `results/collective-{digits,cifar10}.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import limbeck as lb
from limbeck.core.folder import environment
from limbeck.metrics.intervals import paired
from limbeck.models import PeersOf
from limbeck.recipes import Arm, Recipe, find, run_recipe
from limbeck.teachers.own import SelfTeaching

BOTH = (lb.KL(temperature=2.0, weight=0.5), lb.Label(weight=0.5))
LABELS = (lb.Label(),)
PEERS = (lb.Mutual(), lb.Each(term=lb.Label()))
RISING = (lb.KL(temperature=1.0, weight=lb.schedules.Linear(start=0.0, end=1.0)), lb.Label())


def recipe(given: argparse.Namespace) -> Recipe:
    if given.task == "digits":
        base = find("digits-mutual")
    else:
        base = find("cifar10-conv", [f"data.path={given.data}", f"data.limit={given.images}", "data.val=2000"])
        short = dataclasses.replace(base.training, epochs=given.epochs, precision="float32")
        base = dataclasses.replace(base, training=short, teacher=dataclasses.replace(base.teacher, training=short))
    small, big = base.student, base.teacher.model
    member = Arm(label="One of three teachers", objective=LABELS, student=big, start="fresh")
    arms = {
        "plain": Arm(label="Plain", objective=LABELS),
        "smoothed": Arm(label="Label smoothing 0.1", objective=(lb.Label(smoothing=0.1),)),
        "teacher-one": Arm(label="One teacher", objective=BOTH),
        "three": Arm(label="Three teachers", objective=BOTH, teacher=("one", "two", "more")),
        "average": Arm(label="Its own average", objective=RISING, own=SelfTeaching(decay=0.97)),
        "peers-2": Arm(label="Two peers", objective=PEERS, student=PeersOf(student=small, count=2)),
        "peers-4": Arm(label="Four peers", objective=PEERS, student=PeersOf(student=small, count=4)),
        "first": Arm(label="First generation", objective=BOTH, teacher="plain", start="fresh"),
        "second": Arm(label="Second generation", objective=BOTH, teacher="first", start="fresh"),
        "third": Arm(label="Third generation", objective=BOTH, teacher="second", start="fresh"),
        **dict.fromkeys(("one", "two", "more"), member),
    }
    if unknown := sorted({*(given.arms or ())} - arms.keys()):
        raise SystemExit(f"--arms: there is no {', '.join(unknown)}; there are {', '.join(arms)}")
    arms = {name: arm for name, arm in arms.items() if name == "plain" or name in (given.arms or arms)}
    return dataclasses.replace(base, title="collective", arms=arms, seeds=1, evidence=None, targets=None)


def trained(given: argparse.Namespace, seed: int) -> Mapping[str, Any]:
    """All arms at one seed."""
    asked = dataclasses.replace(recipe(given), seed=seed)
    return run_recipe(asked, given.out / str(seed), say=print, show=False).document["arms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("digits", "cifar10"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", help="beside plain; all when left out")
    parser.add_argument("--jobs", type=int, default=1, help="seeds side by side")
    given = parser.parse_args()
    recipe(given)  # what is refused is refused here, not in each of the processes
    with ProcessPoolExecutor(given.jobs) as pool:
        done = list(pool.map(trained, [given] * given.seeds, range(given.seeds)))
    runs = {name: [run for arms in done for run in arms[name]["runs"]] for name in done[0]}
    accuracy = {name: [run["scores"]["accuracy"] for run in found] for name, found in runs.items()}
    seconds = {name: sum(run["seconds"] for run in found) for name, found in runs.items()}
    told: dict[str, dict[str, Any]] = {}
    for name, found in runs.items():
        told[name] = {
            "label": done[0][name]["label"],
            **{score: [run["scores"][score] for run in found] for score in ("accuracy", "nll", "ece")},
            "cost": seconds[name] / seconds["plain"],
        }
        if name != "plain" and given.seeds > 1:
            told[name]["against plain"] = paired(accuracy[name], accuracy["plain"])._asdict()
    settings = {name: getattr(given, name) for name in ("task", "images", "epochs", "seeds")}
    environ = {k: v for k, v in environment().items() if k != "command"}
    path = Path(__file__).parent / "results" / f"collective-{given.task}.json"
    path.write_text(json.dumps({"environment": environ, "settings": settings, "arms": told}, indent=2) + "\n")


if __name__ == "__main__":
    main()
