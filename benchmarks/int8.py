"""What do 8 bits cost a real network, and what do they give on this machine?

    python benchmarks/int8.py --data DIR          # writes benchmarks/results/int8.json
    python benchmarks/int8.py --data DIR --small  # 200 test images, short timing; writes nothing

The published ResNet-20 for CIFAR-10 (`teachers/*resnet20*` and `cifar10.npz` in DIR), as an ONNX file and in 8 bits:
ranges by each rule, a scale for each channel or each weight, weights of 7 and 8 bits. Calibrated on 512 training
images, scored on the first 2,000 test images. Latencies are taken in turns. Peak memory is that of calibration
on 2,000 images, in a process of its own, ours beside ONNX Runtime's own percentile calibration.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import limbeck as lb
from limbeck.core.chip import sums_saturate
from limbeck.core.folder import environment
from limbeck.evaluation import compare_latency
from limbeck.export import OnnxModel, Quantize, quantize, to_onnx
from limbeck.models import CifarResNet
from limbeck.recipes.base import read_weights

THREADS = 2
SETTINGS = {
    "min-max": Quantize(),
    "min-max, a scale a weight": Quantize(per_channel=False),
    "percentile 99.99": Quantize(calibration="percentile"),
    "percentile 99.99, a scale a weight": Quantize(calibration="percentile", per_channel=False),
    "entropy": Quantize(calibration="entropy"),
    "min-max, 7 bits": Quantize(reduce_range=True),
    "min-max, 8 bits": Quantize(reduce_range=False),
    "min-max, 8 bits, a scale a weight": Quantize(reduce_range=False, per_channel=False),
}


def images(data: Path, part: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(data / "cifar10.npz", allow_pickle=False) as held:
        pixels, labels = held[f"{part}_images"][:count], held[f"{part}_labels"][:count]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    x = lb.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))(x)
    return x, torch.from_numpy(labels).long()


def network(data: Path) -> torch.nn.Module:
    model = CifarResNet(depth=20).build((3, 32, 32), 10)
    model.load_state_dict(read_weights(str(next((data / "teachers").glob("*resnet20*"))), "teacher"))
    return model.eval()


def accuracy(model: torch.nn.Module, test: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(lb.evaluate(model, test)["accuracy"])


def latencies(models: dict[str, OnnxModel], x: torch.Tensor, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for batch in (1, 128):
        taken = compare_latency({name: (model, x[:batch]) for name, model in models.items()}, seconds=seconds)
        found[str(batch)] = {name: dataclasses.asdict(each) for name, each in taken.items()}
        found[str(batch)]["ratio"] = taken["int8"].p50 / taken["float"].p50
    return found


MEMORY = """
import resource, sys, tempfile
from pathlib import Path
sys.path.insert(0, {here!r})
import int8
from limbeck.export import Quantize, quantize
from onnxruntime import quantization as ort
data, path, how, count = Path({data!r}), {path!r}, {how!r}, {count}
x, _ = int8.images(data, "train", count)
before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024
with tempfile.TemporaryDirectory() as folder:
    if how == "ours":
        quantize(path, [x], Path(folder) / "a.onnx", settings=Quantize(calibration="percentile", samples=count))
    else:
        class Reader(ort.CalibrationDataReader):
            left = list(x.split(40))  # it fails where the last is smaller
            def get_next(self):
                return {{"x": self.left.pop().numpy()}} if self.left else None
        ort.quantize_static(path, folder + "/b.onnx", Reader(), calibrate_method=ort.CalibrationMethod.Percentile)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def memory(data: Path, path: Path, how: str, count: int) -> float:
    """Megabytes above what the process had before it calibrated."""
    code = MEMORY.format(here=str(Path(__file__).parent), data=str(data), path=str(path), how=how, count=count)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return float(said.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LIMBECK_DATA"))
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder with --data, or set LIMBECK_DATA")
    torch.set_num_threads(THREADS)
    test = images(options.data, "test", 200 if options.small else 2000)
    x, _ = images(options.data, "train", 512)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = network(options.data)
        base = to_onnx(model, x[:2], home / "float.onnx", samples=x[:256])
        found: dict[str, Any] = {
            "environment": environment(),
            "sums_saturate": sums_saturate(),
            "float": {"accuracy": accuracy(base, test), "torch": accuracy(model, test), "bytes": base.bytes},
        }
        small = quantize(base.path, [x], home / "small.onnx")
        found["latency"] = latencies({"float": base, "int8": small}, x, 0.5 if options.small else 10)
        count = 200 if options.small else 2000
        found["memory"] = {how: memory(options.data, base.path, how, count) for how in ("ours", "onnxruntime")}
        for name in ("float", "latency", "memory"):
            print(name, json.dumps(found[name]), flush=True)
        for name, settings in SETTINGS.items():
            small = quantize(base.path, [x], home / "small.onnx", settings=settings)
            found[name] = {
                "accuracy": accuracy(small, test),
                "agreement": small.record["parity"]["agreement"],
                "in_deviations": small.record["parity"]["in_deviations"],
                "bytes_ratio": small.bytes / base.bytes,
                "integer": small.record["integer"],
            }
            print(name, json.dumps(found[name]), flush=True)
    if not options.small:
        target = Path(__file__).parent / "results" / "int8.json"
        target.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
