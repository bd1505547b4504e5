"""A saved model is loaded equal, its own layout and ties untouched, and nothing but tensors is read."""

import json

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core.errors import CheckpointError
from limbeck.export import load_weights, read_lineage, save_model
from limbeck.models import Conv
from warm import fresh


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv = nn.Conv2d(3, 4, 3)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight


def test_saved_equals_loaded_and_ties_and_layout_stay(tmp_path):
    model = Tied().to(memory_format=torch.channels_last)
    strides = model.conv.weight.stride()
    save_model(tmp_path / "s", model, lineage={"base": {"class": "Tied"}}, card="# card")
    assert model.out.weight is model.embed.weight
    assert model.conv.weight.stride() == strides
    fresh = load_weights(tmp_path / "s", Tied())
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in model.state_dict().items())
    assert read_lineage(tmp_path / "s")["base"] == {"class": "Tied"}
    assert (tmp_path / "s" / "README.md").read_text() == "# card"


def test_a_network_of_our_own_is_built_in_a_fresh_process(tmp_path):
    model = Conv(channels=(3, 5)).build((1, 8, 8), 4)
    base = {"model": {"kind": "conv", "channels": [3, 5]}, "shape": [1, 8, 8], "classes": 4}
    save_model(tmp_path / "s", model, lineage={"base": base}, card="")
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    code = (
        f"import torch, json, limbeck as lb; m = lb.load({str(tmp_path / 's')!r});"
        "print(json.dumps(m(torch.linspace(-1, 1, 64).view(1, 1, 8, 8))[0].tolist()))"
    )
    said = fresh(code, tmp_path)
    assert said.returncode == 0, said.stderr
    assert torch.allclose(torch.tensor(json.loads(said.stdout)), model(x)[0], atol=1e-6)


def test_what_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        lb.load(tmp_path)
    save_model(tmp_path / "s", Tied(), lineage={"base": {"class": "Tied"}}, card="")
    with pytest.raises(CheckpointError, match="its student is a Tied"):
        lb.load(tmp_path / "s")
    assert isinstance(lb.load(tmp_path / "s", into=Tied()), Tied)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        lb.load(tmp_path / "s", into=nn.Linear(2, 2))
    (tmp_path / "s" / "model.safetensors").write_bytes(b"\x80\x04not a tensor")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        lb.load(tmp_path / "s", into=Tied())
