"""`import limbeck` costs next to nothing, and every public name is there."""

import subprocess
import sys

import limbeck

PROBE = """
import time, sys
import torch
before = time.process_time()
import limbeck
spent = time.process_time() - before
extras = {"sklearn", "PIL", "transformers", "onnx", "onnxruntime", "optuna", "captum", "soundfile", "keras", "plotly"}
print(spent, ",".join(sorted(extras & set(sys.modules))))
"""


def test_import_adds_less_than_300_ms_and_no_extra():
    said = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout.split()
    assert float(said[0]) < 0.3
    assert len(said) == 1, f"extras imported: {said[1]}"


def test_every_public_name_can_be_had():
    for name in limbeck.__all__:
        assert getattr(limbeck, name) is not None
    assert callable(limbeck.evaluate)


def test_the_version_is_the_package_s():
    from importlib.metadata import version

    assert limbeck.__version__ == version("limbeck")
