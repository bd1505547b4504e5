"""A torch program answers as the module, in a process that has not its class."""

import json

import pytest
import torch
from export_nets import answers, made
from torch import nn

from limbeck.core.errors import ModelError
from limbeck.export import ProgramModel, read_parity, to_program
from warm import fresh


@pytest.mark.parametrize("kind", ["conv", "gru", "attention"])
def test_the_program_answers_as_the_module_for_any_number_of_samples(kind, tmp_path):
    net, given = made(kind)
    model = to_program(net, given, tmp_path / "a.pt2")
    assert read_parity(model.path)["parity"]["samples"] == 64
    assert model.record["batch"] is None
    for samples in (1, 5, 64):
        part = {k: v[:samples] for k, v in given.items()} if isinstance(given, dict) else given[:samples]
        torch.testing.assert_close(answers(model, part), answers(net, part), rtol=1e-4, atol=1e-5)


def test_a_fresh_process_loads_it_without_the_class(tmp_path):
    net, given = made("attention")
    path = to_program(net, given, tmp_path / "a.pt2").path
    code = (
        "import json, sys, torch; from limbeck.export import ProgramModel;"
        f"m = ProgramModel({str(path)!r});"
        "a = m(tokens=torch.arange(14).view(2, 7), mask=torch.ones(2, 7, dtype=torch.bool));"
        "print(json.dumps(a['logits'].tolist())); sys.exit('export_nets' in sys.modules)"
    )
    said = fresh(code, tmp_path)
    assert said.returncode == 0, said.stderr
    expected = answers(net, {"tokens": torch.arange(14).view(2, 7), "mask": torch.ones(2, 7, dtype=torch.bool)})
    torch.testing.assert_close(torch.tensor(json.loads(said.stdout)), expected, rtol=1e-4, atol=1e-5)


def test_wrong_files_names_and_inputs_are_told(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        ProgramModel(tmp_path / "none.pt2")
    (tmp_path / "bad.pt2").write_bytes(b"no program")
    with pytest.raises(ModelError, match="cannot be read as a program"):
        ProgramModel(tmp_path / "bad.pt2")
    with pytest.raises(ModelError, match=r"let it end in \.pt2"):
        to_program(nn.Linear(2, 2), torch.randn(2, 2), tmp_path / "a.pt")
    net, given = made("attention")
    model = to_program(net, given, tmp_path / "a.pt2")
    with pytest.raises(ModelError, match="its input 'mask' gets nothing"):
        model(given["tokens"])
