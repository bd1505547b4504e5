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


RUN = """
import sys
import torch
import limbeck as lb
x, y = torch.randn(40, 4), torch.arange(40) % 3
net = torch.nn.Linear(4, 3)
lb.distill(net, torch.nn.Linear(4, 3), train=(x, y), val=(x, y), test=(x, y), epochs=1, batch_size=10, progress=False,
           out=sys.argv[1])
heavy = {"matplotlib", "pandas", "scipy", "sklearn", "torchmetrics", "torchvision", "transformers"}
print(",".join(sorted(heavy & set(sys.modules))))
"""


def test_a_run_imports_nothing_heavy_that_it_does_not_use(tmp_path):
    line = [sys.executable, "-c", RUN, tmp_path / "run"]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == "\n"


def test_every_public_name_can_be_had():
    for name in limbeck.__all__:
        assert getattr(limbeck, name) is not None
    assert callable(limbeck.evaluate)


def test_the_version_is_the_package_s():
    from importlib.metadata import version

    assert limbeck.__version__ == version("limbeck")
