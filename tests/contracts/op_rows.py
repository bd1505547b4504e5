"""The networks and settings that the laws in `test_ops.py` try each operation on. A row is a name and what it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from limbeck.compress import (
    Bake,
    Cluster,
    Depth,
    Evidence,
    Factorize,
    Features,
    Mask,
    Merge,
    MergeUnits,
    Prune,
    Vocabulary,
    apply,
    plan,
)  # fmt: skip


class TiedText(nn.Module):
    """Words in, words out, by the same table; row 0 is padding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 12, padding_idx=0)
        self.inner = nn.Linear(12, 12)
        self.out = nn.Linear(12, 50)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(torch.relu(self.inner(self.embed(x)))).mean(1)


def rows_of_numbers(n=32, width=12, classes=3):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(n, width, generator=g)
    return {"x": x, "y": (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long() * (classes > 2)}


def images(n=6):
    g = torch.Generator().manual_seed(6)
    return {"x": torch.randn(n, 3, 10, 10, generator=g), "y": torch.arange(n) % 4}


def words(n=16):
    g = torch.Generator().manual_seed(7)
    return {"x": torch.randint(0, 30, (n, 5), generator=g), "y": torch.arange(n) % 2}


def mlp():
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))


def conv():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1, bias=False),
        nn.Conv2d(16, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def clustered():
    """What a chain leaves: a mask, and shared values on top of it."""
    model = seeded(mlp)
    for op in (Mask(sparsity=0.5), Cluster(levels=8)):
        model = apply(model, plan(model, op, evidence(rows_of_numbers())))
    return model


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -1, 1)
    return model.eval()


def evidence(batch, parts=2):
    size = len(next(iter(batch.values()))) // parts
    cut = [{k: v[i * size : (i + 1) * size] for k, v in batch.items()} for i in range(parts)]
    return Evidence(batch=batch, batches=lambda: iter(cut))


@dataclass(frozen=True)
class Row:
    """An operation on a network.

    Attributes:
        op: the operation.
        model: makes the network, trained or not; `seeded` is put around it.
        batch: makes the data.
        none: settings of the same operation at no strength, or a pattern that leaves everything alone.
        lossless: how far answers may be from the original's, where the operation claims to keep them; else None.
    """

    op: Any
    model: Callable[[], nn.Module]
    batch: Callable[[], dict[str, torch.Tensor]]
    none: Any = None
    lossless: float | None = None


ROWS = {
    "factorize a linear layer": Row(Factorize(rank=3), mlp, rows_of_numbers, Factorize(ratio=1.0)),
    "factorize for outputs": Row(
        Factorize(ratio=0.5, fit="outputs"), mlp, rows_of_numbers, Factorize(energy=1.0, fit="outputs")
    ),
    "factorize a convolution": Row(Factorize(energy=0.6), conv, images, Factorize(energy=1.0)),
    "factorize a convolution for outputs": Row(
        Factorize(rank=4, fit="outputs"), conv, images, Factorize(ratio=1.0, fit="outputs")
    ),
    "factorize by Tucker": Row(
        Factorize(ratio=0.5, conv="tucker"), conv, images, Factorize(energy=1.0, conv="tucker")
    ),
    "cluster": Row(Cluster(levels=5), mlp, rows_of_numbers, Cluster(exclude=("*",))),
    "cluster by channel": Row(Cluster(levels=4, per="channel"), conv, images, Cluster(exclude=("*",))),
    "mask": Row(Mask(sparsity=0.7), mlp, rows_of_numbers, Mask(sparsity=0.0)),
    "mask over all layers": Row(Mask(sparsity=0.7, scope="global"), conv, images, Mask(sparsity=0.0)),
    "mask by inputs": Row(Mask(sparsity=0.5, by="inputs"), conv, images, Mask(sparsity=0.0, by="inputs")),
    "mask 2:4": Row(Mask(pattern="2:4"), mlp, rows_of_numbers, Mask(pattern="2:4", exclude=("*",))),
    "bake": Row(Bake(), clustered, rows_of_numbers, lossless=0.0),
    "merge": Row(Merge(), conv, images, Merge(what=()), lossless=1e-5),
    "depth": Row(Depth(count=1), mlp, rows_of_numbers, Depth(ratio=0.0)),
    "merge units": Row(MergeUnits(ratio=0.3), mlp, rows_of_numbers, MergeUnits(ratio=0.0)),
    "merge channels": Row(MergeUnits(ratio=0.3), conv, images, MergeUnits(exclude=("*",))),
    "prune": Row(Prune(ratio=0.3), mlp, rows_of_numbers, Prune(ratio=0.0)),
    "prune to a target": Row(Prune(criterion="taylor", macs=0.5), conv, images, Prune(macs=1.0)),
    "prune by activations": Row(
        Prune(criterion="activation", ratio=0.4, scope="layer"), conv, images, Prune(criterion="activation", ratio=0.0)
    ),
    "vocabulary": Row(
        Vocabulary(keep=(0, 49)), TiedText, words, Vocabulary(exclude=("*",)),
    ),
    "features by permutation": Row(
        Features(by="permutation", tolerance=0.5, rounds=2), mlp, rows_of_numbers, Features(by="permutation", most=0.0)
    ),
    "features by ablation": Row(
        Features(by="ablation", tolerance=0.5), mlp, rows_of_numbers, Features(by="ablation", most=0.0)
    ),
}  # fmt: skip


def base_of(name):
    """The network of a row; for `bake`, what stands before it."""
    return seeded(ROWS[name].model)
