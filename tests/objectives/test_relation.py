"""Losses on relations, against loops over the formulas."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from limbeck.objectives.relation import (
    CKA,
    PKT,
    RKD,
    Correlation,
    Similarity,
    cka,
    correlation,
    pkt,
    rkd,
    rkd_angle,
    rkd_distance,
    similarity,
)

LOSSES = {
    "similarity": similarity,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "rkd": rkd,
    "pkt": pkt,
    "correlation": correlation,
    "correlation (paper)": lambda s, t, **k: correlation(s, t, form="paper", **k),
    "cka": cka,
}
WIDE = [name for name in LOSSES if name != "correlation"]
TERMS = [Similarity, RKD, PKT, Correlation, CKA]


def pair(b=5, narrow=3, wide=3, *, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(b, d, generator=g, dtype=torch.float64).to(dtype) for d in (narrow, wide))


def turn(d, seed=0):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


def smooth_l1(a, b):
    gap = abs(a - b)
    return gap - 0.5 if gap >= 1 else 0.5 * gap * gap


def relative(x):
    d = np.array([[math.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
    return d / d[d > 0].mean()


def by_distance(s, t):
    b, (ds, dt) = len(s), (relative(s), relative(t))
    return [sum(smooth_l1(ds[i, j], dt[i, j]) for j in range(b)) / b for i in range(b)]


def angle(x, i, j, k):
    a, b = x[i] - x[j], x[k] - x[j]
    sides = math.sqrt((a**2).sum()), math.sqrt((b**2).sum())
    return 0.0 if 0 in sides else (a / sides[0]) @ (b / sides[1])


def by_angle(s, t):
    b = len(s)
    pairs = list(product(range(b), repeat=2))
    return [sum(smooth_l1(angle(s, i, j, k), angle(t, i, j, k)) for i, k in pairs) / b**2 for j in range(b)]


def by_similarity(s, t):
    grams = []
    for x in (s, t):
        g = np.array([[a @ b for b in x] for a in x])
        grams.append(g / np.sqrt((g**2).sum(1, keepdims=True)))
    return ((grams[0] - grams[1]) ** 2).sum(1) / len(s)


def cosines(x):
    return np.array([[a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for b in x] for a in x])


def by_probability(s, t):
    p, q = ((1 + cosines(x)) / 2 for x in (t, s))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return (p * np.log((p + 1e-7) / (q + 1e-7))).mean(1)


def by_kernel(s, t, gamma=0.4, order=2):
    k = [
        sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines(x) ** p for p in range(order + 1))
        for x in (s, t)
    ]
    return ((k[0] - k[1]) ** 2).mean(1)


def by_alignment(s, t):
    """HSIC with the centring matrix written out."""
    h = np.eye(len(s)) - 1 / len(s)
    k, m = h @ s @ s.T @ h, h @ t @ t.T @ h
    return [1 - np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m))] * len(s)


ORACLES = {
    "similarity": by_similarity,
    "rkd_distance": by_distance,
    "rkd_angle": by_angle,
    "rkd": lambda s, t: 25 * np.array(by_distance(s, t)) + 50 * np.array(by_angle(s, t)),
    "pkt": by_probability,
    "correlation (paper)": by_kernel,
    "cka": by_alignment,
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("shape", [(5, 3, 4), (4, 6, 2), (2, 3, 3), (3, 12, 9), (9, 2, 3)])
def test_it_is_the_formula(name, shape):
    s, t = pair(*shape)
    np.testing.assert_allclose(LOSSES[name](s, t, reduction="none"), ORACLES[name](s.numpy(), t.numpy()), atol=1e-12)
    assert torch.allclose(LOSSES[name](s, t), LOSSES[name](s, t, reduction="none").mean())


def test_correlation_as_released_is_a_mean_over_neighbouring_pairs():
    s, t = pair()
    apart = np.abs(s.numpy() - t.numpy())
    pairs = [apart[i] @ apart[i + 1] for i in range(4)]
    assert float(correlation(s, t)) == pytest.approx(np.mean(pairs))
    each = correlation(s, t, reduction="none")
    assert float(each[0]) == pytest.approx(pairs[0] / 2 * 5 / 4)
    assert float(each[2]) == pytest.approx((pairs[1] + pairs[2]) / 2 * 5 / 4)
    assert correlation(s[:1], t[:1]) == 0


def test_the_kernel_takes_its_gamma_and_order():
    s, t = pair(5, 3, 4)
    value = correlation(s, t, form="paper", gamma=0.7, order=4, reduction="none")
    np.testing.assert_allclose(value, by_kernel(s.numpy(), t.numpy(), 0.7, 4))


def test_both_roads_to_cka_agree():
    s, t = pair(6, 4, 3)
    few, many = cka(s, t), cka(torch.cat([s, s, s]), torch.cat([t, t, t]))  # 6·7 > 37: by features in both
    padded = cka(torch.cat([s, torch.zeros(6, 40, dtype=s.dtype)], 1), t)  # by samples
    assert torch.allclose(few, padded)
    assert torch.allclose(few, many)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_at_equality_and_above_it_elsewhere(name):
    s, t = pair()
    assert LOSSES[name](s, s.clone(), reduction="none").abs().max() < 1e-12
    assert (LOSSES[name](s, t, reduction="none") > 0).all()


@pytest.mark.parametrize("name", WIDE)
def test_the_order_of_the_batch_does_not_matter(name):
    s, t = pair(5, 3, 4)
    order = torch.tensor([3, 0, 4, 2, 1])
    value = LOSSES[name](s, t, reduction="none")
    assert torch.allclose(LOSSES[name](s[order], t[order], reduction="none"), value[order])


@pytest.mark.parametrize("name", WIDE)
def test_blind_to_a_turn(name):
    s, t = pair(5, 3, 4)
    assert torch.allclose(LOSSES[name](s @ turn(3), t @ turn(4)), LOSSES[name](s, t))


@pytest.mark.parametrize("name", WIDE)
def test_blind_to_scale(name):
    s, t = pair(5, 3, 4)
    assert torch.allclose(LOSSES[name](7 * s, t / 9), LOSSES[name](s, t))


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle", "rkd", "cka"])
def test_blind_to_a_shift(name):
    s, t = pair(5, 3, 4)
    assert torch.allclose(LOSSES[name](s + 3, t - 5), LOSSES[name](s, t))


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("rkd_distance", 1),
        ("rkd_angle", 1),
        ("rkd", 1),
        ("correlation (paper)", 1),
        ("cka", 1),
        ("similarity", 0.5),
        ("pkt", 0.5),
    ],
)
def test_what_a_duplicated_batch_does(name, factor):
    s, t = pair(5, 3, 4)
    twice = LOSSES[name](torch.cat([s, s]), torch.cat([t, t]))
    assert torch.allclose(twice, factor * LOSSES[name](s, t), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 3, 3), (4, 3, 3), (9, 2, 2)])
def test_the_gradient_is_exact(name, shape):
    s, t = pair(*shape)
    t.requires_grad_(name != "correlation")
    assert torch.autograd.gradcheck(LOSSES[name], (s.requires_grad_(), t))


HARD = {
    "one sample": torch.tensor([[1.0, -2.0, 3.0]]),
    "identical samples": torch.tensor([[0.1, -0.2, 0.3]]).repeat(5, 1),
    "two alike": torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.5, 0.0, 1.0]]),
    "all zero": torch.zeros(4, 3),
    "one zero": torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0], [0.0, -1.0, 1.0]]),
    "huge": torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [-1e4, 0.0, 0.0]]),
    "opposite": torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [2.0, 4.0, 6.0]]),
    "hardly apart": torch.tensor([[0.0, 0.0, 0.0], [1e-22, 0.0, 0.0], [1.0, 0.0, 0.0]]),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_with_finite_gradient_where_relations_are_undefined(name, case, dtype):
    """RKD with one or with identical samples, PKT of zero features: where mean distances and norms are 0."""
    hard = HARD[case].to(dtype)
    easy = torch.randn(hard.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for s, t in ((hard, easy), (easy, hard), (hard, hard)):
        s = s.clone().requires_grad_()
        value = LOSSES[name](s, t, reduction="none")
        assert value.dtype == torch.float32
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("name", ["rkd", "rkd_distance", "rkd_angle"])
def test_rkd_of_identical_samples_is_zero(name):
    same = torch.full((4, 3), 0.1)
    assert LOSSES[name](same, same + 1) == 0
    assert LOSSES[name](same[:1], same[:1] + 1) == 0


def test_pkt_of_zero_features_takes_all_for_neighbours_alike():
    t = pair(4)[1]
    p = (1 + cosines(t.numpy())) / 2
    p /= p.sum(1, keepdims=True)
    value = pkt(torch.zeros(4, 3, dtype=torch.float64), t)
    assert float(value) == pytest.approx((p * np.log((p + 1e-7) / (0.25 + 1e-7))).mean())


def test_pkt_survives_cosines_that_round_below_minus_one():
    s = torch.ones(2, 10007) * torch.tensor([[1.0], [-1.0]])
    t = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(pkt(s, t))
    assert torch.isfinite(pkt(t, s))


def test_cka_is_one_where_only_one_side_tells_samples_apart():
    t = torch.randn(7, 3)
    for width in (1, 3, 30):
        flat = torch.full((7, width), 0.1)  # whose mean rounds
        assert cka(flat, t) == 1
        assert cka(t, flat) == 1
        assert cka(flat, flat + 2) == 0


def test_cka_sees_small_differences_on_a_large_constant():
    s, t = pair(6, 4, 3, dtype=torch.float32)
    s = (s * 64).round() / 64
    assert torch.allclose(cka(s + 2**16, t), cka(s, t), atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_maps_and_tokens_are_rows(name):
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(4, 2, 3, 3, generator=g) for _ in range(2))
    assert torch.equal(LOSSES[name](s, t), LOSSES[name](s.flatten(1), t.flatten(1)))


@pytest.mark.parametrize("name", LOSSES)
def test_other_samples_are_refused(name):
    s, t = pair()
    with pytest.raises(ValueError, match=r"student is .*, teacher is(.|\n)*To mend"):
        LOSSES[name](s, t[:4])
    with pytest.raises(ValueError, match="To mend"):
        LOSSES[name](s[:, 0], t[:, 0])


def test_correlation_as_released_refuses_other_widths():
    with pytest.raises(ValueError, match="To mend"):
        correlation(*pair(5, 3, 4))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name):
    s, t = pair(8, 6, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = LOSSES[name](s, t)
    assert torch.equal(value, LOSSES[name](s, t))


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_close_to_double(name):
    s, t = pair(8, 6, 6, dtype=torch.float16)
    assert torch.allclose(LOSSES[name](s, t).double(), LOSSES[name](s.double(), t.double()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cls", TERMS)
def test_a_term_is_its_formula_on_the_valid_samples(cls):
    term = cls(student="a", teacher="b", head="none")
    assert hash(term) == hash(cls(student="a", teacher="b", head="none"))
    s, t = pair()
    loss = cls.formula(s, t, reduction="none")
    assert torch.equal(term({"a": s}, {"b": t}, {"valid": torch.ones(5, dtype=torch.bool)}), loss)
    valid = torch.tensor([True, False, True, True, True])
    s = s.clone()
    s[1] = torch.nan
    value = term({"a": s}, {"b": t}, {"valid": valid})
    assert torch.allclose(value[valid], cls.formula(s[valid], t[valid], reduction="none"))
    assert value[1] == 0


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (RKD, {"distance": -1.0}),
        (RKD, {"angle": -1.0}),
        (Correlation, {"form": "book"}),
        (Correlation, {"order": 0}),
        (Correlation, {"gamma": -0.1}),
        (CKA, {"head": "conv"}),
    ],
)
def test_impossible_settings_are_refused(cls, settings):
    with pytest.raises(ValueError, match="To mend"):
        cls(student="a", teacher="b", **settings)


def test_without_angles_rkd_is_the_distances():
    s, t = pair()
    assert torch.allclose(rkd(s, t, distance=3.0, angle=0.0), 3 * rkd_distance(s, t), rtol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_it_compiles_whole(name):
    loss = LOSSES[name]
    s, t = (torch.randn(4, 3, 2) for _ in range(2))
    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(whole(s, t), loss(s, t))
