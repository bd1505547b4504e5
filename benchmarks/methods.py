"""Which methods help? Every objective alone beside the labels, with plain training and a tuned plain KD as baselines.

    python benchmarks/methods.py digits                          # minutes; a teacher that is trained here
    python benchmarks/methods.py cifar10 --data ../shared/data   # hours; the pretrained ResNet-56
    python benchmarks/methods.py cifar10 --data ../shared/data --phase test --part 1/2   # every second run
    python benchmarks/methods.py cifar10 --data ../shared/data --only kd,dkd             # some arms

Same student, same initial weights, same data order, same number of steps, scores on the test split after the last
epoch, three seeds. Every method has the labels at weight 1 beside it and its own published weight, untuned. The rate
that all arms share is tuned for the plain student, and plain KD is tuned as well (temperature and share), on validation
at a seed of its own. A run is a line in benchmarks/results/methods-<data>.jsonl, with its validation score after each
epoch; runs that are there are not run again.

The teacher's answers are computed once for each image as it is shown (as it is, or mirrored) and looked up by the bytes
of the image, so a look-up can't be wrong; they are kept in float16.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import limbeck as lb
from limbeck.core.taps import Reader
from limbeck.data import Digits, Npz
from limbeck.models import CifarResNet, Conv
from limbeck.recipes.base import read_weights

RESULTS = Path(__file__).parent / "results"
CIFAR10 = lb.Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
IMAGENET = lb.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
Arm = Callable[["Task"], tuple[Any, ...]]


@dataclass(frozen=True)
class Task:
    """A student, a teacher, data, and the layers that methods on inner layers compare (student, teacher)."""

    name: str
    data: Any
    student: Any
    maps: tuple[tuple[str, str], ...]
    before: tuple[str, str]
    vector: tuple[str, str]
    settings: dict[str, Any]
    teacher: Callable[[Task, Path | None], Any]

    @property
    def last(self) -> dict[str, str]:
        return {"student": self.maps[-1][0], "teacher": self.maps[-1][1]}

    @property
    def pooled(self) -> dict[str, str]:
        return {"student": self.vector[0], "teacher": self.vector[1]}

    @property
    def unrectified(self) -> dict[str, str]:
        return {"student": self.before[0], "teacher": self.before[1]}

    def side(self, which: int) -> tuple[str, ...]:
        return tuple(pair[which] for pair in self.maps)

    def ends(self, which: int) -> tuple[str, str]:
        return self.maps[0][which], self.maps[-1][which]

    def over_maps(self, term: type, **settings: Any) -> tuple[Any, ...]:
        return tuple(term(student=s, teacher=t, **settings) for s, t in self.maps)


class Remembered:
    """A teacher's answers by the bytes of each image: computed when first asked for, kept in float16."""

    def __init__(self, model: nn.Module, layers: Sequence[str], normalize: Any, half: torch.dtype | None) -> None:
        self.reader = Reader(model.eval(), taps=layers)
        self.normalize, self.half = normalize, half
        self.slots: dict[bytes, int] = {}
        self.store: dict[str, list[Tensor]] = {}

    def teacher(self, names: frozenset[str]) -> Any:
        """The teacher of one run, which looks up only what that run reads."""
        return lb.teacher(lambda x: self.look_up(x, names | {"logits"}), normalize=self.normalize)

    def look_up(self, x: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
        pixels = x.permute(0, 2, 3, 1).contiguous().numpy()
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels]
        new = list({key: i for i, key in enumerate(keys) if key not in self.slots}.values())
        if new:
            with torch.no_grad(), torch.autocast("cpu", self.half, enabled=self.half is not None):
                signal = self.reader({"x": x[new]})
            for name, value in signal.items():
                self.store.setdefault(name, []).extend(value.to(torch.float16).unbind(0))
            self.slots |= {keys[i]: len(self.slots) + at for at, i in enumerate(new)}
        index = [self.slots[key] for key in keys]
        return {name: torch.stack([self.store[name][i] for i in index]).float() for name in names}


def layers_of(task: Task) -> list[str]:
    return sorted({t for _, t in task.maps} | {task.before[1], task.vector[1]})


