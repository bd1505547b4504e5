"""The one door: what becomes which kind of teacher."""

import subprocess
import sys

import pytest
from kinds import Rule, bert, fitted, forest, keras_net, module, onnx_file
from torch import nn

import limbeck as lb
from limbeck import teachers
from limbeck.core.errors import ConfigError, ModelError
from limbeck.core.keras import KerasModule
from limbeck.teachers import as_teacher


def test_each_thing_becomes_its_kind(tmp_path):
    kinds = {
        "ModuleTeacher": module(),
        "FunctionTeacher": Rule(0),
        "SklearnTeacher": fitted(forest)(0),
        "KerasTeacher": keras_net(0),
        "TransformersTeacher": bert(0),
        "OnnxTeacher": onnx_file(tmp_path, 0),
        "EnsembleTeacher": [module(), fitted(forest)(0)],
    }
    for name, value in kinds.items():
        made = as_teacher(value)
        assert type(made) is getattr(teachers, name)
        assert as_teacher(made) is made
    assert type(as_teacher(str(kinds["OnnxTeacher"]))) is teachers.OnnxTeacher
    assert type(as_teacher(KerasModule(kinds["KerasTeacher"]))) is teachers.KerasTeacher
    assert type(as_teacher(tuple(kinds["EnsembleTeacher"]))) is teachers.EnsembleTeacher


@pytest.mark.parametrize("value", ["resnet56", 3, nn.Linear, object()])
def test_what_cannot_teach_is_told_what_can(value):
    with pytest.raises(ModelError, match="neither a module nor a function") as error:
        as_teacher(value)
    if not isinstance(value, type):
        assert all(word in str(error.value) for word in ("Keras", "scikit-learn", ".onnx", "stored targets"))


def test_a_setting_that_its_kind_lacks_is_named():
    with pytest.raises(ConfigError, match=r"SklearnTeacher has no setting 'outputs'"):
        lb.teacher(fitted(forest)(0), outputs={"a": "b"})
    with pytest.raises(ConfigError, match="did you mean 'version'"):
        lb.teacher(Rule(0), versoin="2")
    with pytest.raises(ConfigError, match="has its settings already"):
        lb.teacher(as_teacher(module()), classes=(0, 1))


def test_no_framework_is_imported_to_look_for_its_models():
    code = (
        "import sys, torch, limbeck.teachers as t; t.as_teacher(torch.nn.Linear(2, 2)); t.as_teacher(lambda x: x)\n"
        "print({'keras', 'sklearn', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
