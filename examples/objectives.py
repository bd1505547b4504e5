"""One student, several objectives: plain labels, tuned KL, a moving temperature, inner layers, relations.

    python examples/objectives.py

Real digits, 300 labels. Every student starts from the same weights and sees the same samples in the same order, so the
numbers differ by the objective alone; with one seed, small differences mean nothing.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import limbeck as lb

digits = load_digits()
x, y = torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target)
train, val, test = (x[:300], y[:300]), (x[300:500], y[300:500]), (x[500:], y[500:])


def network(channels: int) -> nn.Sequential:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(channels * 16, 10))


teacher = network(32)
everything = (torch.cat([train[0], test[0][:800]]), torch.cat([train[1], test[1][:800]]))  # it has seen more than 300
lb.distill(teacher, None, train=everything, val=val, epochs=8, batch_size=50, progress=False)

fading = lb.schedules.Linear(start=1.0, end=0.0, until=0.8)
objectives = {
    "labels alone": (lb.Label(),),
    "KL, learned temperature": (lb.KL(temperature=lb.Curriculum()), lb.Label()),
    "KL where the teacher is right, fading": (lb.Weighed(term=lb.KL(), by="correct", weight=fading), lb.Label()),
    "relations": (lb.RKD(student="1", teacher="1"), lb.Label()),
    "KL and labels, balanced": lb.Balanced(terms=(lb.KL(), lb.Label())),
}
left = (test[0][800:], test[1][800:])
for name, objective in objectives.items():
    student = network(4)
    master = teacher if name != "labels alone" else None
    run = lb.distill(
        student, master, train=train, val=val, test=left, objective=objective, epochs=8, batch_size=50, progress=False
    )
    print(f"{name:<40} {100 * run.scores['student']['accuracy']:.1f} %")
