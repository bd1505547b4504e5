"""8-bit files compute in whole numbers where they say so, and are made the right way for each net."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from export_nets import ConvNet, answers, made
from torch import nn

import limbeck as lb
from limbeck.core import chip
from limbeck.core.errors import ConfigError, DataError, ModelError, NonFiniteError
from limbeck.core.parity import Parity
from limbeck.export import OnnxModel, Quantize, quantize, read_parity, to_onnx

DATA = Path(os.environ.get("LIMBECK_DATA", "../shared/data"))
RIGHT = {
    "conv": ("static", {"QLinearConv": 2, "QLinearAdd": 1, "QGemm": 1}, set()),
    "lstm": ("dynamic", {"DynamicQuantizeLSTM": 1, "DynamicQuantizeMatMul": 1}, set()),
    "gru": ("dynamic", {"DynamicQuantizeMatMul": 1}, {"GRU"}),
    "attention": ("dynamic", {"DynamicQuantizeMatMul": 5}, set()),
    "both": ("mixed", {"QLinearConv": 1, "DynamicQuantizeLSTM": 1, "QGemm": 1}, set()),
}


def batches(given, size=16):
    columns = given if isinstance(given, dict) else {"x": given}
    for start in range(0, len(next(iter(columns.values()))), size):
        part = {k: v[start : start + size] for k, v in columns.items()}
        yield {**part, "id": torch.arange(start, start + size), "y": torch.zeros(size, dtype=torch.int64)}


@pytest.mark.parametrize("kind", RIGHT)
def test_each_net_is_made_the_right_way_and_really_computes_in_whole_numbers(kind, tmp_path):
    net, given = made(kind)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model = quantize(net, batches(given), tmp_path / "small.onnx", bound=Parity(agreement=0.8, difference=1.0))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    method, integer, left = RIGHT[kind]
    record = read_parity(model.path)
    assert record == json.loads(json.dumps(model.record))
    assert record["method"] == method
    assert {name: record["integer"].get(name) for name in integer} == integer
    assert {each["op"] for each in record["left"]} == left
    assert not {"Conv", "Gemm", "LSTM", "ConvInteger"} & {*record["float"], *record["integer"]}
    expected, got = answers(net, given), answers(OnnxModel(model.path), given)
    apart = (expected - got).abs().max()
    assert float(apart) == pytest.approx(record["parity"]["largest_difference"], rel=1e-3)
    assert 0 < float(apart) < expected.std()
    assert record["settings"]["reduce_range"] == chip.sums_saturate()


def weights(path):
    """The whole-number weights of a file by channel, with the scale of each."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    rounded = [n.input for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in values]
    return [(values[name], values[scale]) for name, scale, *_ in rounded if values[name].dtype == np.int8]


