"""Attention that may lose heads equals torch's own while it has them all, however it is called."""

import copy

import pytest
import torch
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.core.heads import NarrowAttention, narrow_attention

FORMS = {
    "plain": {},
    "time first": {"batch_first": False},
    "no bias": {"bias": False},
    "other keys": {"kdim": 5, "vdim": 7},
}
PADDED = torch.tensor([[False] * 4, [False] * 3 + [True]])
CAUSAL = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
CALLS = {
    "without weights": {"need_weights": False},
    "weights of every head": {"average_attn_weights": False},
    "padding": {"key_padding_mask": PADDED},
    "mask": {"attn_mask": CAUSAL},
    "mask that is added": {"attn_mask": torch.randn(4, 4, generator=torch.Generator().manual_seed(0))},
    "mask for every head": {"attn_mask": torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0))},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDED},
    "a hint": {"attn_mask": CAUSAL, "is_causal": True},
}


def own(form):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, **{"batch_first": True, **FORMS[form]}).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return attention


def inputs(attention):
    q, k, v = (torch.randn(2, 4, width) for width in (12, attention.kdim, attention.vdim))
    return (q, k, v) if attention.batch_first else tuple(x.transpose(0, 1) for x in (q, k, v))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", CALLS)
def test_with_all_heads_it_is_torchs_own(form, call):
    attention = own(form)
    args = inputs(attention)
    narrow = NarrowAttention(attention)
    assert narrow.state_dict().keys() == attention.state_dict().keys()
    for got, wanted in zip(narrow(*args, **CALLS[call]), attention(*args, **CALLS[call]), strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_a_sample_without_a_batch_is_taken_too():
    attention = own("plain")
    x = torch.randn(4, 12)
    narrow = NarrowAttention(attention)
    for call in ({}, {"key_padding_mask": PADDED[1]}):
        for got, wanted in zip(narrow(x, x, x, **call), attention(x, x, x, **call), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_it_drops_weights_in_training_alone():
    attention = nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True)
    narrow = NarrowAttention(attention)
    x = torch.randn(2, 4, 12)
    narrow.train()
    assert not torch.equal(narrow(x, x, x)[0], narrow(x, x, x)[0])
    narrow.eval()
    assert torch.equal(narrow(x, x, x)[0], narrow(x, x, x)[0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padding", [None, PADDED])
def test_an_encoder_with_it_answers_as_before(padding):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 2, 10, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    changed = copy.deepcopy(encoder)
    for index in range(2):
        narrow_attention(changed, f"layers.{index}.self_attn")
    x = torch.randn(2, 4, 12)
    with torch.no_grad():
        got, wanted = (net(x, src_key_padding_mask=padding) for net in (changed, encoder))
    kept = torch.ones(2, 4, dtype=torch.bool) if padding is None else ~padding
    torch.testing.assert_close(got[kept], wanted[kept], atol=1e-5, rtol=1e-5)
    assert all(p.requires_grad for p in changed.parameters())


def test_what_cannot_lose_heads_is_told():
    for settings in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        model = nn.Sequential(nn.MultiheadAttention(12, 3, **settings))
        with pytest.raises(ModelError, match="cannot lose heads"):
            narrow_attention(model, "0")
    with pytest.raises(ModelError, match="is no attention but Linear"):
        narrow_attention(nn.Sequential(nn.Linear(2, 2)), "0")
