from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from limbeck.data.draws import Draws, uniform


def splitmix(state):
    """The published step, in Python's unbounded integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_uniform_is_splitmix64_as_published():
    golden, ids = 0x9E3779B97F4A7C15, [0, 1, 7, 2**40]
    got = uniform(torch.tensor(ids), seed=5, view=2, streams=3)
    key = splitmix((splitmix((5 + golden) % 2**64) ^ 3 * golden) % 2**64)
    for column, number in enumerate(ids):
        word = splitmix(number * golden % 2**64 ^ key)
        for row in range(3):
            assert got[row, column] == (splitmix((word + (row + 1) * golden) % 2**64) >> 11) / 2**53


def test_uniform_looks_uniform_and_its_streams_views_and_seeds_unrelated():
    ids = torch.arange(20_000)
    draws = torch.cat([uniform(ids, seed=s, view=v, streams=3) for s in (0, 1) for v in (0, 1)]).numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert all(stats.kstest(row, "uniform").pvalue > 1e-4 for row in draws)
    off = np.corrcoef(draws) - np.eye(len(draws))
    assert abs(off).max() < 0.035
    assert abs(np.corrcoef(draws[0, :-1], draws[0, 1:])[0, 1]) < 0.035


def test_named_streams_are_uniform_and_unrelated_to_each_other_and_to_the_numbered_ones():
    ids = torch.arange(20_000) * 3
    draws = [Draws(ids, seed=s, view=v) for s in (0, 1) for v in (0, 1)]
    rows = np.stack([d.named(name) for d in draws for name in ("rotate", "erase", "hue")] + list(draws[0].counted(5)))
    assert rows.min() >= 0
    assert rows.max() < 1
    assert all(stats.kstest(row, "uniform").pvalue > 1e-4 for row in rows)
    assert abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 0.035


def test_a_stream_is_known_by_its_name_alone_and_by_each_sample_alone():
    ids = torch.tensor([5, 2**40, 0, 7])
    draws = Draws(ids, seed=9, view=4)
    first = draws.named("a")
    draws.named("b")
    draws.counted(3)
    assert (draws.named("a") == first).all()
    assert (Draws(ids[[3, 1]], seed=9, view=4).named("a") == first[[3, 1]]).all()
    assert (draws.counted(5)[:3] == draws.counted(3)).all()
    assert (uniform(ids, seed=9, view=4, streams=5).numpy() == draws.counted(5)).all()


def test_different_ids_have_different_words():
    words = Draws(torch.arange(100_000), seed=0, view=0).words("partner")
    assert len(np.unique(words)) == 100_000
