"""A scikit-learn forest teaches a small network on a table.

    python examples/forest_teacher.py

Wine: 13 measured features, 3 growers. 40 bottles have a label, 78 have none, 60 are for the test. The forest takes the
table as it is and the network takes it standardised, so the forest has data of its own, joined by sample id. Its shares
of votes become logits; a class that gets no vote counts as one in ten million.
"""

import numpy as np
import torch
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from torch import nn

import limbeck as lb

wine = load_wine()
order = np.random.default_rng(0).permutation(len(wine.target))
raw, y = wine.data[order].astype("float32"), wine.target[order]
labelled, train, test = slice(0, 40), slice(0, 118), slice(118, None)
x = (raw - raw[train].mean(0)) / raw[train].std(0)
known = np.where(np.arange(118) < 40, y[train], -1)  # -1: no label, the teacher alone teaches

forest = RandomForestClassifier(100, random_state=0).fit(raw[labelled], y[labelled])
teacher = lb.teacher(forest, data={"x": raw[train]})

torch.manual_seed(0)
student = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3))
objective = (lb.KL(temperature=2.0, weight=0.9), lb.Label(weight=0.1))
lb.distill(
    student,
    teacher,
    train=(x[train], known),
    val=(x[labelled], y[labelled]),
    objective=objective,
    epochs=40,
    batch_size=20,
    progress=False,
)
nodes, weights = sum(tree.tree_.node_count for tree in forest.estimators_), sum(p.numel() for p in student.parameters())
print(f"forest  {forest.score(raw[test], y[test]):.3f} ({nodes} nodes)")
print(f"student {lb.evaluate(student, (x[test], y[test]))['accuracy']:.3f} ({weights} weights)")
