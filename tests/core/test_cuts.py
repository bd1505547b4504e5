"""The edits that a cut is made of keep everything about a tensor but its width."""

import pytest
import torch
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.core.surgery import cut, set_attributes, tensor_at


def tied():
    model = nn.ModuleDict({"embed": nn.Embedding(7, 6), "head": nn.Linear(6, 7, bias=False)})
    model["head"].weight = model["embed"].weight
    return model


def test_a_tied_tensor_is_cut_once_and_stays_tied():
    model = tied()
    before = model["embed"].weight.detach().clone()
    cut(model, "embed.weight", dim=1, keep=[0, 2, 5])
    assert model["head"].weight is model["embed"].weight
    assert torch.equal(model["head"].weight, before[:, [0, 2, 5]])
    assert len(list(model.parameters())) == 1


def test_what_is_frozen_stays_frozen_and_what_is_hollow_stays_hollow():
    model = nn.Sequential(nn.Linear(3, 4)).requires_grad_(False)
    model[0].bias.requires_grad_(True)
    for name in ("0.weight", "0.bias"):
        cut(model, name, dim=0, keep=[1, 3])
    assert [p.requires_grad for p in model.parameters()] == [False, True]
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    empty = nn.Sequential(nn.Linear(3, 4, device="meta", dtype=torch.float16))
    cut(empty, "0.weight", dim=1, keep=[2])
    assert empty[0].weight.is_meta
    assert empty[0].weight.shape == (4, 1)
    assert empty[0].weight.dtype == torch.float16


def test_buffers_are_cut_and_stay_buffers():
    norm = nn.Sequential(nn.BatchNorm1d(4))
    norm[0].running_mean.copy_(torch.arange(4.0))
    cut(norm, "0.running_mean", dim=0, keep=[3, 1])
    assert norm.state_dict()["0.running_mean"].tolist() == [3.0, 1.0]
    assert "running_mean" in dict(norm[0].named_buffers())


def test_recurrent_layers_run_on_what_was_cut():
    rnn = nn.Sequential(nn.GRU(3, 4))
    for name, tensor in list(rnn[0].named_parameters()):
        cut(rnn, f"0.{name}", dim=0, keep=[4 * gate + unit for gate in range(3) for unit in (0, 2)])
        if name == "weight_hh_l0":
            cut(rnn, f"0.{name}", dim=1, keep=[0, 2])
        assert tensor is not getattr(rnn[0], name)
    set_attributes(rnn, "0", hidden_size=2)
    assert rnn[0](torch.randn(5, 1, 3))[0].shape == (5, 1, 2)


def test_numbers_are_set_and_lists_become_tuples():
    model = nn.Sequential(nn.LayerNorm(4))
    set_attributes(model, "0", normalized_shape=[3])
    assert model[0].normalized_shape == (3,)
    with pytest.raises(ModelError, match="keeps no 'out_features'"):
        set_attributes(model, "0", out_features=3)


def test_what_does_not_fit_is_told():
    model = tied()
    with pytest.raises(ModelError, match=r"is \(7, 6\), and indices up to 6 of dimension 1 are wanted"):
        cut(model, "embed.weight", dim=1, keep=[0, 6])
    with pytest.raises(ModelError, match=r"no tensor 'embed.bias'"):
        tensor_at(model, "embed.bias")
    with pytest.raises(ModelError, match="no layer 'embedd'"):
        cut(model, "embedd.weight", dim=0, keep=[0])
