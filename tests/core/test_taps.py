"""Any model as `batch -> named tensors`: what it may take, what it may return, and which layers can be read."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.core.taps import Reader

X = torch.arange(12.0).view(4, 3)
BATCH = {"id": torch.arange(4), "valid": torch.ones(4, dtype=torch.bool), "x": X, "y": torch.zeros(4).long()}


class Net(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Linear(5, 2)
        self.give = give

    def forward(self, x):
        hidden = self.first(x)
        return self.give(self.second(self.act(hidden)), hidden)


@dataclass
class Answer:
    score: torch.Tensor
    note: str = "none"


class Pair(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


class HuggingFaceLike(dict):
    """An ordered mapping with attributes and a tuple of hidden states."""


FORMS = {
    "tensor": lambda out, _h: out,
    "tuple": lambda out, h: (out, h),
    "list": lambda out, h: [out, [h]],
    "dict": lambda out, h: {"logits": out, "hidden": h},
    "dict without the word": lambda out, _h: {"answer": out, "count": 3},
    "prediction": lambda out, h: {"prediction": out, "hidden": h},
    "dataclass": lambda out, _h: Answer(out),
    "named tuple": Pair,
    "hugging face": lambda out, h: HuggingFaceLike(loss=None, logits=out, hidden_states=(h, h)),
    "logits and a dict": lambda out, h: (out, {"feats": [h]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_a_model_returns_its_logits_are_found(form):
    model = Net(FORMS[form])
    signal = Reader(model).probe(BATCH, ("logits",))
    plain = model.second(model.first(X).relu())
    assert torch.equal(signal["logits"], plain)


def test_everything_else_it_returns_has_a_dotted_name():
    signal = Reader(Net(FORMS["hugging face"]))(BATCH)
    assert {"logits", "hidden_states.0", "hidden_states.1"} <= set(signal)
    assert "1.feats.0" in Reader(Net(FORMS["logits and a dict"]))(BATCH)


def test_transformers_outputs_are_read():
    outputs = pytest.importorskip("transformers.modeling_outputs", reason="transformers is not installed")
    reader = Reader(Net(lambda out, h: outputs.SequenceClassifierOutput(logits=out, hidden_states=(h,))))
    assert {"logits", "hidden_states.0"} <= set(reader(BATCH))


def test_outputs_can_be_named_and_a_wrong_name_is_told_with_the_nearest():
    both = Net(lambda out, h: {"a": out, "b": h})
    assert torch.equal(
        Reader(both, outputs={"logits": "a"})(BATCH)["logits"], Reader(both, outputs={"logits": "a"})(BATCH)["a"]
    )
    with pytest.raises(ModelError, match="which of them are the logits is not clear"):
        Reader(both).probe(BATCH)
    with pytest.raises(ModelError, match=r"'bb'.*\n.*did you mean 'b'"):
        Reader(both, outputs={"logits": "bb"}).probe(BATCH)


class Two(nn.Module):
    def forward(self, left, right):
        return left - 2 * right


class Whole(nn.Module):
    def forward(self, batch):
        return batch["left"] - 2 * batch["right"]


@pytest.mark.parametrize(
    ("model", "columns", "settings"),
    [
        (Two(), {"x0": X, "x1": X + 1}, {}),
        (Two(), {"right": X + 1, "left": X}, {}),
        (Two(), {"right": X + 1, "left": X, "unused": X}, {}),
        (Two(), {"a": X, "b": X + 1}, {"inputs": ["a", "b"]}),
        (Two(), {"a": X, "b": X + 1}, {"inputs": {"right": "b", "left": "a"}}),
        (Two(), {"a": X, "b": X + 1}, {"inputs": lambda batch: (batch["a"], batch["b"])}),
        (Whole(), {"left": X, "right": X + 1}, {}),
    ],
)
def test_whatever_a_model_takes_it_is_given(model, columns, settings):
    batch = {"id": BATCH["id"], "valid": BATCH["valid"], "y": BATCH["y"], **columns}
    assert torch.equal(Reader(model, **settings)(batch)["logits"], X - 2 * (X + 1))


def test_a_model_that_cannot_be_called_is_told_before_any_work():
    with pytest.raises(ModelError, match=r"x \(4, 3\)(.|\n)*To mend"):
        Reader(nn.Linear(7, 2)).probe(BATCH)
    with pytest.raises(ModelError, match="its parameters are left, right, the batch has a"):
        Reader(Two()).probe({"id": BATCH["id"], "valid": BATCH["valid"], "a": X})


def test_taps_read_outputs_and_inputs_by_path_and_what_comes_later_does_not_overwrite_them():
    model = Net(FORMS["tensor"])
    reader = Reader(model, taps=["first", "second@in"])
    reader.probe(BATCH, ["first", "second@in", "logits"])
    signal = reader(BATCH)
    assert torch.equal(signal["first"], model.first(X))  # though the ReLU works in place
    assert torch.equal(signal["second@in"], model.first(X).relu())
    signal["first"].sum().backward()
    assert model.first.weight.grad is not None


def test_an_unknown_layer_is_told_with_the_nearest_name():
    with pytest.raises(ModelError, match=r"'frist'(.|\n)*did you mean 'first'"):
        Reader(Net(FORMS["tensor"]), taps=["frist"])
    with pytest.raises(ModelError, match=r"'secnd'(.|\n)*did you mean 'second'"):
        Reader(Net(FORMS["tensor"])).probe(BATCH, ["secnd"])


def test_close_removes_every_hook_and_the_probe_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    reader = Reader(model, taps=["0", "1@in"])
    reader.probe(BATCH)
    reader.close()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert not model[1].training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
