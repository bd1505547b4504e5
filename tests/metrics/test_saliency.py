"""Oracles: scipy on the positions that are used, counting by hand, and laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine as cosine_distance
from scipy.stats import spearmanr

from limbeck.core.errors import ConfigError, DataError, ShapeError
from limbeck.metrics.saliency import comparable, cosine, rank_correlation, top_overlap


@st.composite
def map_pairs(draw, ties=True):
    """Two maps [N, H, W] in small whole numbers, with ties and positions that neither uses, or without ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 6)))
    if ties:
        return tuple(torch.tensor(rng.integers(-2, 3, size=shape).astype(np.float32)) for _ in range(2))
    return tuple(torch.tensor(rng.normal(size=shape)) for _ in range(2))


def used(a, b):
    a, b = a.double().flatten().numpy(), b.double().flatten().numpy()
    return a[(a != 0) | (b != 0)], b[(a != 0) | (b != 0)]


@given(map_pairs())
def test_rank_correlation_equals_scipy_over_the_used_positions(pair):
    ours, known = rank_correlation(*pair), comparable(*pair)
    for value, whether, a, b in zip(ours, known, *pair, strict=True):
        x, y = used(a, b)
        varies = len(set(x)) > 1 and len(set(y)) > 1
        assert bool(whether) == varies
        if varies:
            assert float(value) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
        else:
            assert value.isnan()


@given(map_pairs())
def test_cosine_equals_scipy(pair):
    for value, a, b in zip(cosine(*pair), *pair, strict=True):
        if a.any() and b.any():
            expected = 1 - cosine_distance(a.double().flatten(), b.double().flatten())
            assert float(value) == pytest.approx(expected, abs=1e-12)
        else:
            assert value.isnan()


@given(map_pairs(ties=False), st.sampled_from([0.05, 0.1, 0.3, 0.5, 1.0]))
def test_overlap_equals_counting_where_nothing_is_tied(pair, share):
    for value, a, b in zip(top_overlap(*pair, share=share), *pair, strict=True):
        x, y = used(a, b)
        k = next(k for k in range(1, len(x) + 1) if k >= share * len(x) - 1e-9)
        strongest = [set(sorted(range(len(v)), key=v.__getitem__)[-k:]) for v in (x, y)]
        assert float(value) == pytest.approx(len(strongest[0] & strongest[1]) / k, abs=1e-12)


def test_overlap_counts_only_used_positions_and_shares_tied_places():
    a = torch.zeros(1, 100)
    a[0, :10] = torch.arange(10.0) + 1
    b = a.clone()
    b[0, 9] = 0.5  # 10 positions are used: the strongest of them is another one
    assert top_overlap(a, b).item() == 0.0
    tied = torch.tensor([[3.0, 3.0, 3.0, 1.0]])
    sure = torch.tensor([[9.0, 1.0, 1.0, 1.0]])
    assert top_overlap(tied, sure, share=0.25).item() == pytest.approx(1 / 3)
    assert top_overlap(tied, tied, share=0.25).item() == 1.0
    assert top_overlap(torch.tensor([[-9.0, 1.0, 0.5]]), torch.tensor([[1.0, 9.0, 0.5]]), share=0.3).item() == 1.0


@given(map_pairs(), st.integers(0, 2**31))
def test_laws(pair, seed):
    a, b = pair
    n = len(a)
    for measure in (rank_correlation, cosine, top_overlap):
        value, known = measure(a, b), comparable(a, b)
        assert ((value.abs() <= 1) | value.isnan()).all()
        assert torch.equal(value, measure(b, a)) or torch.allclose(value, measure(b, a), equal_nan=True)
        assert torch.allclose(measure(a * 7, b / 3), value, equal_nan=True)
        alone = torch.cat([measure(a[i : i + 1], b[i : i + 1]) for i in range(n)])
        assert torch.allclose(alone, value, equal_nan=True)
        order = torch.randperm(a[0].numel(), generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(measure(a.flatten(1)[:, order], b.flatten(1)[:, order]), value, equal_nan=True)
        assert (measure(a, a)[comparable(a, a)] == 1.0).all()
        if measure is not top_overlap:
            assert torch.allclose(measure(-a, b)[known], -value[known], atol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_a_map_equals_itself_at_any_scale(scale):
    a = torch.randn(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale
    for measure in (rank_correlation, cosine, top_overlap):
        assert measure(a, a).tolist() == [1.0] * 5
        assert torch.allclose(measure(a, a.flip(1)), measure(a / scale, a.flip(1) / scale))


def test_maps_that_know_nothing_of_each_other_are_at_chance():
    a, b = torch.randn(2, 300, 500, generator=torch.Generator().manual_seed(0))
    assert abs(rank_correlation(a, b).mean()) < 0.01
    assert abs(cosine(a, b).mean()) < 0.01
    assert top_overlap(a, b).mean() == pytest.approx(0.1, abs=0.01)
    assert top_overlap(a, b, share=0.4).mean() == pytest.approx(0.4, abs=0.01)


def test_a_border_that_no_map_uses_changes_no_rank_and_no_overlap():
    a, b = torch.randn(2, 20, 6, 6, generator=torch.Generator().manual_seed(0))
    wide = [torch.nn.functional.pad(v, (5, 5, 5, 5)) for v in (a, b)]
    for measure in (rank_correlation, cosine, top_overlap):
        assert torch.allclose(measure(*wide), measure(a, b), atol=1e-12)


def test_what_cannot_be_ranked_is_known_and_not_a_number():
    a = torch.tensor([[0.0, 0, 0], [2, 2, 2], [1, 2, 3], [0, 0, 5]])
    b = torch.tensor([[1.0, 2, 3], [1, 2, 3], [3, 2, 1], [0, 0, 1]])
    assert comparable(a, b).tolist() == [False, False, True, False]
    assert rank_correlation(a, b).isnan().tolist() == [True, True, False, True]
    assert cosine(a, b).isnan().tolist() == [True, False, False, False]
    assert top_overlap(a, b).isnan().tolist() == [True, False, False, False]


def test_what_cannot_be_compared_is_refused():
    for measure in (comparable, rank_correlation, cosine, top_overlap):
        with pytest.raises(ShapeError, match=r"one is \[2, 3\], the other \[2, 4\]"):
            measure(torch.zeros(2, 3), torch.zeros(2, 4))
        for shape in [(0, 3), (3, 0), (3,)]:
            with pytest.raises(DataError, match="at least one sample with at least one position"):
                measure(torch.zeros(shape), torch.zeros(shape))
        for odd in (math.nan, math.inf):
            with pytest.raises(DataError, match="those of 1 of 2 samples hold NaN or infinity"):
                measure(torch.ones(2, 2), torch.tensor([[1.0, 2], [odd, 1]]))
    for share in (0, 1.1, -1, math.nan):
        with pytest.raises(ConfigError, match="a share above 0"):
            top_overlap(torch.ones(1, 2), torch.ones(1, 2), share=share)
