from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from limbeck.data.draws import Draws
from limbeck.data.mix import Mixing, beta_quantile, digest_ids, draw_mix, mix_images, mix_labels, partners

KINDS = (Mixing("mixup", 0.8), Mixing("cutmix", 1.0))


@pytest.mark.parametrize("parameter", [0.01, 0.1, 0.2, 0.5, 0.8, 1.0, 1.5, 2.0, 8.0, 50.0, 1000.0, 1e6])
def test_shares_are_the_quantiles_of_the_beta_distribution(parameter):
    u = np.concatenate([np.linspace(0, 1, 20_001)[1:-1], [1e-9, 1 - 1e-9, 1e-4]])
    want = stats.beta.ppf(u, parameter, parameter)
    np.testing.assert_allclose(beta_quantile(u, parameter), want, atol=1e-6)


def test_a_parameter_near_zero_leaves_one_of_the_two_whole():
    share = beta_quantile(np.linspace(0.001, 0.999, 998), 1e-6)
    assert np.minimum(share, 1 - share).max() < 1e-4
    assert abs(share.mean() - 0.5) < 0.01


@given(
    ids=st.lists(st.integers(0, 2**50), min_size=1, max_size=40, unique=True), view=st.integers(0, 9), data=st.data()
)
@settings(max_examples=60)
def test_partners_are_one_ring_of_all_ids_in_any_order_of_them(ids, view, data):
    ids = torch.tensor(ids)
    partner = partners(ids, seed=3, view=view)
    order = torch.tensor(data.draw(st.permutations(range(len(ids)))))
    assert torch.equal(ids[order][partners(ids[order], seed=3, view=view)], ids[partner][order])
    seen, at = [], 0
    for _ in ids:
        seen.append(at)
        at = int(partner[at])
    assert at == 0
    assert sorted(seen) == list(range(len(ids)))


def test_partners_are_uniform_over_the_others():
    ids = torch.tensor([3, 10, 4, 90, 7])
    counts = np.zeros((5, 5))
    for view in range(4000):
        counts[np.arange(5), partners(ids, seed=0, view=view).numpy()] += 1
    assert (counts.diagonal() == 0).all()
    off = counts[~np.eye(5, dtype=bool)]
    assert stats.chisquare(off).pvalue > 1e-4
    assert not torch.equal(partners(torch.arange(50), seed=0, view=0), partners(torch.arange(50), seed=1, view=0))


def test_a_sample_that_is_there_twice_has_one_partner():
    ids = torch.tensor([5, 8, 5, 9])
    partner = ids[partners(ids, seed=0, view=0)]
    alone = torch.tensor([5, 8, 9])
    other = alone[partners(alone, seed=0, view=0)]
    assert partner.tolist() == [other[0], other[1], other[0], other[2]]
    assert digest_ids(ids) == digest_ids(torch.tensor([9, 8, 5])) != digest_ids(torch.tensor([9, 8]))


@given(how=st.sampled_from(KINDS), order=st.permutations(range(9)), cut=st.integers(1, 8), view=st.integers(0, 4))
@settings(max_examples=30)
def test_share_and_box_are_each_samples_own(how, order, cut, view):
    ids, index = torch.arange(9) * 5, torch.tensor(order)
    whole = draw_mix(ids, how, seed=1, view=view, height=8, width=6)
    parts = [draw_mix(ids[i], how, seed=1, view=view, height=8, width=6) for i in (index[:cut], index[cut:])]
    assert (np.concatenate([part.share for part in parts]) == whole.share[order]).all()
    own, other = torch.rand(9, 3, 8, 6), torch.rand(9, 3, 8, 6)
    mixed = mix_images(own, other, whole)
    pieces = [mix_images(own[i], other[i], part) for i, part in zip((index[:cut], index[cut:]), parts, strict=True)]
    assert torch.equal(torch.cat(pieces), mixed[index])


def test_a_box_is_as_large_as_its_share_says_and_lies_where_it_was_drawn():
    ids, how = torch.arange(500), Mixing("cutmix", 1.0)
    mix = draw_mix(ids, how, seed=4, view=1, height=9, width=12)
    draws = Draws(ids, seed=4, view=1)
    lam = stats.beta.ppf(draws.named("cutmix share"), 1, 1)
    own, other = torch.zeros(500, 2, 9, 12), torch.ones(500, 2, 9, 12)
    got = mix_images(own, other, mix)
    rows, columns = draws.named("cutmix row"), draws.named("cutmix column")
    for i in range(500):
        tall, wide = int(9 * (1 - lam[i]) ** 0.5), int(12 * (1 - lam[i]) ** 0.5)
        want = np.zeros((9, 12))
        for r in range(int(rows[i] * 9) - tall // 2, int(rows[i] * 9) - tall // 2 + tall):
            for c in range(int(columns[i] * 12) - wide // 2, int(columns[i] * 12) - wide // 2 + wide):
                if 0 <= r < 9 and 0 <= c < 12:
                    want[r, c] = 1
        assert (got[i, 0].numpy() == want).all()
        assert (got[i, 1].numpy() == want).all()
        assert mix.share[i] == pytest.approx(1 - want.mean())


def test_mixup_is_the_weighted_sum():
    ids = torch.arange(40)
    mix = draw_mix(ids, Mixing("mixup", 0.4), seed=0, view=0, height=3, width=4)
    want = stats.beta.ppf(Draws(ids, seed=0, view=0).named("mixup share"), 0.4, 0.4)
    own, other = torch.rand(40, 3, 3, 4), torch.rand(40, 3, 3, 4)
    share = want[:, None, None, None]
    got = mix_images(own, other, mix)
    np.testing.assert_allclose(got.numpy(), own.numpy() * share + other.numpy() * (1 - share), atol=2e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)


@given(
    y=st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), min_size=1, max_size=12),
    how=st.sampled_from(KINDS),
    view=st.integers(0, 9),
)
@settings(max_examples=40)
def test_mixed_labels_sum_to_what_is_known_and_weigh_as_the_pixels_do(y, how, view):
    own, other = torch.tensor(y).T
    mix = draw_mix(torch.arange(len(y)), how, seed=1, view=view, height=8, width=6)
    soft = mix_labels(own, other, mix, 4)
    for i, (mine, theirs) in enumerate(y):
        want = np.zeros(4)
        if mine >= 0:
            want[mine] += mix.share[i]
            if theirs >= 0:
                want[theirs] += 1 - mix.share[i]
        np.testing.assert_allclose(soft[i].numpy(), want, atol=1e-6)
    # Images that are constant at a number of their own: the share of the pixels is the share of the label.
    flat = torch.arange(len(y)).double().view(-1, 1, 1, 1).expand(-1, 3, 8, 6)
    want = mix.share * np.arange(len(y)) + (1 - mix.share) * (np.arange(len(y)) + 7)
    np.testing.assert_allclose(mix_images(flat, flat + 7, mix).mean((1, 2, 3)).numpy(), want)


def test_soft_labels_are_mixed_as_they_are():
    own, other, eye = torch.arange(3), torch.tensor([2, 0, 1]), torch.eye(3)
    mix = draw_mix(own, Mixing("mixup", 1.0), seed=0, view=0, height=1, width=1)
    assert torch.allclose(mix_labels(eye, eye[other], mix, 3), mix_labels(own, other, mix, 3))
