"""KL from hidden states: the dense formula's numbers and gradients, without its memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.core.errors import ConfigError, ShapeError
from limbeck.objectives.divergence import kl
from limbeck.objectives.linear import LinearKL, linear_kl

TOKENS, WORDS, MORE, WIDTH, OTHER = 11, 13, 17, 4, 6


def sides(dtype=torch.float64, *, tokens=(TOKENS,), seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (*tokens, WIDTH), (WORDS, WIDTH), (*tokens, OTHER), (MORE, OTHER)
    given = [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]
    return [given[0].requires_grad_(), given[1].requires_grad_(), *given[2:]]


def dense(hidden, weight, teacher, teacher_weight, **settings):
    return kl(hidden @ weight.T, teacher @ teacher_weight[: len(weight)].T, **settings)


@pytest.mark.parametrize("chunk", [1, 4, 11, 256])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("scaling", ["squared", "none"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_the_dense_kl_and_so_is_its_gradient(chunk, temperature, scaling, reduction):
    given = sides()
    how = {"temperature": temperature, "temperature_scaling": scaling, "reduction": reduction}
    value, expected = linear_kl(*given, chunk=chunk, **how), dense(*given, **how)
    torch.testing.assert_close(value, expected)
    pull = torch.linspace(0.5, 2.0, TOKENS, dtype=torch.float64) if reduction == "none" else torch.tensor(1.7)
    got = torch.autograd.grad((value * pull).sum(), given[:2])
    torch.testing.assert_close(got, torch.autograd.grad((expected * pull).sum(), given[:2]))


@pytest.mark.parametrize("pull", ["same", "ragged", "zero"])
def test_the_gradient_is_exact_whatever_a_token_weighs(pull):
    weights = {"same": torch.full((TOKENS,), 0.3), "ragged": torch.arange(TOKENS) / 7.0, "zero": torch.zeros(TOKENS)}
    hidden, weight, *rest = sides()
    assert torch.autograd.gradcheck(
        lambda h, w: (linear_kl(h, w, *rest, chunk=4, temperature=1.5, reduction="none") * weights[pull]).sum(),
        (hidden, weight),
    )
    assert torch.autograd.gradcheck(lambda h, w: linear_kl(h, w, *rest, chunk=4, reduction="none"), (hidden, weight))


def test_vocabularies_are_cut_to_their_common_rows():
    """Padding the shorter one with zeros would give its missing words probability."""
    hidden, weight, teacher, teacher_weight = sides()
    torch.testing.assert_close(
        linear_kl(hidden, weight, teacher, teacher_weight), linear_kl(hidden, weight, teacher, teacher_weight[:WORDS])
    )
    longer = torch.cat([weight, weight[:2] + 9]).detach().requires_grad_()
    linear_kl(hidden, longer, teacher, teacher_weight[:WORDS]).backward()
    (expected,) = torch.autograd.grad(linear_kl(hidden, weight, teacher, teacher_weight[:WORDS]), weight)
    torch.testing.assert_close(longer.grad, torch.cat([expected, torch.zeros(2, WIDTH, dtype=torch.float64)]))


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, teacher, teacher_weight = sides()
    teacher.requires_grad_()
    teacher_weight.requires_grad_()
    fixed = linear_kl(hidden, weight.detach(), teacher, teacher_weight)
    fixed.backward()
    full = dense(hidden.detach().requires_grad_(), weight, teacher, teacher_weight)
    full.backward()
    assert teacher.grad is not None  # of the dense one alone
    teacher.grad = hidden.grad = weight.grad = None
    linear_kl(hidden.detach(), weight, teacher, teacher_weight).backward()
    assert hidden.grad is None
    assert weight.grad is not None
    assert teacher.grad is None
    with torch.no_grad():
        assert not linear_kl(hidden, weight, teacher, teacher_weight).requires_grad


def test_a_second_backward_gives_the_same_and_a_second_derivative_is_refused():
    hidden, weight, *rest = sides()
    value = linear_kl(hidden, weight, *rest)
    first = torch.autograd.grad(value, (hidden, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, (hidden, weight), retain_graph=True), first)
    pull = torch.tensor(2.0, requires_grad=True)
    (again,) = torch.autograd.grad(value * pull, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()


def test_hidden_states_may_have_any_axes_and_any_strides():
    hidden, weight, teacher, teacher_weight = sides(tokens=(3, 5))
    value = linear_kl(hidden, weight, teacher, teacher_weight, reduction="none", chunk=4)
    assert value.shape == (3, 5)
    torch.testing.assert_close(value, dense(hidden, weight, teacher, teacher_weight, reduction="none"))
    turned = hidden.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    turned_weight = weight.detach().T.contiguous().T.requires_grad_()
    assert not turned.is_contiguous()
    loss = linear_kl(turned, turned_weight, teacher, teacher_weight, chunk=4)
    got = torch.autograd.grad(loss, (turned, turned_weight))
    torch.testing.assert_close(got, torch.autograd.grad(value.mean(), (hidden, weight)))


def test_no_token_gives_no_value_and_a_gradient_of_zeros():
    hidden, weight, teacher, teacher_weight = sides()
    linear_kl(hidden[:0], weight, teacher[:0], teacher_weight, reduction="sum").backward()
    assert weight.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ragged", [False, True])
def test_half_precision_is_computed_in_float32(dtype, ragged):
    given = sides(dtype)
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in given]
    value, expected = (f(*x, reduction="none") for f, x in ((linear_kl, given), (dense, exact)))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    pull = torch.arange(1, TOKENS + 1) if ragged else 1.0
    got = torch.autograd.grad((value * pull).sum(), given[:2])
    assert got[0].dtype == got[1].dtype == dtype
    wanted = [x.to(dtype) for x in torch.autograd.grad((expected * pull).sum(), exact[:2])]
    torch.testing.assert_close(list(got), wanted, rtol=1e-2, atol=1e-3)


def test_autocast_does_not_reach_inside():
    given = sides(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = linear_kl(*given)
    assert torch.equal(inside, linear_kl(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_finite_at_extreme_logits(dtype):
    hidden = torch.tensor([[1e4], [-1e4], [0.0]]).to(dtype).requires_grad_()
    weight = torch.tensor([[1.0], [-1.0], [0.0]]).to(dtype).requires_grad_()
    value = linear_kl(hidden, weight, hidden.detach().flip(0), weight.detach(), reduction="none")
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(weight.grad).all()


class Seen(TorchDispatchMode):
    """The largest tensor that any operation gives, in numbers, and how many products there were."""

    def __init__(self):
        super().__init__()
        self.numel = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func._opname in ("mm", "addmm_")
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("ragged", [False, True])
def test_the_logits_of_all_tokens_are_never_there_at_once(ragged):
    tokens, words, chunk = 96, 50, 8
    g = torch.Generator().manual_seed(0)
    hidden, other = torch.randn(tokens, 4, generator=g, requires_grad=True), torch.randn(tokens, 4, generator=g)
    weight = torch.randn(words, 4, generator=g, requires_grad=True)
    pull = torch.arange(tokens) if ragged else 1.0
    for run, fits in ((dense, False), (lambda *x, **k: linear_kl(*x, chunk=chunk, **k), True)):
        with Seen() as seen:
            (run(hidden, weight, other, weight.detach(), reduction="none") * pull).sum().backward()
        assert (seen.numel < tokens * words) == fits
    assert seen.numel == max(chunk * words, tokens * 4)


@pytest.mark.parametrize(("ragged", "again"), [(False, 0), (True, 3)])
def test_a_second_pass_is_made_only_where_tokens_weigh_differently(ragged, again):
    given = sides()
    pull = torch.arange(TOKENS) if ragged else 0.5
    with Seen() as forward:
        value = (linear_kl(*given, reduction="none") * pull).sum()
    with Seen() as backward:
        value.backward()
    assert (forward.products, backward.products) == (4, again)
    with torch.no_grad(), Seen() as scored:
        linear_kl(*given)
    assert scored.products == 2


def test_what_does_not_line_up_is_refused():
    hidden, weight, teacher, teacher_weight = sides()
    for wrong in (
        (hidden[:3], weight, teacher, teacher_weight),
        (hidden, weight.T, teacher, teacher_weight),
        (hidden, weight, teacher, teacher_weight[0]),
    ):
        with pytest.raises(ShapeError, match=r"with weight(.|\n)*To mend"):
            linear_kl(*wrong)
    with pytest.raises(ConfigError, match="chunk"):
        linear_kl(hidden, weight, teacher, teacher_weight, chunk=0)
    with pytest.raises(ConfigError, match="temperature"):
        LinearKL(student="a", student_weight="b", teacher="c", teacher_weight="d", temperature=0.0)


def test_the_term_reads_layers_and_their_weights_by_name():
    hidden, weight, teacher, teacher_weight = sides(tokens=(3, 5))
    names = {"student": "norm", "student_weight": "head@weight", "teacher": "ln", "teacher_weight": "out@weight"}
    term = LinearKL(**names, temperature=2.0)
    value = term({"norm": hidden, "head@weight": weight}, {"ln": teacher, "out@weight": teacher_weight}, {})
    torch.testing.assert_close(value, dense(hidden, weight, teacher, teacher_weight, temperature=2.0, reduction="none"))
    assert term.needs().student == {"norm", "head@weight"}
    assert term.needs().teacher == {"ln", "out@weight"}
