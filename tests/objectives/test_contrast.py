"""Losses by contrast, against loops over the formulas."""

import math

import numpy as np
import pytest
import torch

from limbeck.objectives import contrast
from limbeck.objectives.contrast import crd, info_nce

LOSSES = {"info_nce": info_nce, "crd": crd}


def pair(b=5, d=4, *, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(b, d, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))


def unit(x):
    return x / np.sqrt((x**2).sum(1, keepdims=True))


def by_search(s, t, more, allowed, tau):
    """InfoNCE, candidate by candidate."""
    s, t, more = unit(s), unit(t), unit(more)
    out = []
    for i, a in enumerate(s):
        every = [math.exp(a @ b / tau) for b in t]
        every += [math.exp(a @ b / tau) for b, ok in zip(more, allowed[i], strict=True) if ok]
        out.append(-math.log(math.exp(a @ t[i] / tau) / sum(every)))
    return out


def by_noise(anchors, own, others, allowed, tau, z=None):
    """One side of CRD with probabilities, as in the paper: h = x / (x + m) where x = exp(cos / τ) / Z."""
    anchors, own, others = unit(anchors), unit(own), unit(others)
    right = [math.exp(a @ b / tau) for a, b in zip(anchors, own, strict=True)]
    wrong = [[math.exp(a @ b / tau) for b in others[row]] for a, row in zip(anchors, allowed, strict=True)]
    z = z if z is not None else np.mean(right + [x for row in wrong for x in row])
    out = []
    for x, noise in zip(right, wrong, strict=True):
        m = max(len(noise), 1)
        out.append(-math.log(x / z / (x / z + m)) - sum(math.log(m / (y / z + m)) for y in noise))
    return np.array(out)


ALLOWED = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]]).bool()


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_info_nce_is_the_formula(tau):
    s, t = pair()
    more = pair(3, 4, seed=1)[0]
    n, no, yes = (s.numpy(), t.numpy(), more.numpy()), np.zeros((5, 3), bool), np.ones((5, 3), bool)
    call = lambda **given: info_nce(s, t, temperature=tau, reduction="none", **given)  # noqa: E731
    np.testing.assert_allclose(call(), by_search(*n, no, tau), atol=1e-12)
    np.testing.assert_allclose(call(negatives=more), by_search(*n, yes, tau), atol=1e-12)
    np.testing.assert_allclose(call(negatives=more, allowed=ALLOWED), by_search(*n, ALLOWED.numpy(), tau), atol=1e-12)


@pytest.mark.parametrize("z", [None, 3.0])
def test_b12_crd_without_a_bank_takes_the_rest_of_the_batch(z):
    s, t = pair()
    n, others = (s.numpy(), t.numpy()), ~np.eye(5, dtype=bool)
    oracle = by_noise(*n, n[1], others, 0.3, z) + by_noise(n[1], n[0], n[0], others, 0.3, z)
    value = crd(s, t, temperature=0.3, log_normalizer=None if z is None else math.log(z), reduction="none")
    np.testing.assert_allclose(value, oracle)


@pytest.mark.parametrize("z", [None, 3.0])
def test_crd_with_a_bank_holds_each_side_against_the_other_s_memory(z):
    s, t = pair()
    kept = pair(3, 4, seed=1)
    n, bank = (s.numpy(), t.numpy()), [x.numpy() for x in kept]
    log_z = None if z is None else torch.tensor(z).log()
    for allowed in (None, ALLOWED):
        mask = np.ones((5, 3), bool) if allowed is None else allowed.numpy()
        oracle = by_noise(*n, bank[1], mask, 0.3, z) + by_noise(n[1], n[0], bank[0], mask, 0.3, z)
        value = crd(s, t, negatives=kept, allowed=allowed, temperature=0.3, log_normalizer=log_z, reduction="none")
        np.testing.assert_allclose(value, oracle, rtol=1e-6)


def test_a_single_sample_has_only_itself():
    s, t = (x.requires_grad_() for x in pair(1))
    assert info_nce(s, t) == 0
    assert crd(s, t).item() == pytest.approx(2 * math.log(2))
    crd(s, t).backward()
    assert torch.isfinite(s.grad).all()
    assert s.grad.abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_reductions_order_and_scale(name):
    s, t = pair()
    each = LOSSES[name](s, t, reduction="none")
    assert torch.allclose(LOSSES[name](s, t), each.mean())
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.allclose(LOSSES[name](s[order], t[order], reduction="none"), each[order])
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    assert torch.allclose(LOSSES[name](5 * s @ turn, t @ turn / 3, reduction="none"), each)
    assert (each > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_s_own_vectors_cost_least(name):
    t = torch.eye(4)
    right = LOSSES[name](t, t)
    assert right < LOSSES[name](t.roll(1, 0), t)
    assert torch.allclose(right, LOSSES[name](3 * t, t))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("b", [1, 2, 5])
def test_the_gradient_is_exact(name, b):
    """Of CRD with its normaliser given: without, the normaliser is taken without gradient."""
    s, t = (x.requires_grad_() for x in pair(b))
    given = {"temperature": 0.5, **({"log_normalizer": 0.3} if name == "crd" else {})}
    assert torch.autograd.gradcheck(lambda a, b: LOSSES[name](a, b, **given), (s, t))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["zero", "same", "huge", "one zero"])
def test_finite_with_finite_gradient_at_extremes(name, dtype, case):
    s = {
        "zero": torch.zeros(4, 3),
        "same": torch.full((4, 3), 0.1),
        "huge": torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [-1e4, 0.0, 0.0]]),
        "one zero": torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0], [0.0, -1.0, 1.0]]),
    }[case].to(dtype)
    for t in (s.clone(), -s, s.flip(0)):
        s = s.detach().clone().requires_grad_()
        value = LOSSES[name](s, t, temperature=0.01, reduction="none")
        assert value.dtype == torch.float32
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_and_autocast_lose_nothing(name):
    s, t = pair(dtype=torch.float16)
    value = LOSSES[name](s, t)
    assert torch.allclose(value.double(), LOSSES[name](s.double(), t.double()), rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LOSSES[name](s, t), value)


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_and_maps_are_averaged(name):
    s, t = torch.randn(3, 4, 2, 5), torch.randn(3, 4, 6)
    value = LOSSES[name](s, t.transpose(1, 2))
    assert torch.allclose(value, LOSSES[name](s.mean((2, 3)), t.mean(2)))


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_fit_is_refused(name):
    s, t = pair()
    for left, right, given in [
        (s, t[:4], {}),
        (s, t[:, :3], {}),
        (s, t, {"temperature": 0.0}),
        (s, t, {"allowed": ALLOWED}),
    ]:
        with pytest.raises(ValueError, match="To mend"):
            LOSSES[name](left, right, **given)


@pytest.mark.parametrize("name", LOSSES)
def test_it_compiles_whole(name):
    s, t = pair()
    more = pair(3, 4, seed=1)
    whole = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    assert torch.allclose(whole(s, t), LOSSES[name](s, t))
    given = {"negatives": more if name == "crd" else more[0], "allowed": ALLOWED}
    assert torch.allclose(whole(s, t, **given), LOSSES[name](s, t, **given))


def test_only_losses_are_functions_of_the_family():
    assert {name for name in contrast.__all__ if name.islower()} == set(LOSSES)
