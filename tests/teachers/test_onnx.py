"""ONNX files: shapes, types, parts, and files that are no such thing."""

import numpy as np
import pytest
import torch
from kinds import batch, onnx_file

import limbeck as lb
from limbeck.core.errors import ModelError


def by_hand(path, x):
    """The same arithmetic in numpy, from the file's own weights."""
    import onnx
    from onnx import numpy_helper

    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    hidden = np.maximum(x @ weights["w1"] + weights["b1"], 0)
    return hidden, hidden @ weights["w2"]


@pytest.mark.parametrize("how", [{}, {"samples": 1}, {"samples": 3}, {"samples": 64}, {"external": True}])
def test_it_answers_as_the_weights_say_however_it_was_exported(how, tmp_path):
    path = onnx_file(tmp_path, 0, **how)
    answer = lb.teacher(path).open(["hidden", "logits"], batch())
    hidden, logits = by_hand(path, batch()["x"].numpy())
    np.testing.assert_allclose(answer["hidden"].numpy(), hidden, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answer["logits"].numpy(), logits, rtol=1e-5, atol=1e-5)


def test_its_weights_beside_it_belong_to_the_fingerprint(tmp_path):
    path = onnx_file(tmp_path, 0, external=True)
    before = lb.teacher(path).fingerprint()
    data = bytearray((tmp_path / "w-0.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "w-0.bin").write_bytes(data)
    assert lb.teacher(path).fingerprint() != before
    (tmp_path / "w-0.bin").unlink()
    with pytest.raises(ModelError, match=r"its weights 'w-0.bin' cannot be read"):
        lb.teacher(path).fingerprint()


def test_a_file_that_is_missing_or_damaged_is_told(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        lb.teacher(tmp_path / "none.onnx")
    path = onnx_file(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:100])
    for ask in (lambda t: t.open([], batch()), lambda t: t.fingerprint()):
        with pytest.raises(ModelError, match="cannot be read as ONNX"):
            ask(lb.teacher(path))


def test_wrong_inputs_are_told_with_both_shapes(tmp_path):
    path = onnx_file(tmp_path, 0)
    for x, said in (
        (torch.zeros(2, 5), r"'features' takes \(6\) a sample, the batch has \(5,\)"),
        (torch.zeros(2, 6, 1), r"the batch has \(6, 1\)"),
        (torch.zeros(2, 6, dtype=torch.int64), "takes float32, the batch has int64"),
    ):
        with pytest.raises(ModelError, match=said):
            lb.teacher(path).open([], {**batch(2), "x": x})
    with pytest.raises(ModelError, match="its input 'features' gets nothing"):
        lb.teacher(path, inputs={"other": "x"}).open([], batch(2))
    with pytest.raises(ModelError, match="gets nothing"):
        lb.teacher(path).open([], {"id": torch.arange(2), "a": torch.zeros(2, 6), "b": torch.zeros(2, 6)})


def test_inputs_go_in_by_name_by_order_and_by_function(tmp_path):
    path = onnx_file(tmp_path, 0)
    expected = lb.teacher(path)(batch())["logits"]
    named = {"id": batch()["id"], "mess": torch.zeros(8, 2), "features": batch()["x"].double()}
    assert torch.equal(lb.teacher(path)(named)["logits"], expected)
    for inputs in (["x"], {"features": "x"}, lambda b: b["x"], lambda b: {"features": b["x"]}, lambda b: (b["x"],)):
        assert torch.equal(lb.teacher(path, inputs=inputs)(batch())["logits"], expected)


def test_it_has_as_many_threads_as_torch_and_says_what_it_ran_on(tmp_path):
    teacher = lb.teacher(onnx_file(tmp_path, 0))
    teacher.open([], batch())
    assert teacher._file.session.get_session_options().intra_op_num_threads == torch.get_num_threads()
    assert teacher.form["providers"] == ["CPUExecutionProvider"]
    assert teacher.words == "the ONNX file net-0.onnx"
    teacher.close()
    assert teacher._file.session is None


def test_channels_that_come_last_are_recognised(tmp_path):
    from onnx import TensorProto, helper, save

    sides = {"image": ["n", 4, 4, 3], "out": ["n", 48]}
    given, out = (helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in sides.items())
    graph = helper.make_graph([helper.make_node("Flatten", ["image"], ["out"])], "g", [given], [out])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(tmp_path / "g.onnx"))
    x = torch.arange(96.0).view(2, 3, 4, 4)
    with pytest.raises(ModelError, match=r"permute\(0, 2, 3, 1\)"):
        lb.teacher(tmp_path / "g.onnx").open([], {"id": torch.arange(2), "x": x})
    teacher = lb.teacher(tmp_path / "g.onnx", inputs=lambda b: b["x"].permute(0, 2, 3, 1))
    assert torch.equal(teacher.open([], {"id": torch.arange(2), "x": x})["logits"], x.permute(0, 2, 3, 1).flatten(1))
