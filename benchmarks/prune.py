"""How much of a ResNet-56 can go? Pruned by limbeck and by Torch-Pruning, to the same share of the operations.

    python benchmarks/prune.py choose   --weights resnet56.pth --data cifar10.npz --targets targets
    python benchmarks/prune.py frontier --weights … --data … --targets …     # 60, 40 and 25 %, 3 epochs, both sides
    python benchmarks/prune.py choose-long --weights … --data … --targets …  # 40 %, 15 epochs, limbeck alone
    python benchmarks/prune.py long     --weights … --data … --targets …

The pretrained CIFAR-10 ResNet-56 of He et al. (93.39 %). Sides:

    limbeck        Prune, batch statistics taken anew, distillation from stored answers: the original's, or their mean
                   with those of the networks given by `--beside`
    labels         the same cut, fine-tuned on labels
    torch-pruning  version 1.6.1, its group norm over all layers together, fine-tuned on labels; of every block the
                   inner channels, since it fails at the padded shortcuts of this network
    torch-pruning, layer   the same, an equal share of every layer

Every side gets the same images, order, epochs, optimizer, schedule and precision, and the last epoch counts. `choose`
holds 5,000 training images out and compares rates there, for one epoch of 20,000 images at 40 %, and `choose-long` for
fifteen of 45,000; `frontier` and `long` take the best of these, or the rate that they are given, train on all images
but one and score the test images once. Images held out of training have been seen by the original, which favours low
rates. A side that is slower or worse is written down as it is. One line a training is added to `results/prune.jsonl`,
and what is there already is not done again; with `--runs` a killed training goes on, too.

Torch-Pruning is no dependency: pip install --no-deps torch-pruning==1.6.1
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import limbeck as lb
from limbeck.compress import Evidence, Prune, apply, plan, reestimate
from limbeck.core.folder import environment
from limbeck.data import Batches, Npz, Source, Splits
from limbeck.evaluation.macs import count_macs
from limbeck.models import CifarResNet
from limbeck.recipes.base import read_weights

IMAGENET = lb.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LABELS = (lb.Label(),)
MATCHED = (lb.KL(temperature=2.0, weight=9.0, standardize=True), lb.Label(weight=0.1))
CHOSEN = Prune(criterion="l2", scope="layer")
RATE = 0.02
"""Of a side for which `choose` has not been run."""
RATES = {1: (0.005, 0.01, 0.02, 0.05, 0.1), 15: (0.02, 0.05, 0.1)}
"""What is tried, by epochs."""
SHARES = (0.6, 0.4, 0.25)
VIEWS = 4
"""Of each image, stored; those of later epochs are the same again."""


def augmented(given: argparse.Namespace) -> lb.Augment:
    return lb.Augment(crop=4, flip=True, cutmix=given.cutmix)


def pretrained(weights: Path) -> nn.Module:
    values = read_weights(str(weights), "--weights")
    blocks = sum(name.startswith("layer1.") and name.endswith("conv1.weight") for name in values)
    model = CifarResNet(depth=6 * blocks + 2).build((3, 32, 32), 10)
    model.load_state_dict(values)
    return model.eval()


def batches(source: Source, size: int, count: int) -> Iterator[Any]:
    return islice(Batches(source, batch_size=size, shuffle=False).epoch(0), count)


def ours(model: nn.Module, train: Source, macs: float, op: Prune = CHOSEN) -> nn.Module:
    """Pruned by limbeck, with batch statistics of its own."""
    evidence = Evidence(batch=next(batches(train, 4, 1)), batches=lambda: batches(train, 128, 8))
    made = plan(model, Prune(criterion=op.criterion, scope=op.scope, macs=macs, minimum=2), evidence)
    cut = apply(model, made)
    return reestimate(cut, batches(train, 128, 8), forward=lambda net, batch: net(batch["x"]))


def theirs(model: nn.Module, train: Source, macs: float, *, together: bool) -> nn.Module:
    """Pruned by Torch-Pruning: the least ratio whose result is small enough."""
    import torch_pruning as tp  # noqa: PLC0415 - only where it is installed

    x = next(batches(train, 2, 1))["x"]
    whole = count_macs(model, x)

    def cut(ratio: float) -> nn.Module:
        net = copy.deepcopy(model)
        tp.pruner.BasePruner(
            net, x, importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=together,
            pruning_ratio=ratio, max_pruning_ratio=0.95, ignored_layers=[net.conv1, net.linear, *joined(net)],
        ).step()  # fmt: skip
        return net

    low, high = 0.0, 0.95
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (low, middle) if count_macs(cut(middle), x) <= macs * whole else (middle, high)
    return cut(high)


def joined(net: nn.Module) -> list[nn.Module]:
    """The layers that end in a sum with a padded shortcut, which Torch-Pruning cannot follow (an index error)."""
    return [layer for name, layer in net.named_modules() if name.endswith("conv2")]


SIDES: dict[str, tuple[Callable[..., nn.Module], bool]] = {
    "limbeck": (ours, True),
    "labels": (ours, False),
    "torch-pruning": (partial(theirs, together=True), False),
    "torch-pruning, layer": (partial(theirs, together=False), False),
}
"""By name: how it prunes, and whether the original teaches."""


MADE: dict[tuple[Any, ...], tuple[nn.Module, float]] = {}


def pruned(side: str, macs: float, op: Prune, original: nn.Module, train: Source) -> tuple[nn.Module, float]:
    """The cut network, and the seconds that it took; the same cut is made once."""
    prune = SIDES[side][0]
    key = (prune, macs, op)
    if key not in MADE:
        started = time.perf_counter()
        cut = prune(original, train, macs, op) if prune is ours else prune(original, train, macs)
        MADE[key] = cut, time.perf_counter() - started
    return copy.deepcopy(MADE[key][0]), MADE[key][1]


def tuned(
    side: str, macs: float, epochs: int, given: argparse.Namespace, *, rate: float, op: Prune = CHOSEN, on: str
) -> dict[str, Any]:
    """One pruning and its training; "val" or "test" says what it is scored on."""
    splits: Splits = Npz(path=str(given.data), normalize=IMAGENET, val=5000 if on == "val" else 1).load()
    taught = SIDES[side][1]
    original, train = pretrained(given.weights), splits.train
    model, planned = pruned(side, macs, op, original, train)
    x = next(batches(train, 2, 1))["x"]
    few = splits.val if on == "val" else train.subset(torch.arange(5000))
    train = train.subset(torch.arange(20_000)) if epochs == 1 else train
    before = lb.evaluate(model, few)["accuracy"]
    beside = [path.stem for path in given.beside] if taught else []
    called = (side, macs, epochs, rate, on, given.seed, given.views, given.cutmix, *beside)
    run = lb.distill(
        model, lb.Targets(given.targets) if taught else None, train=train, val=few,
        test=splits.test if on == "test" else None, augment=augmented(given), objective=MATCHED if taught else LABELS,
        epochs=epochs, batch_size=128, seed=given.seed, optimizer=lb.Optimizer(rate=rate), clip=5.0,
        precision="auto", channels_last=True, compile=given.compile, progress=False,
        out=given.runs / "-".join(map(str, called)) if given.runs else None,
    )  # fmt: skip
    scores, model = run.scores["student"], model.cpu()
    return {
        "side": side, "macs": macs, "epochs": epochs, "seed": given.seed, "scored on": on, "rate": rate,
        "views": given.views if taught else None, "cutmix": given.cutmix, "beside": beside,
        "criterion": f"{op.criterion}, {op.scope}" if SIDES[side][0] is ours else "group norm",
        "kept": {"macs": count_macs(model, x) / count_macs(original, x),
                 "parameters": parameters(model) / parameters(original)},
        "before training": before, **{name: scores[name] for name in ("accuracy", "nll", "ece")},
        "seconds": {"pruning": round(planned, 1), "training": round(run.state.seconds, 1)},
    }  # fmt: skip


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def remembered(given: argparse.Namespace) -> None:
    """The original's answers, or their mean with those beside it, once for everything."""
    train = Npz(path=str(given.data), normalize=IMAGENET, val=1).load().train
    models = [pretrained(path) for path in (given.weights, *given.beside)]
    teacher = lb.teacher(models if given.beside else models[0])
    lb.remember(teacher, train, views=given.views, augment=augmented(given), out=given.targets)


