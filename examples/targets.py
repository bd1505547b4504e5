"""The teacher runs once: its answers to four views of each image are kept on disk, and training reads them there."""

import tempfile
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import limbeck as lb

digits = load_digits()
images = torch.from_numpy(digits.images * 15).to(torch.uint8).unsqueeze(-1)  # N,H,W,C bytes
y = torch.from_numpy(digits.target)
train, val, test = (images[:1200], y[:1200]), (images[1200:1500], y[1200:1500]), (images[1500:], y[1500:])
augment = lb.Augment(crop=1, rotate=10.0)
how = {"val": val, "test": test, "augment": augment, "epochs": 12, "batch_size": 50, "progress": False}


def network(width: int) -> nn.Module:
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 10))


torch.manual_seed(0)
teacher = network(32)
lb.distill(teacher, None, train=train, **how)

with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    targets = lb.remember(teacher, train, views=4, augment=augment, out=Path(folder) / "targets", progress=False)
    print(f"remembered 4 views of {len(y[:1200])} images in {time.perf_counter() - start:.1f} s", end=", ")
    print(f"{targets.store.nbytes / 1000:.0f} kB")
    for name, master in (("stored", targets), ("live", teacher)):
        torch.manual_seed(1)
        start = time.perf_counter()
        run = lb.distill(network(4), master, train=train, objective=(lb.KL(temperature=2.0), lb.Label()), **how)
        seconds = time.perf_counter() - start
        print(f"{name} teacher: {100 * run.scores['student']['accuracy']:.1f} % in {seconds:.1f} s")

    # Another process needs the folder alone. What it does not hold is refused before the first step.
    try:
        lb.distill(
            network(4), Path(folder) / "targets", train=train, objective=lb.Hint(student="3", teacher="3"), **how
        )
    except lb.LimbeckError as error:
        print(error)
