"""The three examples of teachers from other frameworks, each in a process of its own, as a user runs them."""

import re
from pathlib import Path

import pytest

from warm import Started

EXAMPLES = Path(__file__).parents[2] / "examples"
LEAST = {"forest_teacher": 0.85, "onnx_teacher": 0.75, "keras_teacher": 0.85}


@pytest.mark.parametrize("name", LEAST)
def test_a_model_from_elsewhere_teaches_and_the_student_learns(name, tmp_path):
    run = Started(script=EXAMPLES / f"{name}.py", cwd=tmp_path)
    out, err = run.communicate(timeout=240)
    assert run.wait(1) == 0, err
    accuracies = [float(number) for number in re.findall(r"\b[01]\.\d{3}\b", out)]
    assert len(accuracies) >= 2
    assert min(accuracies) >= LEAST[name], out
    assert not list(tmp_path.iterdir())
