"""Two students that teach each other, one that is its own teacher, and two teachers that know different classes.

python examples/collective.py
"""

import torch
from torch import nn

import limbeck as lb


def net(seed: int, classes: int = 4) -> nn.Sequential:
    """A small student."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, classes))


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 20)
    y = x[:, :4].argmax(1)
    train, test = (x[:400], y[:400]), (x[400:], y[400:])

    together = (lb.Mutual(), lb.Each(term=lb.Label()))
    peers = lb.distill(
        lb.Peers([net(1), net(2)]), None, train=train, test=test, objective=together, batch_size=50, clip=None
    )
    print(f"two peers: {peers.scores['student']['accuracy']:.3f}, all: {peers.scores['student']['peers']}")

    steady = (lb.KL(temperature=1.0, weight=lb.schedules.Linear(start=0.0, end=1.0)), lb.Label())
    alone = lb.distill(net(1), lb.SelfTeacher(decay=0.95), train=train, test=test, objective=steady, batch_size=50)
    print(f"its own average: {alone.scores['student']['accuracy']:.3f}")

    parts = []
    for classes in ((0, 1, 2), (1, 2, 3)):
        known = (train[1].unsqueeze(1) == torch.tensor(classes)).any(1)
        some = (train[0][known], train[1][known] - classes[0])
        parts.append(net(3, classes=3))
        lb.distill(parts[-1], None, train=some, batch_size=50)
    both = lb.teacher(parts, classes=((0, 1, 2), (1, 2, 3)), trust="entropy", mean="probabilities")
    union = lb.distill(net(4), both, train=train, test=test, objective=lb.KL(), batch_size=50)
    print(f"from teachers of three classes each, four: {union.scores['student']['accuracy']:.3f}")


if __name__ == "__main__":
    main()
