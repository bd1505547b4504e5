"""A small network learns digits with the rounding of 8 bits in it, and becomes a file of 8-bit kernels.

python examples/export_int8.py
"""

from pathlib import Path
from tempfile import mkdtemp

import torch
from sklearn.datasets import load_digits
from torch import nn

import limbeck as lb

digits = load_digits()
x, y = torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target)
train, val, test = (x[:1000], y[:1000]), (x[1000:1300], y[1000:1300]), (x[1300:], y[1300:])

torch.manual_seed(0)
first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
network = nn.Sequential(first, nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
lb.distill(network, None, train=train, val=val, epochs=6, batch_size=50, progress=False)

# Two more epochs in which weights and inputs are rounded; the float network teaches.
student, slow = lb.export.simulate(network), lb.Optimizer(rate=0.01)
lb.distill(student, network, train=train, val=val, epochs=2, batch_size=50, optimizer=slow, progress=False)
small = lb.export.quantize(lb.export.settle(student), [train[0]], Path(mkdtemp()) / "digits.onnx")

record = small.record
print(f"in whole numbers: {record['integer']}, still in floats: {record['float'] or 'nothing'}")
print(f"{record['bytes'] / record['float_bytes']:.2f} of the bytes")
print(f"float {lb.evaluate(network, test)['accuracy']:.3f}, 8 bits {lb.evaluate(small, test)['accuracy']:.3f}")
