"""Recurrent and attention classifiers shrink to half their width, inherit, and are distilled, on made-up sentences."""

import pytest
import torch
from torch import nn

import limbeck as lb

WORDS, LENGTH, CLASSES = 20, 8, 4


class Reader(nn.Module):
    """An embedding, layers, and the mean over words."""

    def __init__(self, kind):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 24)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, 24))
        if kind == "lstm":
            self.body = nn.LSTM(24, 32, batch_first=True)
        else:
            layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True)
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32 if kind == "lstm" else 24, CLASSES)

    def forward(self, x):
        found = self.body(self.embed(x) + self.position)
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


def sentences(samples, seed):
    """The class is how often the word 1 comes before a word 2 later on, up to three."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 6, (samples, LENGTH), generator=generator)
    later = (x == 2).flip(1).cumsum(1).flip(1) > 0
    return x, ((x == 1) & later).sum(1).clamp_max(CLASSES - 1)


SETTINGS = {"batch_size": 64, "optimizer": lb.Optimizer(name="AdamW", rate=4e-3), "progress": False}


@pytest.mark.parametrize("kind", ["lstm", pytest.param("encoder", marks=pytest.mark.slow)])
def test_it_starts_better_than_random_and_ends_better(kind):
    torch.manual_seed(0)
    teacher = Reader(kind)
    train, test = sentences(1500, 0), sentences(500, 1)
    taught = lb.distill(teacher, None, train=train, test=test, epochs=14, **SETTINGS)
    assert taught.scores["student"]["accuracy"] > 0.9
    accuracy, first = {}, {}
    for arm in ("random", "inherited"):
        student = lb.transfer.shrink(teacher, width=0.5, seed=1)
        if arm == "inherited":
            assert lb.transfer.inherit(student, teacher, width="project", data=train).share == 1
        first[arm] = lb.evaluate(student, test)["accuracy"]
        run = lb.distill(student, teacher, train=train, test=test, epochs=2, **SETTINGS)
        accuracy[arm] = run.scores["student"]["accuracy"]
    cuts = lb.transfer.outline(student).cuts
    assert all(2 * cut.kept == cut.total for cut in cuts)
    assert student.embed.embedding_dim == 12
    assert {cut.of for cut in cuts} == ({"units"} if kind == "lstm" else {"heads", "units"})
    assert first["inherited"] > first["random"] + 0.1  # right more often; a cut network is also over-sure at first
    assert accuracy["inherited"] > accuracy["random"] + 0.05
