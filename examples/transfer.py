"""A student made from its teacher: half the width, the weights that matter most, the teacher's own settings."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import limbeck as lb

digits = load_digits()
x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
y = torch.from_numpy(digits.target)
train, val, test = (x[:1200], y[:1200]), (x[1200:1500], y[1200:1500]), (x[1500:], y[1500:])


def network(width: int) -> nn.Module:
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 10))


with tempfile.TemporaryDirectory() as folder:
    torch.manual_seed(0)
    teacher, home = network(32), Path(folder) / "teacher"
    how = {"train": train, "val": val, "test": test, "progress": False}
    taught = lb.distill(teacher, None, epochs=12, batch_size=50, out=home, **how)
    print(f"teacher            {taught.scores['student']['accuracy']:.3f}")

    for start in ("fresh weights", "inherited weights"):
        student = lb.transfer.shrink(teacher, width=0.25, seed=1)
        if start == "inherited weights":
            found = lb.transfer.inherit(student, teacher, width="project", data=train)
        settings = lb.transfer.strategy(home, student, teacher, epochs=3).settings
        run = lb.distill(student, teacher, **how, **settings)
        print(f"{start:18} {run.scores['student']['accuracy']:.3f} after 3 epochs")

    print(lb.transfer.outline(student))
    print(found)
