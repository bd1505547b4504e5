"""The plainest correct formula of each loss: what a good engineer writes in a few lines of torch.

They are what `losses.py` measures beside: right on ordinary inputs, without refusals and without care at the edges.
"as released" stands for the form of the authors' code, written anew, where that holds more than it has to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

T = 2.0
"""The temperature, where there is one, so that both sides divide by it."""


# The plainest correct formulas ----------------------------------------------------------------------------------------


def log_both(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return (s / T).log_softmax(-1), (t / T).log_softmax(-1)


def both(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return (s / T).softmax(-1), (t / T).softmax(-1)


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q), mean over rows."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def reverse_kl(s: Tensor, t: Tensor) -> Tensor:
    log_s, log_t = log_both(s, t)
    return T**2 * divergence(log_t, log_s)


def jsd(s: Tensor, t: Tensor, beta: float = 0.5) -> Tensor:
    log_s, log_t = log_both(s, t)
    log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log(1 - beta))
    return T**2 * (beta * divergence(log_m, log_t) + (1 - beta) * divergence(log_m, log_s))


def skew_kl(s: Tensor, t: Tensor, alpha: float = 0.1) -> Tensor:
    log_s, log_t = log_both(s, t)
    return T**2 * divergence(torch.logaddexp(log_t + math.log(alpha), log_s + math.log(1 - alpha)), log_t)


def skew_reverse_kl(s: Tensor, t: Tensor, alpha: float = 0.1) -> Tensor:
    log_s, log_t = log_both(s, t)
    return T**2 * divergence(torch.logaddexp(log_s + math.log(alpha), log_t + math.log(1 - alpha)), log_s)


def total_variation(s: Tensor, t: Tensor) -> Tensor:
    p_s, p_t = both(s, t)
    return T**2 * (p_s - p_t).abs().sum(-1).mean() / 2


def alpha_beta(s: Tensor, t: Tensor, a: float = 0.2, b: float = 0.7) -> Tensor:
    p_s, p_t = both(s, t)
    inner = p_t**a * p_s**b - a / (a + b) * p_t ** (a + b) - b / (a + b) * p_s ** (a + b)
    return -(T**2) * inner.sum(-1).mean() / (a * b)


def mse_probabilities(s: Tensor, t: Tensor) -> Tensor:
    p_s, p_t = both(s, t)
    return T**2 * (p_s - p_t).square().sum(-1).mean()


def dist(s: Tensor, t: Tensor) -> Tensor:
    def apart(a: Tensor, b: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)).mean()

    p_s, p_t = both(s, t)
    return T**2 * (apart(p_s, p_t) + apart(p_s.T, p_t.T))


def mlkd(s: Tensor, t: Tensor) -> Tensor:
    total = torch.zeros(())
    for heat in (2.0, 3.0, 4.0, 5.0, 6.0):
        log_s, log_t = (s / heat).log_softmax(-1), (t / heat).log_softmax(-1)
        p_s, p_t = log_s.exp(), log_t.exp()
        by_sample = F.mse_loss(p_s @ p_s.T, p_t @ p_t.T, reduction="sum") / len(s)
        by_class = F.mse_loss(p_s.T @ p_s, p_t.T @ p_t, reduction="sum") / s.shape[1]
        total = total + heat**2 * divergence(log_s, log_t) + by_sample + by_class
    return total


def dkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    true = F.one_hot(y, s.shape[1]).bool()
    own_s, own_t = (x.gather(1, y[:, None]) for x in both(s, t))
    target = divergence(torch.cat([own_s, 1 - own_s], 1).log(), torch.cat([own_t, 1 - own_t], 1).log())
    others = divergence(*((x / T).masked_fill(true, -1000.0).log_softmax(1) for x in (s, t)))
    return T**2 * (target + 8 * others)


def nkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    true = F.one_hot(y, s.shape[1]).bool()
    own = t.softmax(1).gather(1, y[:, None]) * s.log_softmax(1).gather(1, y[:, None])
    rest_s, rest_t = ((x / T).masked_fill(true, -1000.0) for x in (s, t))
    return -own.mean() + 1.5 * T**2 * F.cross_entropy(rest_s, rest_t.softmax(1))


def attention(s: Tensor, t: Tensor) -> Tensor:
    return F.mse_loss(*(F.normalize(x.pow(2).mean(1).flatten(1)) for x in (s, t)))


def nst(s: Tensor, t: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (s, t))
    own = (s @ s.mT).square().mean() + (t @ t.mT).square().mean()
    return own - 2 * (s @ t.mT).square().mean()


def nst_released(s: Tensor, t: Tensor) -> Tensor:
    """All pairs of channels unfolded over their positions."""
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (s, t))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).square().mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def fsp(s1: Tensor, t1: Tensor, s2: Tensor, t2: Tensor) -> Tensor:
    flow_s, flow_t = (a.flatten(2) @ b.flatten(2).mT / a[0, 0].numel() for a, b in ((s1, s2), (t1, t2)))
    return F.mse_loss(flow_s, flow_t)


def activation_boundary(s: Tensor, t: Tensor) -> Tensor:
    return torch.where(t > 0, 1 - s, 1 + s).relu().square().sum() / len(s)


def variational(mean: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    variance = (F.softplus(log_scale) + 1e-5)[:, None, None]
    return ((mean - target).square() / variance + variance.log()).mean() / 2


SIZES = ((1, 4), (2, 2), (3, 1))  # power of a half, side of the pooled map


def review(s1: Tensor, t1: Tensor, s2: Tensor, t2: Tensor) -> Tensor:
    total = torch.zeros(())
    for s, t in ((s1, t1), (s2, t2)):
        parts = [F.mse_loss(s, t)]
        parts += [F.mse_loss(F.adaptive_avg_pool2d(s, n), F.adaptive_avg_pool2d(t, n)) / 2**i for i, n in SIZES]
        total = total + sum(parts) / 1.875
    return total


def similarity(s: Tensor, t: Tensor) -> Tensor:
    return F.mse_loss(F.normalize(s @ s.T), F.normalize(t @ t.T))


def relative(x: Tensor, *, by_products: bool = False) -> Tensor:
    apart = torch.cdist(x, x) if by_products else (x[:, None] - x).norm(dim=-1)
    return apart / apart[apart > 0].mean()


def rkd_distance(s: Tensor, t: Tensor) -> Tensor:
    return F.smooth_l1_loss(relative(s), relative(t))


def rkd_distance_products(s: Tensor, t: Tensor) -> Tensor:
    return F.smooth_l1_loss(relative(s, by_products=True), relative(t, by_products=True))


def rkd_angle(s: Tensor, t: Tensor) -> Tensor:
    ways = (F.normalize(x[None] - x[:, None], dim=2) for x in (s, t))
    return F.smooth_l1_loss(*(x @ x.mT for x in ways))


def pkt(s: Tensor, t: Tensor) -> Tensor:
    near = ((F.normalize(x) @ F.normalize(x).T + 1) / 2 for x in (s, t))
    p_s, p_t = (x / x.sum(1, keepdim=True) for x in near)
    return (p_t * ((p_t + 1e-7) / (p_s + 1e-7)).log()).mean()


def correlation(s: Tensor, t: Tensor) -> Tensor:
    apart = (s - t).abs()
    return (apart[:-1] * apart[1:]).sum(1).mean()


def cka(s: Tensor, t: Tensor) -> Tensor:
    grams = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (s, t))
    return 1 - F.cosine_similarity(*(g.flatten() for g in grams), dim=0)


def attention_relation(s: Tensor, t: Tensor, heads: int = 12) -> Tensor:
    def log_relations(x: Tensor) -> Tensor:
        x = x.unflatten(2, (heads, -1)).transpose(1, 2)
        return (x @ x.mT / x.shape[-1] ** 0.5).log_softmax(-1)

    return divergence(*(log_relations(x).flatten(0, 2) for x in (s, t)))


def info_nce(s: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(F.normalize(s) @ F.normalize(t).T / 0.07, torch.arange(len(s)))


def crd(s: Tensor, t: Tensor) -> Tensor:
    scores = F.normalize(s) @ F.normalize(t).T / 0.07
    scores = scores - (scores.detach().exp().mean() * (len(s) - 1)).log()
    own = torch.eye(len(s))
    return sum(F.binary_cross_entropy_with_logits(x, own, reduction="sum") / len(s) for x in (scores, scores.T))


def told_apart(own: Tensor, others: Tensor) -> Tensor:
    """One side of CRD with a memory, from similarities over temperature."""
    scores = torch.cat([own[:, None], others], 1)
    scores = scores - (scores.detach().exp().mean() * others.shape[1]).log()
    return -(F.logsigmoid(scores[:, 0]) + F.logsigmoid(-scores[:, 1:]).sum(1)).mean()


def crd_bank(s: Tensor, t: Tensor, kept_s: Tensor, kept_t: Tensor) -> Tensor:
    s, t, kept_s, kept_t = (F.normalize(x) for x in (s, t, kept_s, kept_t))
    own = (s * t).sum(1) / 0.07
    return told_apart(own, s @ kept_t.T / 0.07) + told_apart(own, t @ kept_s.T / 0.07)


def crd_bank_released(s: Tensor, t: Tensor, kept_s: Tensor, kept_t: Tensor) -> Tensor:
    """A copy of the chosen memories for each sample, as when each has draws of its own."""
    s, t, kept_s, kept_t = (F.normalize(x) for x in (s, t, kept_s, kept_t))
    drawn = torch.arange(len(kept_s)).repeat(len(s))
    total = torch.zeros(())
    for x, kept in ((s, kept_t), (t, kept_s)):
        others = (kept[drawn].view(len(x), -1, x.shape[1]) @ x[:, :, None])[..., 0]
        total = total + told_apart((s * t).sum(1) / 0.07, others / 0.07)
    return total


def uld(s: Tensor, t: Tensor) -> Tensor:
    return (torch.sub(*(x.sort(-1, descending=True).values for x in both(s, t)))).abs().sum(-1).mean()


def topk_kl(s: Tensor, ids: Tensor, log_t: Tensor) -> Tensor:
    def with_rest(x: Tensor) -> Tensor:
        return torch.cat([x, torch.log1p(-x.exp().sum(-1, keepdim=True))], -1)

    return divergence(with_rest(s.log_softmax(-1).gather(-1, ids)), with_rest(log_t))


def linear_kl(s: Tensor, weight_s: Tensor, t: Tensor, weight_t: Tensor) -> Tensor:
    return divergence((s @ weight_s.T).log_softmax(-1), (t @ weight_t.T).log_softmax(-1))


def squared_error(s: Tensor, y: Tensor) -> Tensor:
    return torch.where(y.isnan(), 0.0, s - y).square().mean()


def bounded_error(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    error, bound = (torch.where(y.isnan(), 0.0, x - y).square() for x in (s, t))
    return torch.where(error > bound, error, 0.0).mean()


# What is measured -----------------------------------------------------------------------------------------------------
