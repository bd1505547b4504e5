"""An exported file answers as the module, for any number of samples, in a process that knows nothing of the module."""

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_nets import answers, made
from torch import nn

import limbeck as lb
from limbeck.core.errors import CheckpointError, ModelError
from limbeck.core.parity import Parity
from limbeck.evaluation import compare_latency
from limbeck.export import OnnxModel, read_parity, to_onnx

KINDS = ["conv", "lstm", "attention"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every kind: the module, its inputs, and its file."""
    found = {}
    for kind in KINDS:
        net, given = made(kind)
        found[kind] = net, given, to_onnx(net, given, tmp_path_factory.mktemp("onnx") / f"{kind}.onnx")
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [1, 3, 64])
def test_the_file_answers_as_the_module(kind, samples, exported):
    net, given, model = exported[kind]
    part = {k: v[:samples] for k, v in given.items()} if isinstance(given, dict) else given[:samples]
    torch.testing.assert_close(answers(model, part), answers(net, part), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_stays_as_it_was(kind, tmp_path):
    net, given = made(kind)
    net.train()
    net.out.eval()
    before, flags = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    generator = torch.get_rng_state()
    to_onnx(net, given, tmp_path / "a.onnx")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == flags
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.backends.mha.get_fastpath_enabled()


def test_batch_norms_are_folded(exported):
    import onnx

    ops = {node.op_type for node in onnx.load(str(exported["conv"][2].path)).graph.node}
    assert "Conv" in ops
    assert "BatchNormalization" not in ops


def test_the_file_tells_nothing_of_the_machine_and_the_code_that_made_it(exported):
    for _, _, model in exported.values():
        held = model.path.read_bytes()
        assert b"stack_trace" not in held
        assert b"limbeck" not in held
        assert str(Path(lb.__file__).parents[2]).encode() not in held


def test_the_record_says_how_far_and_how_far_it_may_be(exported):
    for net, given, model in exported.values():
        record = read_parity(model.path)
        assert record == json.loads(json.dumps(model.record))
        apart = (answers(model, given) - answers(net, given)).abs().max()
        parity = record["parity"]
        assert parity["largest_difference"] >= float(apart) * 0.99
        assert parity["in_deviations"] <= parity["bound"]["in_deviations"] == 1e-3
        assert parity["samples"] == 64
        assert record["batch"] is None
        assert record["bytes"] == model.path.stat().st_size == model.bytes


def test_a_fresh_process_without_torch_loads_the_file(exported):
    net, _, model = exported["conv"]
    code = (
        "import sys, json, numpy as np, onnxruntime as ort;"
        f"s = ort.InferenceSession({str(model.path)!r});"
        "x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8);"
        "print(json.dumps(s.run(['logits'], {'x': x})[0].tolist())); sys.exit('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = answers(net, torch.linspace(-1, 1, 64).view(1, 1, 8, 8))
    torch.testing.assert_close(torch.tensor(json.loads(said)), expected, rtol=1e-4, atol=1e-5)


def test_it_is_called_in_order_by_name_and_with_arrays(exported):
    _, given, model = exported["attention"]
    expected = model(**given)
    assert set(expected) == {"logits", "pooled"}
    torch.testing.assert_close(model(given["tokens"], given["mask"])["pooled"], expected["pooled"])
    arrays = model(given["tokens"].numpy(), given["mask"].numpy())
    assert isinstance(arrays["logits"], np.ndarray)
    np.testing.assert_array_equal(arrays["logits"], expected["logits"].numpy())
    again = copy.deepcopy(model)
    assert torch.equal(again(**given)["logits"], expected["logits"])


def test_it_is_scored_taught_from_and_timed_like_any_model(exported):
    net, x, model = exported["conv"]
    labels = answers(net, x).argmax(1)
    assert lb.evaluate(model, (x, labels))["accuracy"] == 1.0
    taken = compare_latency({"net": (net, x), "file": (model, x)}, seconds=0.05)
    assert set(taken) == {"net", "file"}
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    lb.distill(small, model, train=(x, labels), epochs=1, batch_size=32, progress=False)


def test_one_sample_and_positional_names_leave_the_batch_free(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model = to_onnx(net, torch.randn(1, 2, 2), tmp_path / "a.onnx")
    assert model.columns == ("input",)
    assert model(torch.randn(5, 2, 2)).shape == (5, 3)


def test_what_fixes_the_batch_is_exported_for_it_and_says_so(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(4, 3)

        def forward(self, x):
            return self.line(x) * torch.ones(4, 1)[: int(x.shape[0])]  # no other number of samples fits

    net = Fixed()
    model = to_onnx(net, torch.randn(4, 4), tmp_path / "a.onnx")
    assert model.record["batch"] == 4
    x = torch.randn(6, 4)
    torch.testing.assert_close(model(x), net.line(x), rtol=1e-4, atol=1e-5)


class Differs(nn.Module):
    """Answers otherwise when it is traced, as a model with a branch on its input would."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, x):
        return self.line(x) * (2.0 if torch.compiler.is_exporting() else 1.0)


def test_beyond_the_bound_is_refused_and_nothing_is_written(tmp_path):
    old = tmp_path / "a.onnx"
    old.write_bytes(b"what was there")
    with pytest.raises(ModelError, match=r"its answers are not the model's[^\n]*\n *To mend"):
        to_onnx(Differs(), torch.randn(8, 4), old)
    assert old.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [old]
    to_onnx(Differs(), torch.randn(8, 4), old, bound=Parity(agreement=0, difference=100))


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum().item() > 0 else x


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        (Branches(), torch.randn(4, 3), "cannot be exported"),
        (nn.Linear(4, 3), torch.randn(2, 5), "cannot be called on the example"),
        (nn.Linear(4, 3), {}, "no tensor of samples"),
        (nn.Linear(4, 3), torch.tensor(1.0), "no tensor of samples"),
    ],
)
def test_what_cannot_be_exported_is_told(model, given, said, tmp_path):
    with pytest.raises(ModelError, match=said):
        to_onnx(model, given, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_wrong_inputs_and_places_are_told(exported, tmp_path):
    _, _, model = exported["conv"]
    with pytest.raises(ModelError, match=r"takes \(1, 8, 8\) a sample, the batch has \(1, 9, 9\)"):
        model(torch.randn(2, 1, 9, 9))
    with pytest.raises(ModelError, match="there is no file"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        to_onnx(nn.Linear(4, 3), torch.randn(2, 4), tmp_path / "file" / "a.onnx")


def test_the_same_file_twice(tmp_path):
    net, given = made("conv")
    digests = set()
    for _ in range(2):
        path = to_onnx(net, given, tmp_path / "a.onnx").path
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1
    assert {file.name for file in tmp_path.iterdir()} == {"a.onnx", "a.parity.json"}