def digits_teacher(task: Task, data: Path | None) -> Any:  # noqa: ARG001 - both teachers are made alike
    """A network of two convolutions that knows all training labels; its students get 300 of them."""
    splits = task.data.load()
    torch.manual_seed(0)
    model = Conv(channels=(32, 64)).build((1, 8, 8), 10)
    lb.distill(model, None, train=splits.train, val=splits.val, epochs=30, batch_size=60, progress=False)
    return Remembered(model, layers_of(task), None, None)


def cifar_teacher(task: Task, data: Path | None) -> Any:
    """The pretrained ResNet-56 (93.39 % on the test split), at its best on this chip."""
    if data is None:
        raise SystemExit("cifar10 needs --data, the folder with cifar10.npz and teachers/")
    model = CifarResNet(depth=56).build((3, 32, 32), 10)
    (path,) = (data / "teachers").glob("*resnet56*")
    model.load_state_dict(read_weights(str(path), "teacher"))
    model = model.to(memory_format=torch.channels_last)
    return Remembered(model, layers_of(task), IMAGENET, torch.bfloat16)


def digits() -> Task:
    return Task(
        name="digits",
        data=Digits(),
        student=Conv(channels=(4, 8)),
        maps=(("pool1", "pool1"), ("pool2", "pool2")),
        before=("conv2", "conv2"),
        vector=("linear@in", "linear@in"),
        settings={"epochs": 60, "batch_size": 60, "optimizer": lb.Optimizer(rate=0.1)},
        teacher=digits_teacher,
    )


def cifar10(data: Path | None) -> Task:
    return Task(
        name="cifar10",
        data=Npz(path=str((data or Path()) / "cifar10.npz"), limit=20_000, val=2_000, normalize=CIFAR10),
        student=CifarResNet(depth=8),
        maps=(("layer1", "layer1"), ("layer2", "layer2"), ("layer3", "layer3")),
        before=("layer3.0.bn2", "layer3.8.bn2"),
        vector=("linear@in", "linear@in"),
        settings={
            "epochs": 6, "batch_size": 128, "optimizer": lb.Optimizer(rate=0.2), "precision": "bfloat16",
            "channels_last": True, "augment": lb.Augment(flip=True),
        },
        teacher=cifar_teacher,
    )  # fmt: skip


