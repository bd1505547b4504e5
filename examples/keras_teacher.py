"""A Keras model teaches a PyTorch student, and is taught by one.

    python examples/keras_teacher.py

Keras must run on its torch backend to be taught. As a teacher any backend will do.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
from sklearn.datasets import load_digits
from torch import nn

import limbeck as lb

digits = load_digits()
x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
data = {"train": (x[:1000], y[:1000]), "val": (x[1000:1300], y[1000:1300]), "test": (x[1300:], y[1300:])}
how = {"epochs": 10, "batch_size": 50, "progress": False}


def keras_network(units: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(units, activation="relu", name="hidden")
    return keras.Sequential([keras.Input((64,)), hidden, keras.layers.BatchNormalization(), keras.layers.Dense(10)])


teacher = keras_network(256)
teacher.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
teacher.fit(x[:1000].numpy(), y[:1000].numpy(), epochs=10, batch_size=50, verbose=0)

torch.manual_seed(0)
student = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
objective = (lb.KL(), lb.Label(), lb.Hint(student="1", teacher="hidden", weight=0.1))
run = lb.distill(student, teacher, **data, objective=objective, **how)
print(f"Keras teacher {run.scores['teacher']['accuracy']:.3f}, torch student {run.scores['student']['accuracy']:.3f}")

small = keras_network(16)
run = lb.distill(small, teacher, **data, objective=(lb.KL(), lb.Label()), **how)
print(f"Keras student {run.scores['student']['accuracy']:.3f}")
right = small(data["test"][0], training=False).argmax(1) == data["test"][1]  # the model itself was trained
print(f"as Keras sees it {right.float().mean():.3f}")
