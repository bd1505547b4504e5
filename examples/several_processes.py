"""The same script, alone or as several processes: `torchrun --nproc-per-node 2 examples/several_processes.py`."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import limbeck as lb
from limbeck.core.processes import first, processes

torch.set_num_threads(1)
X, y = load_digits(return_X_y=True)
X, y = torch.from_numpy(X).float() / 16, torch.from_numpy(y)
train, val, test = (X[:1200], y[:1200]), (X[1200:1500], y[1200:1500]), (X[1500:], y[1500:])
how = {"val": val, "test": test, "batch_size": 50, "progress": False}


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


torch.manual_seed(0)
teacher = network(256)
lb.distill(teacher, None, train=train, epochs=10, **how)

# The whole batch of 50 is shared out; relations are taken over all of it. The weights are those of one process.
student = network(16)
objective = (lb.KL(), lb.Label(), lb.RKD(student="1", teacher="1"))
run = lb.distill(
    student, teacher, train=train, epochs=10, objective=objective, gather=True, ema=0.99, non_finite="skip", **how
)
if first():
    print(f"{processes()} processes: {100 * run.scores['student']['accuracy']:.2f} %", end=", ")
    print(f"weights {student[0].weight.double().square().sum():.4f}")
