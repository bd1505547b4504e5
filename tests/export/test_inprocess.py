"""Smaller forms that stay in torch answer alike, weigh less, and leave the model as it was."""

import sys

import pytest
import torch
from export_nets import answers, made
from torch import nn

from limbeck.core.errors import ExtraError, ModelError
from limbeck.evaluation import footprint
from limbeck.export import Bfloat16, in_process_int8, load_weights, save_model


@pytest.mark.parametrize("kind", ["conv", "lstm", "gru", "attention"])
def test_bfloat16_halves_the_bytes_and_answers_in_float32(kind):
    net, given = made(kind)
    half = Bfloat16(net)
    expected, got = answers(net, given), answers(half, given)
    assert got.dtype == torch.float32
    assert 0 < (got - expected).abs().max() < 0.1 * expected.abs().max()
    assert next(net.parameters()).dtype == torch.float32
    counters = sum(b.numel() * b.element_size() for b in net.buffers() if not b.is_floating_point())
    weighed = [sum(t.numel() * t.element_size() for t in m.state_dict().values()) - counters for m in (half, net)]
    assert weighed[0] * 2 == weighed[1]


def test_bfloat16_on_disk_is_loaded_into_a_float_model(tmp_path):
    net, given = made("conv")
    save_model(tmp_path / "whole", net, lineage={"base": {}}, card="")
    save_model(tmp_path / "half", net, lineage={"base": {}}, card="", dtype=torch.bfloat16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.75 * sizes[1]  # a header of a few hundred bytes, and weights of a few thousand
    fresh = load_weights(tmp_path / "half", made("conv")[0])
    assert fresh.out.weight.dtype == torch.float32
    assert torch.equal(fresh.out.weight, net.out.weight.bfloat16().float())
    assert (answers(fresh, given) - answers(net, given)).abs().max() < 0.1
    assert net.out.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_8_bits_in_process_answer_alike_and_weigh_a_quarter(kind):
    net, given = made(kind)
    small = in_process_int8(net)
    expected, got = answers(net, given), answers(small, given)
    assert 0 < (got - expected).abs().max() < 0.2 * expected.abs().max()
    assert type(net.out) is nn.Linear
    cells = sum(p.numel() * 4 for name, p in net.named_parameters() if "embed" not in name)
    saved = footprint(net, given, latency=False).bytes - footprint(small, given, latency=False).bytes
    assert saved > 0.6 * cells


def test_what_has_no_such_layer_and_a_torch_without_it_are_told(monkeypatch):
    with pytest.raises(ModelError, match="no linear, LSTM or GRU layer"):
        in_process_int8(nn.Conv1d(2, 2, 1))
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    with pytest.raises(ExtraError, match="To mend: export it instead"):
        in_process_int8(nn.Linear(2, 2))