ARMS: dict[str, Arm] = {
    "plain": lambda _: (lb.Label(),),
    "kd": lambda _: (lb.KL(temperature=4.0, weight=0.9), lb.Label(weight=0.1)),
    "kd_tuned": lambda task: kd(*chosen(task)[1:]),
    "kl": lambda _: (lb.KL(temperature=4.0), lb.Label()),
    "reverse_kl": lambda _: (lb.ReverseKL(), lb.Label()),
    "jsd": lambda _: (lb.JSD(), lb.Label()),
    "skew_kl": lambda _: (lb.SkewKL(), lb.Label()),
    "skew_reverse_kl": lambda _: (lb.SkewReverseKL(), lb.Label()),
    "total_variation": lambda _: (lb.TotalVariation(), lb.Label()),
    "alpha_beta": lambda _: (lb.AlphaBeta(), lb.Label()),
    "mse_logits": lambda _: (lb.MSELogits(), lb.Label()),
    "mse_probabilities": lambda _: (lb.MSEProbabilities(), lb.Label()),
    "dkd": lambda _: (lb.DKD(), lb.Label()),
    "nkd": lambda _: (lb.NKD(), lb.Label()),
    "dist": lambda _: (lb.DIST(), lb.Label()),
    "mlkd": lambda _: (lb.MLKD(), lb.Label()),
    "hint": lambda task: (lb.Hint(**task.last, weight=100.0), lb.Label()),
    "cosine": lambda task: (lb.Cosine(**task.last), lb.Label()),
    "attention": lambda task: (*task.over_maps(lb.Attention), lb.Label()),
    "nst": lambda task: (lb.NST(**task.last), lb.Label()),
    "fsp": lambda task: (lb.FSP(student=task.ends(0), teacher=task.ends(1)), lb.Label()),
    "activation_boundary": lambda task: (lb.ActivationBoundary(**task.unrectified), lb.Label()),
    "factor": lambda task: (lb.Factor(**task.last), lb.Label()),
    "variational": lambda task: (*task.over_maps(lb.Variational), lb.Label()),
    "review": lambda task: (lb.Review(student=task.side(0), teacher=task.side(1)), lb.Label()),
    "masked_generative": lambda task: (
        lb.MaskedGenerative(**task.last, ratio=0.15, mask="channels", weight=7e-5),
        lb.Label(),
    ),
    "similarity": lambda task: (lb.Similarity(**task.last), lb.Label()),
    "rkd": lambda task: (lb.RKD(**task.pooled), lb.Label()),
    "pkt": lambda task: (lb.PKT(**task.pooled), lb.Label()),
    "correlation": lambda task: (lb.Correlation(**task.pooled), lb.Label()),
    "cka": lambda task: (lb.CKA(**task.pooled), lb.Label()),
    "info_nce": lambda task: (lb.InfoNCE(**task.pooled), lb.Label()),
    "crd": lambda task: (lb.CRD(**task.pooled, bank=4096), lb.Label()),
    "simkd": lambda task: (lb.Hint(student="features", teacher=task.maps[-1][1], head="none"),),
    "topk_kl": lambda _: (lb.TopKKL(k=3, temperature=4.0), lb.Label()),
    "kl_standardized": lambda _: (lb.KL(temperature=2.0, standardize=True, weight=9.0), lb.Label()),
    "kl_curriculum": lambda _: (lb.KL(temperature=lb.Curriculum()), lb.Label()),
    "kl_by_entropy": lambda _: (lb.KL(temperature=lb.ByEntropy()), lb.Label()),
    "kl_fading": lambda _: (lb.KL(temperature=4.0, weight=lb.schedules.Linear(start=1.0, end=0.0)), lb.Label()),
    "kl_weighed": lambda _: (lb.Weighed(term=lb.KL(temperature=4.0), by="correct"), lb.Label()),
    "kl_balanced": lambda _: (lb.Balanced(terms=(lb.KL(temperature=4.0), lb.Label())),),
}
"""By name; the labels have weight 1 beside a method, and the method its published weight (the term's default where it
has one). `soft_cross_entropy` has the gradients of `kl` and is left out, and so are the losses on token sequences."""

RATES = (0.1, 0.2, 0.4, 0.8)
HEATS = (1.0, 2.0, 4.0, 8.0, 16.0)
SHARES = (0.5, 0.9)
PHASES = ("rate", "heat", "test")


def kd(temperature: float, share: float) -> tuple[Any, ...]:
    return (lb.KL(temperature=temperature, weight=share), lb.Label(weight=round(1 - share, 3)))


def records(task: Task) -> list[dict[str, Any]]:
    path = RESULTS / f"methods-{task.name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def chosen(task: Task) -> tuple[float, float, float]:
    """Rate, temperature and share with the best validation accuracy among the tuning runs."""
    tried = [r for r in records(task) if r["purpose"] == "tune"]
    plain = max((r for r in tried if r["arm"].startswith("plain")), key=lambda r: r["validation"][-1])
    soft = [r for r in tried if r["arm"].startswith("kd")]
    best = max(soft, key=lambda r: r["validation"][-1]) if soft else {"temperature": 4.0, "share": 0.9}
    return plain["rate"], best["temperature"], best["share"]


def train(task: Task, memory: Remembered, splits: Any, objective: tuple[Any, ...], seed: int, rate: float) -> Any:
    """One student, from initial weights that depend on the seed alone."""
    torch.manual_seed(1000 + seed)
    shape = tuple(next(iter(splits.train.read([torch.tensor([0])])))["x"].shape[1:])
    student = task.student.build((3, 32, 32) if task.name == "cifar10" else shape, 10)
    names = frozenset[str]().union(*(term.needs().teacher for term in objective))
    teacher = memory.teacher(names) if names else None
    if any("features" in term.needs().student for term in objective):
        student = simkd(task, memory, student)
    settings = {**task.settings, "optimizer": lb.Optimizer(rate=rate)}
    started = time.perf_counter()
    run = lb.distill(
        student, teacher, train=splits.train, val=splits.val, test=splits.test, objective=objective, seed=seed,
        progress=False, **settings,
    )  # fmt: skip
    scores = run.scores["student"]
    curve = [round(line["validation"]["accuracy"], 5) for line in run.folder.lines if line["kind"] == "epoch"]
    kept = {k: round(scores[k], 5) for k in ("accuracy", "macro_f1", "nll", "ece", "agreement") if k in scores}
    return {"validation": curve, **kept, "seconds": round(time.perf_counter() - started, 1), "steps": run.state.step}


