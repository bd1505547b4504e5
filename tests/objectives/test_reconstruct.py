"""Losses whose head predicts, fuses or fills in, and those heads."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.core.taps import Reader
from limbeck.objectives.makers import Fuse, Masked
from limbeck.objectives.reconstruct import (
    MaskedGenerative,
    Review,
    Variational,
    masked_generative,
    review,
    variational,
)
from limbeck.train.student import Student

RNG = np.random.default_rng(3)


class Stages(nn.Module):
    """Three maps, each half the size of the one before, and logits."""

    def __init__(self, *widths):
        super().__init__()
        self.a = nn.Conv2d(3, widths[0], 3, padding=1)
        self.b = nn.Conv2d(widths[0], widths[1], 3, padding=1, stride=2)
        self.c = nn.Conv2d(widths[1], widths[2], 3, padding=1, stride=2)
        self.linear = nn.Linear(widths[2], 5)

    def forward(self, x):
        return self.linear(self.c(self.b(self.a(x).relu()).relu()).mean((2, 3)))


BATCH = {"x": torch.randn(6, 3, 10, 8), "valid": torch.ones(6, dtype=torch.bool)}


def taught(term, *, size=None, seed=0):
    """A student with the term's heads, and the signal of a teacher."""
    torch.manual_seed(seed)
    reader = Reader(Stages(5, 7, 6), taps=("a", "b", "c", "linear"))
    batch = {"x": torch.randn(6, 3, *size)} if size else BATCH
    with torch.no_grad():
        signal = reader(batch)
    return Student.build(Stages(4, 6, 8), (term,), BATCH, signal), signal


TERMS = {
    "variational": Variational(student="b", teacher="b"),
    "variational, vectors": Variational(student="linear", teacher="linear"),
    "review": Review(student=("a", "b", "c"), teacher=("a", "b", "c")),
    "masked positions": MaskedGenerative(student="b", teacher="b"),
    "masked channels": MaskedGenerative(student="c", teacher="b", ratio=0.15, mask="channels"),
}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


def test_variational_is_the_likelihood_under_a_gaussian_less_a_constant():
    mean, target, scale = RNG.normal(size=(3, 4, 2, 5)), RNG.normal(size=(3, 4, 2, 5)), RNG.normal(size=4)
    hand = np.zeros(3)
    for b, c, i, j in np.ndindex(*mean.shape):
        variance = math.log1p(math.exp(scale[c])) + 1e-5
        density = math.exp(-((mean[b, c, i, j] - target[b, c, i, j]) ** 2) / (2 * variance))
        density /= math.sqrt(2 * math.pi * variance)
        hand[b] -= (math.log(density) + math.log(2 * math.pi) / 2) / mean[0].size
    m, s, t = (torch.from_numpy(x) for x in (mean, scale, target))
    np.testing.assert_allclose(variational(m, s, t, reduction="none").numpy(), hand)
    tokens = variational(m.flatten(2).mT, s, t.flatten(2).mT, reduction="none")
    np.testing.assert_allclose(tokens.numpy(), hand)
    vectors = variational(m[:, :, 0, 0], s, t[:, :, 0, 0], reduction="none")
    np.testing.assert_allclose(vectors.numpy(), variational(m[..., :1, :1], s, t[..., :1, :1], reduction="none"))


