"""Terms by contrast: their heads, and the memory that outlives a batch and a run that is cut."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.objectives.contrast import CRD, InfoNCE
from limbeck.train import checkpoint
from limbeck.train.student import Student

TERMS = [
    InfoNCE(student="layer", teacher="layer", bank=6),
    CRD(student="layer", teacher="layer", bank=6, width=3),
    InfoNCE(student="layer", teacher="layer"),
    CRD(student="layer", teacher="layer", width=3),
]
REMEMBERING = TERMS[:2]
name_of = lambda term: f"{term.kind}-{term.bank}"  # noqa: E731


def signals(b=4, *, seed=0, first=0):
    """A student of width 5, a teacher of width 7, and the batch."""
    g = torch.Generator().manual_seed(seed)
    batch = {"id": torch.arange(first, first + b), "valid": torch.ones(b, dtype=torch.bool)}
    return {"layer": torch.randn(b, 5, generator=g)}, {"layer": torch.randn(b, 7, generator=g)}, batch


def made(term, seed=0):
    torch.manual_seed(seed)
    s, t, _ = signals()
    return term.heads()[0](s, t)


def call(term, head, s, t, batch):
    return term({**s, **head(s, t, batch)}, t, batch)


@pytest.mark.parametrize("term", TERMS, ids=name_of)
def test_both_sides_are_brought_to_one_width(term):
    head = made(term)
    s, t, batch = signals()
    named = head(s, t, batch)
    width = 3 if term.kind == "crd" else 7
    assert named[term.projected].shape == named[f"{term.projected}:target"].shape == (4, width)
    assert term.needs().batch == ({"id"} if term.bank else set())
    value = call(term, head, s, t, batch)
    value.sum().backward()
    assert value.shape == (4,)
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in head.parameters())


def test_maps_are_averaged_before_they_are_mapped():
    term = CRD(student="layer", teacher="layer", width=3)
    s, t = {"layer": torch.randn(2, 5, 4, 4)}, {"layer": torch.randn(2, 7, 2, 2)}
    head = term.heads()[0](s, t)
    flat = {"layer": s["layer"].mean((2, 3))}, {"layer": t["layer"].mean((2, 3))}
    assert torch.allclose(head(s, t, {})[term.projected], head(*flat, {})[term.projected], atol=1e-6)


@pytest.mark.parametrize("cls", [InfoNCE, CRD])
def test_without_a_head_or_a_bank_vectors_are_compared_as_they_are(cls):
    term = cls(student="a", teacher="b", head="none", temperature=0.3)
    s, t = torch.randn(5, 4), torch.randn(5, 4)
    assert term.heads() == ()
    value = term({"a": s}, {"b": t}, {"valid": torch.ones(5, dtype=torch.bool)})
    assert torch.equal(value, cls.formula(s, t, temperature=0.3, reduction="none"))


@pytest.mark.parametrize("cls", [InfoNCE, CRD])
def test_heads_of_other_settings_have_other_names(cls):
    forms = [{"bank": 4}, {"bank": 8}, {"head": "mlp"}, {}]
    assert len({cls(student="a", teacher="b", **form).heads()[0].name for form in forms}) == 4
    assert cls(student="a", teacher="b").heads() == cls(student="a", teacher="b", weight=3.0).heads()


@pytest.mark.parametrize("term", REMEMBERING, ids=name_of)
def test_the_bank_is_a_queue_of_valid_samples_in_training_only(term):
    head = made(term)
    for i in range(3):
        s, t, batch = signals(seed=i, first=4 * i)
        batch["valid"] = torch.tensor([True, False, True, True])
        before = copy.deepcopy(head.state_dict())
        named = head(s, t, batch)
        assert torch.equal(named[f"{term.projected}:id"][0], before["bank.id"])
        assert torch.equal(named[f"{term.projected}:teacher"][0], before["bank.teacher"])
    assert head.bank.id.tolist() == [8, 10, 11, 4, 6, 7]
    assert head.bank.position == 3
    vectors = named[f"{term.projected}:target"]
    torch.testing.assert_close(head.bank.teacher[:3], nn.functional.normalize(vectors[[0, 2, 3]]))
    if term.kind == "crd":
        own = nn.functional.normalize(named[term.projected])
        torch.testing.assert_close(head.bank.student[:3], own[[0, 2, 3]])
    before = copy.deepcopy(head.state_dict())
    head.eval()
    head(*signals(seed=9, first=90))
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


@pytest.mark.parametrize("term", REMEMBERING, ids=name_of)
def test_a_batch_larger_than_the_bank_leaves_its_last_samples(term):
    head = made(term)
    head(*signals(3))
    head(*signals(10, first=10))
    assert sorted(head.bank.id.tolist()) == [14, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("term", REMEMBERING, ids=name_of)
def test_b14_positives_are_never_among_negatives(term):
    """A sample that comes back meets its earlier self in the bank; the empty places of the bank count for nothing."""
    head = made(term)
    head(*signals())
    s, t, batch = signals(seed=1)
    named = head(s, t, batch)
    ids = head.bank.id.clone()
    assert named[f"{term.projected}:id"].tolist() == [[0, 1, 2, 3, -1, -1]]
    value = term(named, t, batch)
    for i in range(4):
        rest = [k for k in range(4) if k != i]
        left, right = named[term.projected], named[f"{term.projected}:target"]
        kept = {side: named.get(f"{term.projected}:{side}") for side in ("student", "teacher")}
        if term.kind == "crd":
            given = {
                "negatives": (kept["student"][0, rest], kept["teacher"][0, rest]),
                "log_normalizer": named[f"{term.projected}:log_normalizer"],
            }
        else:
            given = {"negatives": kept["teacher"][0, rest]}
        alone = type(term).formula(left, right, **given, reduction="none")[i]
        torch.testing.assert_close(value[i], alone)
    assert torch.equal(ids, head.bank.id)


@pytest.mark.parametrize("term", REMEMBERING, ids=name_of)
def test_b14_one_sample_at_a_time_is_finite_and_keeps_its_shape(term):
    head = made(term)
    for i in range(8):
        value = call(term, head, *signals(1, seed=i, first=i % 5))
        value.sum().backward()
        assert value.shape == (1,)
        assert torch.isfinite(value).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("b", [2, 6])
@pytest.mark.parametrize("term", TERMS, ids=name_of)
def test_invalid_samples_are_cut_and_the_bank_is_not(term, b):
    """Even with as many samples as the bank has places, or sides."""
    head = made(term)
    head(*signals(5, seed=5, first=50))
    s, t, batch = signals(b)
    keep = torch.arange(b) != 1
    few = tuple({k: v[keep] for k, v in side.items()} for side in (s, t, batch))
    expected = call(term, copy.deepcopy(head), *few)
    s["layer"][1], batch["valid"] = torch.nan, keep
    value = call(term, head, s, t, batch)
    torch.testing.assert_close(value[keep], expected)
    assert value[1] == 0
    assert all(torch.isfinite(buffer).all() for buffer in head.buffers())


@pytest.mark.parametrize("term", REMEMBERING, ids=name_of)
def test_what_was_handed_out_is_not_written_to_before_the_gradient(term):
    head = made(term)
    head(*signals())
    first = call(term, head, *signals(seed=1, first=10))
    head(*signals(seed=2, first=20))  # the next micro-batch, before the gradient of the first
    first.sum().backward()
    assert not any(buffer.requires_grad for buffer in head.buffers())


def test_the_normaliser_is_that_of_the_first_batch_and_stays():
    term = CRD(student="layer", teacher="layer", bank=6, width=3, temperature=0.2)
    head = made(term)
    assert head.bank.log_normalizer.isnan()
    named = head.eval()(*signals())
    assert head.bank.log_normalizer.isnan()
    s, t = (
        nn.functional.normalize(named[key].detach()).numpy() for key in (term.projected, f"{term.projected}:target")
    )
    head.train()
    head(*signals())
    np.testing.assert_allclose(head.bank.log_normalizer, math.log(np.exp(s @ t.T / 0.2).mean()), rtol=1e-5)
    before = head.bank.log_normalizer.clone()
    head(*signals(seed=3))
    assert torch.equal(head.bank.log_normalizer, before)
    nothing = made(term)
    s, t, batch = signals()
    nothing(s, t, {**batch, "valid": torch.zeros(4, dtype=torch.bool)})
    assert nothing.bank.log_normalizer.isnan()
    assert nothing.bank.position == 0


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(3, width)
        self.out = nn.Linear(width, 2)

    def forward(self, x):
        return self.out(torch.relu(self.layer(x)))


def learner(term, seed):
    torch.manual_seed(seed)
    student = Student.build(Net(5), (term,), data(0), {"layer": torch.zeros(4, 7)})
    return student, torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)


def data(step):
    g = torch.Generator().manual_seed(step)
    ids = torch.randperm(9, generator=g)[:4]
    return {"x": torch.randn(4, 3, generator=g), "id": ids, "valid": torch.tensor([True, True, step % 2 == 0, True])}


def advance(term, student, optimizer, steps):
    for step in steps:
        batch = data(step)
        t = {"layer": torch.randn(4, 7, generator=torch.Generator().manual_seed(100 + step))}
        term(student(batch, t), t, batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("term", TERMS, ids=name_of)
def test_b14_a_resumed_run_is_the_uninterrupted_one_to_the_bit(term, tmp_path):
    """Through a checkpoint on disk: weights, the memory, its place, and the normaliser."""
    whole, optimizer = learner(term, 0)
    advance(term, whole, optimizer, range(6))
    cut, optimizer = learner(term, 0)
    advance(term, cut, optimizer, range(3))
    checkpoint.save(tmp_path, 3, cut, optimizer, {})
    fresh, optimizer = learner(term, 1)
    checkpoint.load(checkpoint.latest(tmp_path), fresh, optimizer)
    advance(term, fresh, optimizer, range(3, 6))
    one, other = whole.state_dict(), fresh.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert bool(term.bank) == any("bank" in key for key in one)
    for student in (whole, cut, fresh):
        student.close()


@pytest.mark.parametrize("term", REMEMBERING, ids=name_of)
def test_the_dry_run_leaves_the_memory_empty(term):
    student, _ = learner(term, 0)
    student.probe(data(0), {"layer": torch.zeros(4, 7)})
    assert (student.heads[0].bank.id == -1).all()
    student.close()


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (InfoNCE, {"bank": -1}),
        (InfoNCE, {"bank": 2.5}),
        (InfoNCE, {"temperature": 0.0}),
        (CRD, {"width": 0}),
        (CRD, {"temperature": -1.0}),
        (CRD, {"head": "conv"}),
    ],
)
def test_impossible_settings_are_refused(cls, settings):
    with pytest.raises(ValueError, match="To mend"):
        cls(student="a", teacher="b", **settings)
