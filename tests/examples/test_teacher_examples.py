"""The three examples of teachers from other frameworks, each in a process of its own, as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LEAST = {"forest_teacher": 0.85, "onnx_teacher": 0.75, "keras_teacher": 0.85}


@pytest.mark.parametrize("name", LEAST)
def test_a_model_from_elsewhere_teaches_and_the_student_learns(name, tmp_path):
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    accuracies = [float(number) for number in re.findall(r"\b[01]\.\d{3}\b", run.stdout)]
    assert len(accuracies) >= 2
    assert min(accuracies) >= LEAST[name], run.stdout
    assert not list(tmp_path.iterdir())