def test_for_a_given_variance_a_right_guess_costs_least_and_the_best_variance_is_the_error_s():
    target = torch.randn(50, 3, dtype=torch.float64)
    scale = torch.zeros(3, dtype=torch.float64)
    least = variational(target, scale, target)
    assert torch.allclose(least, torch.tensor(math.log(math.log(2) + 1e-5) / 2).double())
    assert variational(target + 0.01, scale, target) > least
    mean = target + torch.tensor([0.1, 1.0, 3.0]) * torch.randn(50, 3)
    scale.requires_grad_()
    optimizer = torch.optim.LBFGS([scale], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = variational(mean, scale, target)
        value.backward()
        return value

    optimizer.step(closure)
    variance = nn.functional.softplus(scale.detach()) + 1e-5
    assert torch.allclose(variance, (mean - target).square().mean(0), rtol=1e-4)


def review_by_hand(s, t):
    """Each pair's weights are 1, then half the one before for each grid that is coarser than the map."""
    total = np.zeros(len(s[0]))
    for a, b in zip(s, t, strict=True):
        parts, weights = [((a - b) ** 2).mean((1, 2, 3))], [1.0]
        for size in (4, 2, 1):
            if size < min(a.shape[2:]):
                cells = []
                for i, j in np.ndindex(size, size):
                    rows = slice(i * a.shape[2] // size, -(-(i + 1) * a.shape[2] // size))
                    columns = slice(j * a.shape[3] // size, -(-(j + 1) * a.shape[3] // size))
                    gap = a[:, :, rows, columns].mean((2, 3)) - b[:, :, rows, columns].mean((2, 3))
                    cells.append((gap**2).mean(1))
                parts.append(np.mean(cells, 0))
                weights.append(weights[-1] / 2)
        total += sum(p * w for p, w in zip(parts, weights, strict=True)) / sum(weights)
    return total


@pytest.mark.parametrize("sizes", [[(8, 6)], [(4, 4), (3, 7)], [(1, 1)], [(9, 2), (2, 2), (5, 5)]])
def test_review_compares_maps_and_their_averages(sizes):
    s, t = ([RNG.normal(size=(3, 2 + i, *size)) for i, size in enumerate(sizes)] for _ in range(2))
    value = review([torch.from_numpy(x) for x in s], [torch.from_numpy(x) for x in t], reduction="none")
    np.testing.assert_allclose(value.numpy(), review_by_hand(s, t))


def test_masked_generative_is_a_sum_over_everything_but_the_batch():
    a, b = RNG.normal(size=(3, 4, 5, 6)), RNG.normal(size=(3, 4, 5, 6))
    value = masked_generative(torch.from_numpy(a), torch.from_numpy(b), reduction="none")
    np.testing.assert_allclose(value.numpy(), ((a - b) ** 2).sum((1, 2, 3)))


SCALE = torch.tensor([0.5, -1.0, 2.0])
LOSSES = {
    "variational": lambda s, t, **k: variational(s, SCALE, t, **k),
    "review": lambda s, t, **k: review([s, s[..., 1:]], [t, t[..., 1:]], **k),
    "masked_generative": masked_generative,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@every_loss
def test_the_gradient_is_exact_a_step_reduces_the_loss_and_it_compiles_whole(loss):
    s, t = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 4, 5).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, t), s)
    value = loss(s, t)
    (grad,) = torch.autograd.grad(value, s)
    assert loss(s - 1e-3 * grad, t) < value
    assert loss(s, t, reduction="none").shape == (2,)
    assert torch.allclose(loss(s.to(memory_format=torch.channels_last), t), value)
    assert torch.allclose(torch.compile(loss, fullgraph=True, backend="aot_eager")(s, t), value)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_odd_input_is_finite_and_half_precision_is_close_to_double(loss, dtype):
    for fill in (0.0, 1e4, -1e4):
        s = torch.full((1, 3, 4, 5), fill, dtype=dtype, requires_grad=True)
        value = loss(s, torch.full((1, 3, 4, 5), 1e4, dtype=dtype))
        value.backward()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert torch.isfinite(s.grad).all()
    s, t = torch.randn(2, 3, 4, 5).to(dtype), torch.randn(2, 3, 4, 5).to(dtype)
    assert torch.allclose(loss(s, t).double(), loss(s.double(), t.double()), rtol=1e-4)


@pytest.mark.parametrize("fill", [-1e4, 0.0, 1e4])
def test_no_scale_is_too_small_or_too_large(fill):
    scale = torch.full((3,), fill, requires_grad=True)
    value = variational(torch.full((2, 3), 1e4), scale, torch.full((2, 3), -1e4))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(scale.grad).all()
    gradient = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: variational(torch.ones(2, 3), x, torch.zeros(2, 3)), gradient)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: variational(torch.ones(2, 3), torch.ones(3), torch.ones(2, 4)),
        lambda: variational(torch.ones(2, 3), torch.ones(2), torch.ones(2, 3)),
        lambda: variational(torch.ones(3), torch.ones(3), torch.ones(3)),
        lambda: review([torch.ones(2, 3, 4, 4)], []),
        lambda: review([], []),
        lambda: review([torch.ones(2, 3, 4, 4)], [torch.ones(2, 3, 4, 5)]),
        lambda: review([torch.ones(2, 3)], [torch.ones(2, 3)]),
        lambda: masked_generative(torch.ones(2, 3), torch.ones(2, 4)),
        lambda: Review(student=("a",), teacher=("b", "c")),
        lambda: Review(student=(), teacher=()),
        lambda: Review(student="a", teacher="b"),
        lambda: MaskedGenerative(student="a", teacher="b", ratio=1.0),
        lambda: MaskedGenerative(student="a", teacher="b", mask="pixels"),
        lambda: Variational(student="a", teacher="b", weight=-1.0),
        lambda: taught(Review(student=("linear",), teacher=("a",))),
        lambda: taught(MaskedGenerative(student="a", teacher="linear")),
        lambda: taught(Variational(student="linear", teacher="a")),
    ],
)
def test_what_cannot_be_is_refused_with_a_mend(bad):
    with pytest.raises(ValueError, match=r"(.|\n)*To mend"):
        bad()


