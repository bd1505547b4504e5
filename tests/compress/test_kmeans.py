"""One-dimensional k-means finds what trying everything finds, and no worse than scikit-learn on many values."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from limbeck.compress.kmeans import kmeans_1d


def inertia(values, centres):
    return float(np.min((values[:, None] - centres[None]) ** 2, axis=1).sum())


def best_of_all(values, k):
    """The least inertia over all ways to cut sorted values into k runs."""
    values = np.sort(values)
    cuts = ((0, *cut, len(values)) for cut in combinations(range(1, len(values)), k - 1))
    return min(sum(((p := values[a:b]) - p.mean()) @ (p - p.mean()) for a, b in pairwise(c)) for c in cuts)


@settings(max_examples=60)
@given(st.lists(st.floats(-100, 100, width=16), min_size=5, max_size=11), st.integers(1, 4))
def test_few_values_are_clustered_as_well_as_can_be(values, k):
    values = np.array(values)
    centres = kmeans_1d(values, k)
    assert len(centres) <= k
    assert (np.diff(centres) > 0).all()
    assert inertia(values, centres) <= best_of_all(values, k) + 1e-6


@pytest.mark.parametrize("k", [4, 16, 64])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "two peaks"])
def test_many_values_are_clustered_no_worse_than_by_scikit_learn(kind, k):
    chance = np.random.default_rng(0)
    values = {
        "normal": chance.normal(size=20_000),
        "heavy tails": chance.standard_t(3, size=20_000),
        "two peaks": np.concatenate([chance.normal(-3, 0.1, 15_000), chance.normal(3, 1, 5_000)]),
    }[kind]
    theirs = KMeans(k, n_init=2, random_state=0, max_iter=300).fit(values[:, None]).inertia_
    assert inertia(values, kmeans_1d(values, k)) <= theirs * 1.01


def test_no_more_centres_than_values():
    assert kmeans_1d(np.array([2.0, 1.0, 2.0]), 16).tolist() == [1.0, 2.0]
    assert kmeans_1d(np.array([5.0]), 2).tolist() == [5.0]


def test_values_far_from_zero_lose_no_digits():
    values = 1e8 + np.array([0.0, 1e-3, 1.0, 1.001])
    assert np.allclose(kmeans_1d(values, 2) - 1e8, [0.0005, 1.0005], rtol=0, atol=1e-6)


def test_each_centre_is_the_mean_of_what_is_nearest_to_it():
    values = np.random.default_rng(1).normal(size=5_000)
    centres = kmeans_1d(values, 12)
    nearest = np.abs(values[:, None] - centres[None]).argmin(1)
    assert np.allclose(centres, [values[nearest == i].mean() for i in range(12)], rtol=0, atol=1e-12)
