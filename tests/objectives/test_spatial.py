"""Losses on where a layer answers: attention maps, selectivity of channels, flow between layers."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.objectives.spatial import FSP, NST, Attention, attention, fsp, nst

RNG = np.random.default_rng(2)


def maps(*shape):
    return RNG.normal(size=shape)


def tensors(*arrays):
    return tuple(torch.from_numpy(a) for a in arrays)


def pooled(x, height, width):
    """Adaptive average pooling by its definition."""
    out = np.zeros((*x.shape[:2], height, width))
    for i, j in np.ndindex(height, width):
        rows = slice(i * x.shape[2] // height, -(-(i + 1) * x.shape[2] // height))
        columns = slice(j * x.shape[3] // width, -(-(j + 1) * x.shape[3] // width))
        out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return out


def attention_by_hand(s, t, p, form):
    values = []
    for a, b in zip(s, t, strict=True):
        sides = []
        for x in (a, b):
            energy = np.array([sum(abs(v) ** p for v in x[:, i, j]) / len(x) for i, j in np.ndindex(x.shape[1:])])
            sides.append(energy / np.sqrt((energy**2).sum()))
        gap = sides[0] - sides[1]
        values.append((gap**2).mean() if form == "code" else np.sqrt((gap**2).sum()))
    return values


def nst_by_hand(s, t):
    def unit(x):
        return [v.ravel() / np.sqrt((v**2).sum()) for v in x]

    def kernel(first, second):
        return np.mean([[(a @ b) ** 2 for b in second] for a in first])

    return [
        kernel(unit(b), unit(b)) + kernel(unit(a), unit(a)) - 2 * kernel(unit(a), unit(b))
        for a, b in zip(s, t, strict=True)
    ]


def flow_by_hand(a, b):
    flow = np.zeros((len(a), a.shape[1], b.shape[1]))
    for n, c, d in np.ndindex(*flow.shape):
        flow[n, c, d] = sum(a[n, c, i, j] * b[n, d, i, j] for i, j in np.ndindex(a.shape[2:])) / a[0, 0].size
    return flow


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_attention_is_the_distance_of_normalised_energy(p, form):
    s, t = maps(3, 4, 5, 2), maps(3, 7, 5, 2)
    value = attention(*tensors(s, t), p=p, form=form, reduction="none")
    np.testing.assert_allclose(value.numpy(), attention_by_hand(s, t, p, form))


@pytest.mark.parametrize("channels", [(4, 7), (12, 9)], ids=["between channels", "between positions"])
def test_nst_is_the_mmd_over_all_pairs_of_channels(channels):
    s, t = maps(3, channels[0], 5, 2), maps(3, channels[1], 5, 2)
    np.testing.assert_allclose(nst(*tensors(s, t), reduction="none").numpy(), nst_by_hand(s, t))


def test_fsp_is_the_mean_square_between_flows_of_any_size():
    s, t = (maps(3, 4, 5, 2), maps(3, 6, 5, 2)), (maps(3, 4, 3, 7), maps(3, 6, 3, 7))
    hand = ((flow_by_hand(*s) - flow_by_hand(*t)) ** 2).mean((1, 2))
    np.testing.assert_allclose(fsp(tensors(*s), tensors(*t), reduction="none").numpy(), hand)


def test_of_two_sizes_the_larger_is_averaged_on_each_side_for_itself():
    s, t = maps(2, 4, 6, 3), maps(2, 4, 4, 7)
    small = pooled(s, 4, 3), pooled(t, 4, 3)
    for loss, hand in ((attention, attention_by_hand(*small, 2, "code")), (nst, nst_by_hand(*small))):
        np.testing.assert_allclose(loss(*tensors(s, t), reduction="none").numpy(), hand)
    flows = flow_by_hand(*small), flow_by_hand(small[0], small[0])
    value = fsp(tensors(s, t), tensors(small[0], small[0]), reduction="none")
    np.testing.assert_allclose(value.numpy(), ((flows[0] - flows[1]) ** 2).mean((1, 2)))


def test_tokens_are_positions_in_a_row():
    s, t = maps(2, 4, 6, 1), maps(2, 5, 6, 1)
    rows = [torch.from_numpy(x[..., 0]).mT for x in (s, t)]
    for loss in (attention, nst, lambda a, b: fsp((a, b), (2 * a, b))):
        assert torch.allclose(loss(*rows), loss(*tensors(s, t)))


LOSSES = {
    "attention": attention,
    "attention, paper": lambda s, t, **k: attention(s, t, form="paper", **k),
    "nst": nst,
    "fsp": lambda s, t, **k: fsp((s, s[:, :2] if s.dim() > 1 else s), (t, t[:, :2] if t.dim() > 1 else t), **k),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@every_loss
def test_zero_at_equality_with_a_finite_gradient_and_above_it_elsewhere(loss):
    s, t = tensors(maps(2, 4, 3, 5), maps(2, 4, 3, 5))
    s.requires_grad_()
    value = loss(s, s.detach().clone(), reduction="none")
    assert value.shape == (2,)
    assert value.abs().max() < 1e-12
    value.sum().backward()
    assert torch.isfinite(s.grad).all()
    assert (loss(s, t, reduction="none") > 0).all()


@every_loss
@pytest.mark.parametrize("width", [3, 40], ids=["between channels", "between positions"])
def test_b10_maps_give_a_loss_with_an_exact_gradient_that_a_step_reduces(loss, width):
    s, t = tensors(maps(2, width, 3, 5), maps(2, width, 2, 6))
    s.requires_grad_()
    value = loss(s, t)
    (grad,) = torch.autograd.grad(value, s)
    assert value > 1e-6
    assert (grad.abs().amax((1, 2, 3)) > 0).all()
    assert loss(s - 1e-3 * grad / grad.norm(), t) < value
    assert torch.autograd.gradcheck(lambda x: loss(x, t[:, :3]), s[:, :3].detach().requires_grad_())


@every_loss
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 10), (2, 10)),
        ((10,), (10,)),
        ((2, 4, 3, 3), (2, 4, 9)),
        ((2, 4, 3, 3), (3, 4, 3, 3)),
        ((2, 1, 3, 3, 3),) * 2,
    ],
)
def test_b10_what_has_no_positions_is_refused_with_a_mend(loss, student, teacher):
    with pytest.raises(ValueError, match=r"(.|\n)*To mend"):
        loss(torch.ones(student), torch.ones(teacher))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zero_and_huge_layers_have_finite_losses_and_gradients(loss, dtype):
    fills = [0.0, 1e4, -1e4, 1e-5]
    for a in fills:
        for b in fills:
            s = torch.full((1, 4, 3, 2), a, dtype=dtype, requires_grad=True)
            value = loss(s, torch.full((1, 4, 3, 2), b, dtype=dtype))
            value.backward()
            assert value.dtype == torch.float32
            assert torch.isfinite(value)
            # The gradient of fsp grows with the third power: 1e12 is more than float16 holds.
            assert torch.isfinite(s.grad).all() or (loss is LOSSES["fsp"] and dtype == torch.float16)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_close_to_double(loss, dtype):
    s, t = (x.to(dtype) for x in tensors(maps(2, 4, 3, 5), maps(2, 4, 3, 5)))
    exact = loss(s.double(), t.double())
    assert torch.allclose(loss(s, t).double(), exact, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(loss(s.float(), t.float()).double(), exact, rtol=1e-4, atol=1e-6)


@every_loss
def test_channels_last_and_slices_give_the_same_values(loss):
    s, t = tensors(maps(2, 4, 3, 5), maps(2, 4, 3, 5))
    value = loss(s, t)
    wide = torch.randn(2, 4, 6, 10, dtype=torch.float64)
    wide[:, :, ::2, ::2] = t
    assert torch.allclose(loss(s.to(memory_format=torch.channels_last), wide[:, :, ::2, ::2]), value, rtol=1e-12)


def test_attention_and_nst_are_blind_to_what_they_say():
    s, t = tensors(maps(2, 4, 3, 5), maps(2, 7, 3, 5))
    order, sign = torch.randperm(4), torch.tensor([1.0, -1, -1, 1])[:, None, None]
    scale = torch.tensor([0.1, 2, 3, 50])[:, None, None]
    assert torch.allclose(attention(7 * s[:, order] * sign, 0.2 * t), attention(s, t))
    assert torch.allclose(nst(s[:, order] * sign * scale, t), nst(s, t))
    assert nst(s, torch.cat([s, -s], 1)) < 1e-12


def test_attention_survives_powers_that_overflow():
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.allclose(attention(1e20 * s, 1e-20 * t, p=4), attention(s, t, p=4))


@pytest.mark.parametrize("size", [(32, 6, 6, 48), (4, 24, 24, 5)])
def test_nst_unfolds_no_pairs_of_channels(size):
    """The usual code holds B·C·C·HW numbers."""
    batch, height, width, channels = size

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                self.numbers = max(self.numbers, x.numel() if isinstance(x, torch.Tensor) else 0)
            return out

    s = torch.randn(batch, channels, height, width, requires_grad=True)
    t = torch.randn(batch, channels, height, width)
    with Largest() as largest:
        nst(s, t).backward()
    cheaper = min(channels, height * width)
    assert largest.numbers <= batch * max(cheaper**2, channels * height * width)


@pytest.mark.parametrize("loss", [LOSSES["attention"], LOSSES["nst"], LOSSES["fsp"]])
def test_it_compiles_whole(loss):
    s, t = tensors(maps(2, 4, 3, 5), maps(2, 4, 2, 6))
    assert torch.allclose(torch.compile(loss, fullgraph=True, backend="aot_eager")(s, t), loss(s, t))


def test_terms_read_their_layers_and_hand_their_settings_on():
    s, t = torch.randn(2, 4, 3, 3), torch.randn(2, 6, 3, 3)
    term = Attention(student="s", teacher="t", p=1.0, form="paper")
    assert torch.equal(term({"s": s}, {"t": t}, {}), attention(s, t, p=1, form="paper", reduction="none"))
    assert term.weight == 1000
    term = NST(student="s", teacher="t")
    assert torch.equal(term({"s": s}, {"t": t}, {}), nst(s, t, reduction="none"))
    assert not term.heads()


def test_fsp_projects_the_channels_of_each_layer_that_needs_it():
    term = FSP(student=("a", "b"), teacher=("c", "d"))
    student = {"a": torch.randn(2, 4, 6, 6), "b": torch.randn(2, 8, 3, 3)}
    teacher = {"c": torch.randn(2, 4, 5, 5), "d": torch.randn(2, 9, 5, 5)}
    heads = [head(student, teacher) for head in term.heads()]
    assert [len(list(head.parameters())) for head in heads] == [0, 2]
    signal = dict(student)
    for head in heads:
        signal |= head(student, teacher, {})
    projected = heads[1].layers(student["b"])
    wanted = fsp((student["a"], projected), (teacher["c"], teacher["d"]), reduction="none")
    assert torch.equal(term(signal, teacher, {}), wanted)
    bare = FSP(student=("a", "b"), teacher=("c", "d"), head="none")
    assert not bare.heads()
    with pytest.raises(ValueError, match=r"(.|\n)*head=\"auto\""):
        bare(student, teacher, {})


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda: Attention(student="a", teacher="b", p=0.5), "below 1"),
        (lambda: Attention(student="a", teacher="b", form="mean"), "choose from code, paper"),
        (lambda: attention(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), form="mean"), "choose from code, paper"),
        (lambda: FSP(student=("a",), teacher=("b", "c")), "no pair"),
        (lambda: FSP(student=("a", "b"), teacher="bc"), "no pair"),
        (lambda: FSP(student=("a", "b"), teacher=("b", "c"), head="mlp"), "choose from auto, none"),
        (lambda: FSP(student=("a", "b"), teacher=("b", "c"), weight=-1.0), "negative"),
    ],
)
def test_impossible_settings_are_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        bad()
