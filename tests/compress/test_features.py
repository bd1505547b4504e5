"""Columns that say nothing are found and left out; what is left answers as well, and the data keeps its columns."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from limbeck.compress import Evidence, Features, apply, features, kept_columns, plan
from limbeck.compress.features import Selected, _at_most, loss_increase
from limbeck.core.errors import ConfigError, DataError

USEFUL, USELESS = 10, 30


def table(seed=0, n=600):
    """Ten columns that decide the class and thirty that do not, in mixed order; some of those follow one another."""
    chance = np.random.default_rng(seed)
    place = np.random.default_rng(99).permutation(USEFUL + USELESS)
    x = chance.normal(size=(n, USEFUL + USELESS))
    x[:, 20:25] = x[:, 25:30] + 0.1 * chance.normal(size=(n, 5))
    x[:, 30:35] = chance.integers(0, 3, size=(n, 5))
    logit = x[:, :5].sum(1) - x[:, 5:USEFUL].sum(1)
    y = logit > 0
    mixed = np.empty_like(x)
    mixed[:, place] = x + 3.0  # no mean is zero, so that what a column gave on average matters
    return torch.tensor(mixed, dtype=torch.float32), torch.tensor(y).long(), set(place[:USEFUL].tolist())


def evidence(x, y, size=200):
    batches = [{"x": x[i : i + size], "y": y[i : i + size]} for i in range(0, len(x), size)]
    return Evidence(batch={k: v[:8] for k, v in batches[0].items()}, batches=lambda: iter(batches))


@pytest.fixture(scope="module")
def fitted():
    x, y, useful = table()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x, y, useful


def accuracy(model, x, y):
    with torch.no_grad():
        return float((model(x).argmax(-1) == y).float().mean())


@pytest.mark.parametrize(
    "op",
    [Features(undecided="drop"), Features(by="permutation", tolerance=0.1, rounds=5)],
    ids=lambda op: op.by,
)
def test_thirty_useless_columns_are_found_and_quality_holds(op, fitted):
    model, x, y, useful = fitted
    found = plan(model, op, evidence(x, y))
    kept = set(kept_columns(found)["1"])
    assert kept == useful
    small = apply(model, found)
    x_new, y_new, _ = table(seed=1, n=2_000)
    assert accuracy(small, x_new, y_new) >= accuracy(model, x_new, y_new) - 0.005
    assert found.after.parameters == found.before.parameters - 32 * (40 - len(kept))
    assert isinstance(small[1], Selected)


def test_a_column_goes_or_stays_by_how_often_it_beats_the_shadows(fitted, monkeypatch):
    model, x, y, _ = fitted
    hits = np.full(40, 20.0)
    hits[:6] = [0, 2, 3, 17, 18, 20]
    monkeypatch.setattr(features, "shadow_hits", lambda *_, **__: (hits, hits))
    for undecided, gone in (("keep", {0, 1}), ("drop", {0, 1, 2, 3})):
        op = Features(undecided=undecided, rounds=20)
        p = [binomtest(int(h), 20, 0.5, alternative="less" if undecided == "keep" else "greater").pvalue for h in hits]
        shown = {c for c in range(40) if p[c] <= 0.05 / 40}
        assert gone == (shown if undecided == "keep" else set(range(40)) - shown)
        assert set(range(40)) - set(kept_columns(plan(model, op, evidence(x, y)))["1"]) == gone


@pytest.mark.parametrize("by", ["permutation", "ablation"])
def test_what_the_loss_rises_by_is_as_by_hand(by, fitted):
    model, x, y, _ = fitted
    rise, loss = loss_increase(model, evidence(x, y), "x", rounds=40, shuffled=by == "permutation")
    cross = nn.CrossEntropyLoss(reduction="none")
    with torch.no_grad():
        base = cross(model(x).double(), y)
        assert loss == pytest.approx(float(base.mean()), rel=1e-6)
        for column in (0, 7, 21):
            if by == "ablation":
                other = x.clone()
                other[:, column] = x[:, column].double().mean()
                expected, error = float((cross(model(other).double(), y) - base).mean()), 1e-5
            else:  # every partner in turn, which is what shuffling does on average
                rises = []
                for shift in range(1, 200, 10):
                    other = x.clone()
                    for i in range(0, 600, 200):
                        other[i : i + 200, column] = x[i : i + 200, column].roll(shift)
                    rises.append(float((cross(model(other).double(), y) - base).mean()))
                expected, error = np.mean(rises), 6 * np.std(rises) / math.sqrt(20) + 1e-4
            assert rise[column] == pytest.approx(expected, abs=error)


def test_what_a_column_gave_on_average_goes_to_the_bias(fitted):
    model, x, y, _ = fitted
    found = plan(model, Features(by="ablation", tolerance=0.2), evidence(x, y))
    small = apply(model, found)
    gone = [c for c in range(40) if c not in kept_columns(found)["1"]]
    held = x.clone()
    held[:, gone] = x[:, gone].mean(0)
    assert gone
    assert torch.allclose(small(x), model(held), atol=1e-4)


def test_at_most_so_many_go_and_the_least_important_first(fitted):
    model, x, y, _ = fitted
    rise, _ = loss_increase(model, evidence(x, y), "x", rounds=1, shuffled=False)
    found = plan(model, Features(by="ablation", tolerance=0.2, most=0.1), evidence(x, y))
    gone = {c for c in range(40) if c not in kept_columns(found)["1"]}
    assert gone == set(np.argsort(rise)[:4].tolist())
    never = plan(model, Features(by="ablation", tolerance=1e9), evidence(x, y))
    assert len(kept_columns(never)["1"]) == 1


def test_every_layer_that_reads_the_table_is_cut_and_one_without_bias_gets_one():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(40, 4, bias=False), nn.Linear(40, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(torch.relu(self.a(x))) + self.b(x)

    x, y, _ = table(n=200)
    torch.manual_seed(0)
    model = Wide().eval()
    found = plan(model, Features(by="ablation", tolerance=0.01), evidence(x, y))
    small = apply(model, found)
    assert [change.at for change in found.changes] == ["a", "b"]
    assert small.a[1].bias is not None
    assert found.after.parameters == sum(p.numel() for p in small.parameters())


def test_a_network_that_does_something_else_with_the_table_is_left_alone():
    x, y, _ = table(n=200)
    model = nn.Sequential(nn.BatchNorm1d(40), nn.Linear(40, 2)).eval()
    found = plan(model, Features(by="ablation"), evidence(x, y))
    assert found.changes == ()
    assert "no linear layer reads 'x'" in found.left[0].why


def test_numbers_as_labels_are_judged_by_squared_error():
    x, _, useful = table(n=400)
    y = x[:, sorted(useful)].sum(1)
    model = nn.Sequential(nn.Linear(40, 1)).eval()
    model[0].weight.data = torch.zeros(1, 40)
    model[0].weight.data[0, sorted(useful)] = 1.0
    model[0].bias.data.zero_()
    found = plan(model, Features(by="permutation", tolerance=0.01, rounds=2), evidence(x, y + 0.1))
    assert set(kept_columns(found)["0"]) == useful


def test_the_test_of_the_shadows_is_the_binomial_one():
    for hits, rounds in ((0, 20), (3, 20), (10, 15)):
        assert _at_most(hits, rounds) == pytest.approx(binomtest(hits, rounds, 0.5, alternative="less").pvalue)


def test_data_that_is_no_table_and_settings_that_mean_nothing_are_refused(fitted):
    model, x, y, _ = fitted
    with pytest.raises(DataError, match="no column 'table'"):
        plan(model, Features(column="table"), evidence(x, y))
    with pytest.raises(ConfigError, match="needs labels"):
        plan(model, Features(), Evidence(batch={"x": x[:4]}, batches=lambda: iter([{"x": x[:4]}])))
    for wrong in ({"most": 1.5}, {"alpha": 0.0}, {"rounds": 0}, {"tolerance": -1.0}, {"tolerance": float("nan")}):
        with pytest.raises(ConfigError, match="To mend"):
            Features(**wrong)