@every_term
def test_b07_b11_everything_in_the_head_is_trained_and_training_reduces_the_loss(term):
    student, signal = taught(term)
    parameters = dict(student.heads.named_parameters())
    assert parameters
    if isinstance(term, Variational):
        assert any(name.endswith("log_scale") for name in parameters)
        assert torch.allclose(nn.functional.softplus(parameters["0.log_scale"]) + 1e-5, torch.tensor(5.0))
    before = copy.deepcopy(student.state_dict())
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    values = []
    for _ in range(15):
        value = term(student(BATCH, signal), signal, BATCH)
        assert value.shape == (6,)
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
        values.append(float(value.detach().mean()))
    still = [n for n, p in student.heads.named_parameters() if torch.equal(p, before[f"heads.{n}"])]
    assert not still
    assert sum(values[-4:]) < sum(values[:4])
    fresh, _ = taught(term, seed=1)
    fresh.load_state_dict(student.state_dict())
    with torch.no_grad():
        one, other = (term(s.eval()(BATCH, signal), signal, BATCH) for s in (student, fresh))
    assert torch.equal(one, other)


@every_term
def test_the_head_gives_the_teacher_s_shapes_whatever_the_size_of_the_teacher_s_maps(term):
    student, signal = taught(term, size=(14, 6))
    assert torch.isfinite(term(student(BATCH, signal), signal, BATCH)).all()
    assert term.needs().student <= set(student(BATCH))


@every_term
def test_heads_compile_whole_and_run_in_half_precision(term):
    student, signal = taught(term)
    inner = {k: v.detach() for k, v in student(BATCH).items()}
    head = student.heads[0].eval()
    for name, made in torch.compile(head, fullgraph=True, backend="aot_eager")(inner, signal, BATCH).items():
        assert torch.allclose(made, head(inner, signal, BATCH)[name], atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        value = term(student(BATCH, signal), signal, BATCH)
    assert value.dtype == torch.float32
    assert torch.isfinite(value).all()


def test_review_lets_the_deep_reach_the_shallow_and_not_the_other_way():
    term = TERMS["review"]
    student, signal = taught(term)
    fusion = student.heads[0]
    inner = {k: v.detach().requires_grad_() for k, v in student(BATCH).items()}
    made = fusion(inner, signal, BATCH)
    for i, name in enumerate(term.made):
        grads = torch.autograd.grad(
            made[name].square().sum(), [inner[k] for k in "abc"], allow_unused=True, retain_graph=True
        )
        assert [g is not None for g in grads] == [j >= i for j in range(3)]


def test_fuse_weighs_both_maps_at_each_position_by_hand():
    torch.manual_seed(0)
    fuse = Fuse(3, 4, 5, deepest=False).eval()
    x, deeper = torch.randn(2, 3, 6, 4), torch.randn(2, 4, 3, 2)
    on, out = fuse(x, deeper, torch.Size((3, 2)))
    with torch.no_grad():
        narrow = fuse.narrow(x)
        weights, bias = fuse.share[0].weight[:, :, 0, 0], fuse.share[0].bias
        for i, j in np.ndindex(6, 4):
            both = torch.cat([narrow[:, :, i, j], deeper[:, :, i // 2, j // 2]], 1)
            share = 1 / (1 + (-(both @ weights.T + bias)).exp())
            hand = share[:, :1] * narrow[:, :, i, j] + share[:, 1:] * deeper[:, :, i // 2, j // 2]
            if i % 2 == j % 2 == 0:
                assert torch.allclose(on[:, :, i // 2, j // 2], hand, atol=1e-5)
        assert torch.allclose(out, fuse.widen(on))


@pytest.mark.parametrize(("mask", "axes"), [("positions", (1,)), ("channels", (2, 3))])
def test_masks_take_whole_positions_or_channels_in_training_only(mask, axes):
    (request,) = MaskedGenerative(student="s", teacher="t", ratio=0.3, mask=mask).heads()
    masked = Masked(request)
    x = torch.randn(300, 40, 7, 5) + 10
    torch.manual_seed(5)
    out = masked(x)
    gone = out == 0
    assert torch.equal(gone, gone.all(axes, keepdim=True).expand_as(gone))
    assert torch.equal(out[~gone], x[~gone])
    assert float(gone.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert not torch.equal(masked(x) == 0, gone)
    torch.manual_seed(5)
    assert torch.equal(masked(x), out)
    assert masked.eval()(x) is x


def test_the_probe_masks_nothing_and_leaves_the_random_state():
    student, signal = taught(TERMS["masked positions"])
    state = torch.random.get_rng_state()
    one, other = student.probe(BATCH, signal), student.probe(BATCH, signal)
    name = TERMS["masked positions"].made
    assert torch.equal(one[name], other[name])
    assert torch.equal(torch.random.get_rng_state(), state)
