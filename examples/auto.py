"""The objective is chosen: short trainings beside plain training, and plain where nothing beats it."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import limbeck as lb

digits = load_digits()
x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
train, val, test = (x[:1000], y[:1000]), (x[1000:1300], y[1000:1300]), (x[1300:], y[1300:])
how = {"val": val, "test": test, "epochs": 10, "batch_size": 50, "progress": False}


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


class Confused(nn.Module):
    """A teacher that is sure of the wrong digits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -20.0 * teacher(x)


teacher = network(256)
lb.distill(teacher, None, train=train, **how)
plain = lb.distill(network(8), None, train=train, **how)
print(f"plain: {100 * plain.scores['student']['accuracy']:.1f} %")

for name, master in (("a good teacher", teacher), ("a confused one", Confused())):
    run = lb.distill(network(8), master, train=train, objective="auto", **how)
    print(f"{name}: {100 * run.scores['student']['accuracy']:.1f} %. {run.document['notes'][0]}")
    rounds = max(trial["round"] for trial in run.evidence["trials"])
    for trial in run.evidence["trials"]:
        went = "tried again" if trial["kept"] and trial["round"] < rounds else ""
        accuracy = f"{100 * trial['accuracy']:.1f} %"
        print(f"  round {trial['round']}  {trial['candidate']:>13}  {trial['steps']:>3} steps  {accuracy}  {went}")
