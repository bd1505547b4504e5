"""Do two copies of one network come out as fast as each other, on a machine that has other work to do?

    python benchmarks/latency.py              # all networks; writes benchmarks/results/latency.json

Ten tries each: two deep copies of one network are timed together (`compare_latency`), and the difference of their
medians is put down, in percent of the second. The promise is less than 3 % in nine of ten. `load` is the machine's load
average around the tries: other work is part of the question. Last, eleven equal layers are held against ten, so that a
measure that always says "equal" would be found out.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.folder import environment
from limbeck.evaluation import compare_latency
from limbeck.models import MLP, CifarResNet

IMAGE = (3, 32, 32)
NETWORKS = {
    "MLP 64-64-10, batch 1": (MLP(hidden=(64,)).build((64,), 10), (1, 64)),
    "MLP 64-64-10, batch 32": (MLP(hidden=(64,)).build((64,), 10), (32, 64)),
    "ResNet-20, batch 1": (CifarResNet(depth=20).build(IMAGE, 10), (1, *IMAGE)),
    "ResNet-20, batch 32": (CifarResNet(depth=20).build(IMAGE, 10), (32, *IMAGE)),
    "dense 1024-4096-1024, batch 1": (MLP(hidden=(4096,)).build((1024,), 1024), (1, 1024)),
}
LAW = 3.0
TRIES = 10


def difference(model: nn.Module, example: Tensor, threads: int, seconds: float) -> tuple[float, dict[str, float]]:
    pair = {name: (copy.deepcopy(model), example) for name in ("one", "other")}
    found = compare_latency(pair, seconds=seconds, threads=threads)
    one, other = found["one"], found["other"]
    return 100 * (one.p50 / other.p50 - 1), {"p50_ms": 1e3 * other.p50, "calls": other.repeats}


def longer(example: Tensor, seconds: float) -> float:
    """By how many percent eleven equal layers are slower than ten, whose true difference is 10 %."""

    def layers(count: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(256, 256) for _ in range(count)))

    found = compare_latency({"ten": (layers(10), example), "eleven": (layers(11), example)}, seconds=seconds, threads=1)
    return 100 * (found["eleven"].p50 / found["ten"].p50 - 1)


def write(out: Path, rows: list[dict[str, Any]], seconds: float, **further: Any) -> None:
    place = {k: v for k, v in environment().items() if k != "command"}
    document = {"environment": place, "seconds_at_most": seconds, "results": rows, **further}
    out.write_text(json.dumps(document, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="at most so many a try")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "latency.json")
    given = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for threads in given.threads:
        for name, (model, shape) in NETWORKS.items():
            if given.only not in name:
                continue
            load, start = os.getloadavg()[0], time.perf_counter()
            tries = [difference(model, torch.randn(shape), threads, given.seconds) for _ in range(TRIES)]
            apart = [round(value, 2) for value, _ in tries]
            rows.append({
                "network": name, "threads": threads, "difference_percent": apart,
                "below_3_percent": sum(abs(value) < LAW for value in apart), "tries": TRIES,
                "p50_ms": sorted(round(each["p50_ms"], 4) for _, each in tries),
                "calls": [each["calls"] for _, each in tries],
                "seconds_a_try": round((time.perf_counter() - start) / TRIES, 2),
                "load": [round(load, 2), round(os.getloadavg()[0], 2)],
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
            write(given.results, rows, given.seconds)
    told = [round(longer(torch.randn(64, 256), given.seconds), 2) for _ in range(TRIES)]
    print(f"eleven layers against ten: {told}", flush=True)
    write(given.results, rows, given.seconds, eleven_layers_against_ten_percent=told)
    print(f"written: {given.results}")


if __name__ == "__main__":
    main()
