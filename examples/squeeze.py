"""A trained network loses half of its weights, and no more than two points of accuracy on validation samples.

python examples/squeeze.py
"""

import torch
from torch import nn

import limbeck as lb
from limbeck.compress import MergeUnits
from limbeck.data import Digits

train, val, test = Digits().load()

torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
lb.distill(network, None, train=train, val=val, epochs=12, progress=False)

# Half is asked for, at least; what is lost too much is weakened by bisection. Two ways, each a search of its own.
budget = lb.Budget(parameters=0.5, drop=0.02)
for op in ("prune", MergeUnits(ratio=0.52)):
    found = lb.squeeze(network, train=train, val=val, test=test, budget=budget, ops=[op], epochs=2, progress=False)
    print(" ".join(found.words[:2]))
    for attempt in found.attempts:
        strength = "" if attempt["strength"] is None else f"{attempt['strength']:.3f}"
        print(f"   {attempt['lever']} {strength} accuracy {attempt['scores']['accuracy']:.3f}: {attempt['why']}")
