"""Losses on relations of tokens, against loops over the formulas."""

import math

import numpy as np
import pytest
import torch

from limbeck.objectives.transformer import AttentionRelation, attention_relation


def turn(d, seed=0):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


def softmax_rows(x):
    scores = np.exp(np.array([[a @ b / math.sqrt(x.shape[1]) for b in x] for a in x]))
    return scores / scores.sum(1, keepdims=True)


def by_attention(s, t, heads, real):
    """Sample by sample and head by head, padding cut off before anything is computed."""
    out = []
    for a, b, keep in zip(s, t, real, strict=True):
        total = 0.0
        for ha, hb in zip(np.split(a[keep], heads, 1), np.split(b[keep], heads, 1), strict=True):
            p, q = softmax_rows(hb), softmax_rows(ha)
            total += (p * np.log(p / q)).sum()
        out.append(total / heads / max(keep.sum(), 1))
    return out


def test_attention_relation_reaches_the_golden_number():
    t = torch.tensor([[[1, 0], [0.5, -1], [0, 2]]], dtype=torch.float64)
    s = torch.tensor([[[0, 1], [1, 1], [-1, 0.5]]], dtype=torch.float64)
    assert float(attention_relation(s, t)) == pytest.approx(0.141060116, abs=1e-9)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_relation_is_the_formula_with_padding_cut_off(heads):
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(3, 5, d, generator=g, dtype=torch.float64) for d in (4, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 0, 0]])
    value = attention_relation(s, t, heads=heads, mask=mask, reduction="none")
    np.testing.assert_allclose(value, by_attention(s.numpy(), t.numpy(), heads, mask.bool().numpy()), atol=1e-12)
    whole = attention_relation(s, t, heads=heads, reduction="none")
    np.testing.assert_allclose(whole, by_attention(s.numpy(), t.numpy(), heads, np.ones((3, 5), dtype=bool)))
    assert torch.equal(attention_relation(s, t, heads=heads, mask=torch.ones(3, 5)), whole.mean())


def test_padding_has_no_effect_whatever_it_holds():
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(3, 5, 4, generator=g) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    clean = attention_relation(s, t, mask=mask, reduction="none")
    assert clean[2] == 0
    s = s.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    value = attention_relation(s, t.masked_fill(~mask[..., None], torch.inf), mask=mask, reduction="none")
    value.sum().backward()
    assert torch.equal(value, clean)
    assert torch.isfinite(s.grad).all()
    assert (s.grad[~mask] == 0).all()


def test_attention_relation_is_zero_at_equality_and_blind_to_a_turn():
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(3, 5, 4, generator=g, dtype=torch.float64) for _ in range(2))
    assert attention_relation(s, s.clone()).abs() < 1e-15
    assert (attention_relation(s, t, reduction="none") > 0).all()
    assert torch.allclose(attention_relation(s @ turn(4), t @ turn(4, 1)), attention_relation(s, t))


def test_the_gradient_of_attention_relation_is_exact():
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    for given in (None, mask):
        loss = lambda x: attention_relation(x, t, heads=2, mask=given)  # noqa: B023, E731
        assert torch.autograd.gradcheck(loss, s.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_relation_is_finite_at_extremes(dtype):
    s = torch.tensor([[[1e4, -1e4], [0.0, 0.0], [-1e4, 1e4]]]).to(dtype).requires_grad_()
    value = attention_relation(s, -s.detach().flip(1))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(s.grad).all()


def test_attention_relation_under_autocast_is_the_same():
    s, t = torch.randn(2, 5, 4), torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        value = attention_relation(s, t, heads=2)
    assert torch.equal(value, attention_relation(s, t, heads=2))


@pytest.mark.parametrize(
    ("student", "teacher", "settings"),
    [
        ((2, 5, 4), (2, 6, 4), {}),
        ((2, 5, 4), (3, 5, 4), {}),
        ((2, 5), (2, 5), {}),
        ((2, 5, 4), (2, 5, 6), {"heads": 4}),
        ((2, 5, 4), (2, 5, 4), {"heads": 0}),
        ((2, 5, 4), (2, 5, 4), {"mask": torch.ones(2, 4)}),
    ],
)
def test_other_tokens_or_heads_are_refused(student, teacher, settings):
    with pytest.raises(ValueError, match="To mend"):
        attention_relation(torch.randn(student), torch.randn(teacher), **settings)


def test_the_term_reads_its_mask_from_the_batch():
    term = AttentionRelation(student="q", teacher="k", relation_heads=2, mask="attention_mask")
    assert term.needs().batch == {"attention_mask"}
    assert not AttentionRelation(student="q", teacher="k").needs().batch
    s, t = torch.randn(2, 5, 4), torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    value = term({"q": s}, {"k": t}, {"attention_mask": mask})
    assert torch.equal(value, attention_relation(s, t, heads=2, mask=mask, reduction="none"))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="To mend"):
        AttentionRelation(student="q", teacher="k", relation_heads=0)


def test_it_compiles_whole():
    s, t, mask = torch.randn(4, 3, 2), torch.randn(4, 3, 6), torch.ones(4, 3)
    whole = torch.compile(attention_relation, fullgraph=True, backend="aot_eager")
    for given in (None, mask):
        assert torch.allclose(whole(s, t, heads=2, mask=given), attention_relation(s, t, heads=2, mask=given))
