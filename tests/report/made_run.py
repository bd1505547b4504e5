"""A made-up run, complete in every section."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
ARMS = {"teacher": 0.760, "plain": 0.720, "model": 0.736, "knowledge": 0.733}


def one(rng: random.Random, name: str, accuracy: float) -> dict[str, Any]:
    recalls = [min(1.0, max(0.0, accuracy + 0.18 * math.sin(2.1 * i) + rng.gauss(0, 0.01))) for i in range(10)]
    found: dict[str, Any] = {
        "accuracy": accuracy, "macro_recall": accuracy - 0.001, "macro_f1": accuracy - 0.004, "nll": 1.5 - accuracy,
        "ece": 0.11 - accuracy / 10, "recall_per_class": recalls, "f1_per_class": recalls, "samples": 10000,
    }  # fmt: skip
    if name != "teacher":
        found |= {"agreement": accuracy + 0.06, "teacher_kl": 0.9 - accuracy}
    return found


def scores() -> dict[str, Any]:
    rng = random.Random(0)
    arms: dict[str, Any] = {}
    labels = {"teacher": "Teacher", "plain": "Student alone", "model": "Distilled (outputs)",
              "knowledge": "Distilled (outputs and layers)"}  # fmt: skip
    for name, accuracy in ARMS.items():
        small = name != "teacher"
        runs = [
            {"seed": seed, "scores": one(rng, name, accuracy + 0.003 * (seed - 1)),
             "validation": one(rng, name, accuracy + 0.003 * (seed - 1) + 0.004), "epochs": 10, "steps": 4500,
             "seconds": 63.1, "stopped_by": "epochs"}
            for seed in ([0, 1, 2] if small else [1])
        ]  # fmt: skip
        arms[name] = {
            "role": {"teacher": "teacher", "plain": "plain"}.get(name, "distilled"), "label": labels[name],
            "describe": f"Conv(channels={(16, 32) if small else (32, 64)})",
            "objective": {"plain": ["label, weight 1"], "teacher": ["label, weight 1"],
                          "model": ["KL at temperature 4, weight 0.9", "label, weight 0.1"],
                          "knowledge": ["KL at temperature 4, weight 0.9", "label, weight 0.1", "hint"]}[name],
            "runs": runs,
            "footprint": {"parameters": 16900 if small else 60362, "trainable": 16900 if small else 60362,
                          "bytes": 67600 if small else 241448, "macs": 1500000 if small else 5600000,
                          "latency": {"p50": 0.0005 if small else 0.0012, "p10": 0.00045 if small else 0.0011,
                                      "p90": 0.0007 if small else 0.0015, "batch": 1, "threads": 2, "repeats": 30}},
        }  # fmt: skip
    summary: dict[str, Any] = {}
    for name, arm in arms.items():
        keys = [key for key, value in arm["runs"][0]["scores"].items() if isinstance(value, float)]
        summary[name] = {}
        for key in keys:
            values = [run["scores"][key] for run in arm["runs"]]
            sd = statistics.stdev(values) if len(values) > 1 else None
            summary[name][key] = {"mean": statistics.fmean(values), "sd": sd, "n": len(values)}

    def compared(arm: str, metric: str, mean: float, half: float, verdict: str) -> dict[str, Any]:
        return {"arm": arm, "baseline": "plain", "metric": metric, "mean": mean, "low": mean - half,
                "high": mean + half, "level": 0.95, "n": 3, "verdict": verdict}  # fmt: skip

    return {
        "format": 1, "title": "cifar10-conv", "split": "test", "samples": 10000, "classes": list(CLASSES),
        "story": "A small convolutional network learns from one with four times its parameters.\nThree seeds each.",
        "baseline": "plain", "complete": True, "arms": arms, "summary": summary,
        "comparisons": [
            compared("model", "accuracy", 0.016, 0.005, "better"),
            compared("knowledge", "accuracy", 0.013, 0.004, "better"),
            compared("model", "nll", -0.016, 0.012, "better"),
            compared("knowledge", "nll", 0.004, 0.011, "no clear difference"),
            compared("model", "ece", 0.006, 0.004, "worse"),
            compared("knowledge", "ece", -0.0013, 0.004, "no clear difference"),
        ],
        "notes": ["The teacher was trained with one seed, so its own spread is not known."],
    }  # fmt: skip


def metrics(*, epochs: int = 10, logged: int = 45, seeds: int = 3) -> list[dict[str, Any]]:
    rng, lines = random.Random(1), []
    parts = {"teacher": ["label"], "plain": ["label"], "model": ["kl", "label"], "knowledge": ["kl", "label", "hint"]}
    for name, best in ARMS.items():
        for seed in range(1 if name == "teacher" else seeds):
            for step in range(1, epochs * logged + 1):
                level = 0.6 + 1.7 * math.exp(-3 * step / (epochs * logged)) + rng.gauss(0, 0.05)
                terms = {term: level * (1 + i / 2) for i, term in enumerate(parts[name])}
                lines.append({"kind": "step", "arm": name, "seed": seed, "step": 10 * step, "epoch": 1 + step // logged,
                              "loss": level, "terms": terms, "rate": 0.05, "seconds": 1.0})  # fmt: skip
                if step % logged == 0:
                    epoch = step // logged
                    value = best * (1 - 0.5 * math.exp(-epoch / 2.5)) + rng.gauss(0, 0.004)
                    lines.append({"kind": "epoch", "arm": name, "seed": seed, "epoch": epoch, "step": 10 * step,
                                  "validation": {"accuracy": value, "nll": 1.55 - value}})  # fmt: skip
    return lines


def write(folder: Path, found: dict[str, Any] | None, recorded: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if found is not None:
        (folder / "scores.json").write_text(json.dumps(found), encoding="utf-8")
    if recorded:
        text = "".join(json.dumps(line) + "\n" for line in recorded)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def times(middle: float, *, calls: int = 30) -> list[dict[str, Any]]:
    """Latencies around a middle, one sample and 32 at a time."""
    found = []
    for batch in (1, 32):
        seconds = [middle * batch**0.5 * (0.9 + 0.2 * i / (calls - 1)) for i in range(calls)]
        p10, p50, p90 = (seconds[round(share * (calls - 1))] for share in (0.1, 0.5, 0.9))
        found.append({"batch": batch, "threads": 2, "p10": p10, "p50": p50, "p90": p90, "low": 0.98 * p50,
                      "high": 1.02 * p50, "seconds": seconds})  # fmt: skip
    return found


def confusion(right: int, *, classes: int = 10) -> list[list[int]]:
    """Counts of true class by answer: most are right, the rest are taken for the next class."""
    return [[right if j == i else 100 - right if j == (i + 1) % classes else 0 for j in range(classes)]
            for i in range(classes)]  # fmt: skip


def search() -> dict[str, Any]:
    """What a search leaves: a third pruned away holds, half does not, and the repair of a third was undone."""

    def attempt(number: int, strength: float | None, share: float, accuracy: float, **fate: Any) -> dict[str, Any]:
        costs = {"parameters": 1000 * share, "bytes": 4000 * share, "macs": 50_000 * share}
        return {"number": number, "parent": 0 if number else None, "lever": "merge_units" if number else "original",
                "strength": strength, "costs": costs, "scores": {"accuracy": accuracy, "macro_f1": accuracy - 0.01},
                "repaired": False, "met": False, "held": True, "kept": False, "why": "", **fate}  # fmt: skip

    return {
        "attempts": [
            attempt(0, None, 1.0, 0.9, kept=True, why="where it starts"),
            attempt(1, 0.5, 0.5, 0.8, held=False, why="accuracy is 0.0900 beyond what may be lost"),
            attempt(2, 0.333, 0.667, 0.895, kept=True, why="it holds"),
            attempt(3, 0.333, 0.667, 0.894, repaired=True, why="the repair made it no better, and was undone"),
        ],
        "limits": {"ceilings": {"parameters": 700.0, "macs": 25_000.0}, "floors": {"accuracy": 0.89}, "lids": {}},
        "best": 2,
    }


def evidence() -> dict[str, Any]:
    """The content of evidence.json."""
    looks = {"gradient_input": {"rank": 0.61, "cosine": 0.5, "overlap": 0.3}}
    entry = {
        "overfitting": {"gap": 0.12, "turned": 4}, "temperature": 1.37, "attribution": looks,
        "robustness": {"clean": 0.7, "corruptions": {"noise": [0.7, 0.6, 0.5, 0.4, 0.3]},
                       "attacks": {"fgsm": {"epsilon": [0.01, 0.02], "accuracy": [0.6, 0.4]}}},
        "reliability": {"confidence": [0.1, None, 0.9], "accuracy": [0.2, None, 0.8], "count": [1, 0, 9]},
    }  # fmt: skip
    return {
        "format": 1,
        **search(),
        "arms": {
            "model": [{"seed": 0, **entry, "confusion": confusion(74)},
                      {"seed": 1, **entry, "confusion": confusion(76)}],
            "plain": [{"seed": 0, "confusion": confusion(70)}],
            "gone": [{"seed": 0}],
        },
        "costs": {
            name: {"parameters": size, "disk": 4 * size + 500, "macs": 25 * size, "peak_memory": memory,
                   "latency": times(middle)}
            for name, size, memory, middle in (("teacher", 60362, 2_500_000, 0.0012), ("plain", 16900, None, 0.0005),
                                               ("model", 16900, None, 0.0005))
        },
        "random": {"attribution": {"gradient_input": {"rank": 0.02}}},
        "churn": {"model": {"mean": 0.081, "pairs": []}},
        "rates": {"model": {"rate": [0.1, 1.0], "runs": [3, 3], "diverged": [0, 2], "accuracy": [[0.7], [0.5, None]]}},
        "comparisons": [
            {"arm": "model", "baseline": "plain", "measure": "churn", "mean": -0.0213, "low": -0.03, "high": -0.01,
             "n": 5, "p": 0.0625, "least_p": 0.0625, "verdict": "better"},
            {"arm": "gone", "measure": "churn", "mean": 1.0},
        ],
        "trials": [
            {"arm": "model", "seed": seed, "candidate": name, "objective": [f"{name} weight 1.0"], "round": at,
             "steps": 20 * at, "share": 0.1 * at, "accuracy": accuracy, "nll": 1.0, "samples": 100, "kept": kept,
             "why": "always carried" if name == "plain" else "place 1 of 2"}
            for seed in (0, 1)
            for name, at, accuracy, kept in (("plain", 1, 0.5 + seed / 10, True), ("kl-2", 1, 0.6, not seed),
                                             ("dist", 1, None, bool(seed)), ("plain", 2, 0.7, True))
        ],
        "gallery": [{"id": 1, "label": "bird", "image": PICTURE, "maps": [{"arm": "model", "image": PICTURE}]},
                    {"id": 2, "label": "b", "image": "javascript:window.pwned=1", "maps": []}],
        "disagreements": [{"arm": "model", "id": 7, "label": "ship", "image": PICTURE,
                           "teacher": {"class": "bird", "confidence": 0.93}, "student": {"class": "b"}, "kl": 2.0}],
    }  # fmt: skip