@pytest.mark.parametrize(("reduce_range", "most"), [(True, 64), (False, 127)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_have_the_bits_and_scales_that_were_asked_for(reduce_range, most, per_channel, tmp_path):
    net, given = made("conv")
    settings = Quantize(reduce_range=reduce_range, per_channel=per_channel)
    found = weights(quantize(net, [given], tmp_path / "a.onnx", settings=settings).path)
    assert len(found) == 3
    for value, scale in found:
        assert abs(value).max() == most
        assert scale.size == (value.shape[0] if per_channel else 1)


def test_every_rule_of_calibration_makes_a_file_that_answers_alike(tmp_path):
    net, given = made("conv")
    base = to_onnx(net, given, tmp_path / "float.onnx")
    apart = {}
    for rule in ("minmax", "percentile", "entropy"):
        model = quantize(base.path, [given], tmp_path / f"{rule}.onnx", settings=Quantize(calibration=rule))
        apart[rule] = model.record["parity"]["in_deviations"]
    assert len(set(apart.values())) == 3
    assert max(apart.values()) < 1


def test_calibration_follows_the_data_and_stops_where_it_is_told(tmp_path):
    net, given = made("conv")
    base = to_onnx(net, given, tmp_path / "float.onnx")

    def endless():
        while True:
            yield given[:16]

    quantize(base.path, endless(), tmp_path / "a.onnx", settings=Quantize(samples=40))
    narrow = quantize(base.path, [given * 0.01], tmp_path / "b.onnx", bound=Parity(agreement=0, difference=1e9))
    far = (answers(narrow, given) - answers(net, given)).abs().max()
    near = (answers(OnnxModel(tmp_path / "a.onnx"), given) - answers(net, given)).abs().max()
    assert far > 5 * near, "ranges that never saw such values must show"


def test_scores_of_both_are_on_record(tmp_path):
    net, given = made("conv")
    labels = answers(net, given).argmax(1)
    model = quantize(
        net, [given], tmp_path / "a.onnx", score=lambda m: {"accuracy": lb.evaluate(m, (given, labels))["accuracy"]}
    )
    assert model.record["scores"]["float"] == {"accuracy": 1.0}
    assert 0.9 <= model.record["scores"]["int8"]["accuracy"] <= 1.0
    assert lb.evaluate(model, (given, labels))["accuracy"] == model.record["scores"]["int8"]["accuracy"]


def test_a_file_for_a_fixed_number_of_samples_is_calibrated_too(tmp_path):
    import onnx

    net, given = made("conv")
    path = to_onnx(net, given, tmp_path / "float.onnx").path
    proto = onnx.load(str(path))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 6
    onnx.save(proto, str(path))
    model = quantize(path, [given], tmp_path / "a.onnx")
    assert model.record["integer"]["QLinearConv"] == 2
    assert model(given).shape == (64, 5)


class Numbers(nn.Module):
    def forward(self, x):
        return x.exp()


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda at: quantize(ConvNet(), [], at), DataError, "no sample to calibrate with"),
        (
            lambda at: quantize(ConvNet(), [torch.zeros(2, 1, 8, 8), {"a": torch.zeros(1)}], at),
            DataError,
            "different columns",
        ),
        (
            lambda at: quantize(ConvNet(), [torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 9, 9)], at),
            DataError,
            "cannot be joined",
        ),
        (lambda at: quantize(at, [torch.zeros(2, 1, 8, 8)], at), ModelError, "there is no file"),
        (lambda at: quantize(Numbers(), [torch.ones(4, 3)], at), ModelError, "nothing in it can be computed in whole"),
        (lambda at: Quantize(percentile=40), ConfigError, "quantize.percentile"),
        (lambda at: Quantize(samples=0), ConfigError, "quantize.samples"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(call, error, said, tmp_path):
    with pytest.raises(error, match=said):
        call(tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_overflows_is_told(tmp_path):
    net, given = made("conv")
    path = to_onnx(net, given, tmp_path / "float.onnx").path
    with pytest.raises(NonFiniteError, match="calibration"):
        quantize(path, [torch.full_like(given, torch.nan)], tmp_path / "a.onnx")


def test_a_bound_that_is_missed_is_refused(tmp_path):
    net, given = made("conv")
    with pytest.raises(ModelError, match="its answers are not the model's"):
        quantize(net, [given], tmp_path / "a.onnx", bound=Parity(agreement=0, difference=1e-6))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("machine", "torch_says", "flags", "saturate"),
    [
        ("x86_64", False, "fpu avx2", True),
        ("x86_64", True, "fpu avx2", False),
        ("AMD64", False, "avx2 avx_vnni", False),
        ("aarch64", False, "asimd", False),
    ],
)
def test_the_chip_decides_on_seven_bits(machine, torch_says, flags, saturate, monkeypatch):
    monkeypatch.setattr(chip.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: torch_says)
    monkeypatch.setattr(chip, "_flags", lambda: frozenset(flags.split()))
    assert chip.sums_saturate.__wrapped__() is saturate


@pytest.mark.skipif(not (DATA / "teachers").is_dir(), reason="no real data here: set LIMBECK_DATA")
@pytest.mark.slow
def test_the_published_resnet_20_keeps_its_accuracy_in_8_bits(tmp_path):
    from limbeck.models import CifarResNet
    from limbeck.recipes.base import read_weights

    model = CifarResNet(depth=20).build((3, 32, 32), 10)
    model.load_state_dict(read_weights(str(next((DATA / "teachers").glob("*resnet20*"))), "test"))
    with np.load(DATA / "cifar10.npz", allow_pickle=False) as held:
        calibration, images, labels = held["train_images"][:128], held["test_images"][:500], held["test_labels"][:500]
    step = lb.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    few, x = (step(torch.from_numpy(p).permute(0, 3, 1, 2).float() / 255) for p in (calibration, images))
    small = quantize(model, [few], tmp_path / "small.onnx")
    assert small.record["integer"] == {"QLinearConv": 19, "QLinearAdd": 9, "QGemm": 1}
    assert not small.record["float"]
    assert small.bytes < 0.36 * small.record["float_bytes"]
    data = (x, torch.from_numpy(labels).long())
    assert lb.evaluate(small, data)["accuracy"] >= lb.evaluate(model, data)["accuracy"] - 0.01
