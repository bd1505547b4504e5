"""An ONNX file teaches a PyTorch student; the file may come from any framework.

python examples/onnx_teacher.py
"""

import warnings
from pathlib import Path
from tempfile import mkdtemp

import torch
from sklearn.datasets import load_digits
from torch import nn

import limbeck as lb

digits = load_digits()
x, y = torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target)
train, val, test = (x[:1000], y[:1000]), (x[1000:1300], y[1000:1300]), (x[1300:], y[1300:])


def network(channels: int) -> nn.Sequential:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(channels * 16, 10))


# Here the file is made from a torch module. From now on there is only the file.
large = network(32)
lb.distill(large, None, train=train, val=val, epochs=10, batch_size=50, progress=False)
path = Path(mkdtemp()) / "digits.onnx"
shapes = {"input": {0: torch.export.Dim("batch")}}
names = {"input_names": ["images"], "output_names": ["logits"]}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the exporter warns of its own insides
    torch.onnx.export(large.eval(), (x[:2],), path, dynamic_shapes=shapes, **names, verbose=False)

run = lb.distill(
    network(4),
    path,
    train=train,
    val=val,
    test=test,
    objective=(lb.KL(), lb.Label()),
    epochs=8,
    batch_size=50,
    progress=False,
)
print(f"ONNX file {run.scores['teacher']['accuracy']:.3f}, student {run.scores['student']['accuracy']:.3f}")