def simkd(task: Task, memory: Remembered, student: nn.Module) -> nn.Module:
    """The student with the teacher's classifier on it; larger than the others by its projector and classifier."""
    layers = {"student_layer": task.maps[-1][0], "teacher_layer": task.maps[-1][1], "classifier": "linear"}
    shape = (3, 32, 32) if task.name == "cifar10" else (1, 8, 8)
    return lb.reuse_head(student, memory.reader.model, example=torch.randn(2, *shape), **layers)


def write(task: Task, record: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"methods-{task.name}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    score = record.get("accuracy", record["validation"][-1])
    print(
        f"{record['purpose']} {record['arm']:<24} seed {record['seed']}  {score:.4f}  {record['seconds']} s", flush=True
    )


def rates() -> list[tuple[dict[str, Any], Arm]]:
    """The runs that choose the rate, for the plain student, on validation."""
    tags = [{"purpose": "tune", "arm": f"plain rate {rate}", "seed": 100, "rate": rate} for rate in RATES]
    return [(tag, ARMS["plain"]) for tag in tags]


def heats() -> list[tuple[dict[str, Any], Arm]]:
    """The runs that choose temperature and share of plain KD, on validation, at that rate."""
    todo: list[tuple[dict[str, Any], Arm]] = []
    for heat in HEATS:
        for share in SHARES:
            tag = {"purpose": "tune", "arm": f"kd T={heat} w={share}", "seed": 100, "temperature": heat, "share": share}
            todo.append((tag, lambda _, heat=heat, share=share: kd(heat, share)))
    return todo


def testing(only: list[str]) -> list[tuple[dict[str, Any], Arm]]:
    """Every arm over its seeds."""
    wanted = {name: ARMS[name] for name in only or ARMS}
    return [({"purpose": "test", "arm": name, "seed": seed}, arm) for name, arm in wanted.items() for seed in range(3)]


def run(task: Task, data: Path | None, todo: list[tuple[dict[str, Any], Arm]], part: tuple[int, int]) -> None:
    splits = task.data.load()
    memory = task.teacher(task, data)
    if task.name == "digits":
        splits = splits._replace(train=splits.train.subset(splits.train.ids[:300]))
    for number, (tag, arm) in enumerate(todo):
        done = {(r["purpose"], r["arm"], r["seed"]) for r in records(task)}
        if number % part[1] != part[0] - 1 or (tag["purpose"], tag["arm"], tag["seed"]) in done:
            continue
        rate = tag.get("rate") or chosen(task)[0]
        found = train(task, memory, splits, arm(task), tag["seed"], rate)
        if tag["purpose"] == "tune":
            found = {k: v for k, v in found.items() if k in ("validation", "seconds", "steps")}
        write(task, {**tag, "rate": rate, **found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["digits", "cifar10"])
    parser.add_argument("--data", type=Path, default=os.environ.get("LIMBECK_DATA"))
    parser.add_argument("--part", default="1/1", help="i/n: every n-th run from the i-th on")
    parser.add_argument("--phase", choices=[*PHASES, "all"], default="all", help="with --part, one after the other")
    parser.add_argument("--only", default="", help="arms, separated by commas")
    given = parser.parse_args()
    first, _, parts = given.part.partition("/")
    task = digits() if given.task == "digits" else cifar10(given.data)
    only = [name for name in given.only.split(",") if name]
    phases = {"rate": rates, "heat": heats, "test": lambda: testing(only)}
    for phase in phases if given.phase == "all" else [given.phase]:
        run(task, given.data, phases[phase](), (int(first), int(parts)))


if __name__ == "__main__":
    main()