def chosen(side: str, epochs: int, said: list[dict[str, Any]]) -> float:
    """The rate with which this side did best on validation, in as long a training where there is one."""
    lines = [line for line in said if line["scored on"] == "val" and line["side"] == side]
    alike = [line for line in lines if line["epochs"] == epochs] or lines
    tried = {line["rate"]: line["accuracy"] for line in alike}
    return max(tried, key=lambda rate: tried[rate]) if tried else RATE


def trials(given: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Of the step that was asked for: side, share, epochs, and what differs."""
    asked = [{"rate": rate} for rate in given.rates or ()] or [{}]
    if given.step == "long":
        for rate in asked:
            yield "limbeck", 0.4, 15, {**rate, "on": "test"}
    elif given.step == "frontier":
        for macs in SHARES:
            for side in SIDES:
                for rate in asked:
                    yield side, macs, 3, {**rate, "on": "test"}
    elif given.step == "choose-long":
        for rate in given.rates or RATES[15]:
            yield "limbeck", 0.4, 15, {"rate": rate, "on": "val"}
    else:
        for side in SIDES:
            for rate in given.rates or RATES[1]:
                yield side, 0.4, 1, {"rate": rate, "on": "val"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("choose", "choose-long", "frontier", "long"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--targets", type=Path, required=True, help="a folder for the original's answers")
    parser.add_argument("--views", type=int, default=VIEWS)
    parser.add_argument(
        "--cutmix", type=float, default=0.0, help="Beta parameter of each image's own share; for long and frontier"
    )
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], help="weights of other ResNets that teach with the original"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rates", type=float, nargs="+", help="what choosing tries, or the rest takes instead of what was chosen"
    )
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--only", choices=SIDES, help="one side")
    parser.add_argument("--runs", type=Path, help="a folder for the trainings' own, so that a killed one goes on")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "prune.jsonl")
    given = parser.parse_args()
    if given.cutmix and given.step.startswith("choose"):
        parser.error("--cutmix: stored answers to mixed images are for all training images; choosing leaves some out")
    if given.only is None or SIDES[given.only][1]:
        remembered(given)
    said = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {line["asked"] for line in said}
    for side, macs, epochs, differing in trials(given):
        seen = "" if given.views == VIEWS else f", {given.views} views"
        seen += f", cutmix {given.cutmix:g}" if given.cutmix else ""
        seen += "".join(f", {path.stem} teaches too" for path in given.beside)
        asked = f"{given.step}: {side}, {macs:g}, {epochs} epochs, {differing}, seed {given.seed}{seen}"
        if asked in done or (given.only and side != given.only):
            continue
        told = {"asked": asked, **tuned(side, macs, epochs, given, **{"rate": chosen(side, epochs, said), **differing})}
        chip = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        told["machine"] = {**{k: environment()[k] for k in ("torch", "processor", "threads")}, "device": chip}
        with given.out.open("a") as file:
            file.write(json.dumps(told) + "\n")
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
