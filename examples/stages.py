"""Hints first and outputs after; then the same network on another task: its head first, then all of it, near its start.

python examples/stages.py
"""

import copy

import torch
from torch import nn

import limbeck as lb


def net(width: int) -> nn.Sequential:
    """Two hidden layers and a head."""
    body = nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(body, nn.Linear(width, 4))


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 20)
    y = x[:, :4].argmax(1)
    teacher = net(64)
    lb.distill(teacher, None, train=(x, y), epochs=8)

    student = net(16)
    hints = lb.Stage(name="hints", epochs=3, objective=(lb.Hint(student="0.1", teacher="0.1"),), rate=0.02)
    run = lb.distill(student, teacher, train=(x, y), stages=(hints, lb.Stage(name="outputs", epochs=5)))
    print(f"in stages: {run.scores['student']['accuracy']:.3f} after {run.state.epoch} epochs")

    few = (x[:120], (x[:120, :4] + 0.3 * x[:120, 4:8]).argmax(1))  # a task nearby, with few labels
    test = (x[120:], (x[120:, :4] + 0.3 * x[120:, 4:8]).argmax(1))
    probe = lb.Stage(name="probe", epochs=10, tuning=lb.Tuning(learn=("1",)))
    whole = lb.Stage(name="all", epochs=10, rate=0.02, tuning=lb.Tuning(decay=0.5, anchor={"0": 0.1}))
    for words, model in (("fine-tuned", copy.deepcopy(student)), ("from scratch", net(16))):
        tuned = lb.distill(model, None, train=few, test=test, batch_size=30, stages=(probe, whole))
        print(f"{words}: {tuned.scores['student']['accuracy']:.3f}")


if __name__ == "__main__":
    main()
