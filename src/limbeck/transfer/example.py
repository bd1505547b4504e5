"""A batch that a model can be called with: the user's own, or one that is found out from its first layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import DataError, LimbeckError, ModelError, problem
from limbeck.core.still import device_of
from limbeck.core.taps import Reader

__all__ = ["as_batch", "batch_for"]

_SAMPLES = 4
_SIDES = (32, 28, 64, 96, 128, 224, 16, 8, 12, 24)
_LENGTHS = (16, 8, 32, 5, 10, 64, 128, 256, 1000, 16000)
_LAYERS = 4


def batch_for(model: nn.Module, example: Any, where: str) -> dict[str, Tensor]:
    """The example as a batch on the model's device, or where there is none, one that the model can be called with.

    What is found out: for a Hugging Face model its own `dummy_inputs`; else the first layers' inputs (images, series,
    tokens, rows) of usual sizes, filled with noise that is the same every time.

    Raises:
        ModelError: the model cannot be called with the example, or with nothing that was tried.
        DataError: the example holds no tensor.
    """
    device = device_of(model)
    if example is not None:
        batch = {name: value.to(device) for name, value in as_batch(example, where).items()}
        Reader(model).probe(batch)
        return batch
    said = "it has no layer whose input could be guessed"
    for guess in _guesses(model):
        batch = {name: value.to(device) for name, value in guess.items()}
        try:
            Reader(model).probe(batch)
        except (LimbeckError, NotImplementedError) as error:
            said = str(error).partition(".\n")[0]
            continue
        return batch
    wrong = f"no input could be found that {type(model).__name__} can be called with (at last: {said[:300]})"
    raise ModelError(problem(where, wrong, "give a batch of a few samples: example=x, or example={'name': tensor, …}"))


def as_batch(example: Any, where: str) -> dict[str, Tensor]:
    """A tensor, a tuple of tensors or tensors by name, as the columns of a batch.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(example, Tensor):
        return {"x": example}
    if isinstance(example, Mapping):
        found = {str(name): value for name, value in example.items() if isinstance(value, Tensor)}
    elif isinstance(example, list | tuple) and all(isinstance(value, Tensor) for value in example):
        found = {f"x{i}": value for i, value in enumerate(example)}
    else:
        found = {}
    if not found:
        wrong = f"the example is {type(example).__name__} and holds no tensor"
        raise DataError(problem(where, wrong, "give a tensor, a tuple of tensors, or tensors by the names of inputs"))
    return found


def _guesses(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    noise = torch.Generator().manual_seed(0)
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        dummy = model.dummy_inputs
    except Exception:  # another's property: whatever it raises, there is no such input
        dummy = None
    if isinstance(dummy, Mapping) and all(isinstance(value, Tensor) for value in dummy.values()):
        yield dict(dummy)
    column = str(getattr(model, "main_input_name", "x"))
    layers = [module for module in model.modules() if type(module) in _SHAPES or isinstance(module, nn.RNNBase)]
    for layer in layers[:_LAYERS]:
        for guess in _RECURRENT(layer) if isinstance(layer, nn.RNNBase) else _SHAPES[type(layer)](layer):
            if isinstance(guess, Ids):
                yield {column: torch.randint(0, guess.most, guess.shape, generator=noise)}
            else:
                yield {column: torch.randn(guess, generator=noise).to(kind)}


class Ids:
    """Whole numbers below `most`, of a shape."""

    def __init__(self, most: int, *shape: int) -> None:
        self.most, self.shape = most, shape


def _images(layer: Any) -> list[Any]:
    return [(_SAMPLES, layer.in_channels, side, side) for side in _SIDES]


def _series(layer: Any) -> list[Any]:
    return [(_SAMPLES, layer.in_channels, length) for length in _LENGTHS]


def _rows(width: int) -> list[Any]:
    return [(_SAMPLES, width), *((_SAMPLES, length, width) for length in _LENGTHS[:7])]


_RECURRENT: Callable[[Any], list[Any]] = lambda layer: _rows(layer.input_size)[1:]  # noqa: E731 - a row of the table
_SHAPES: dict[type, Callable[[Any], list[Any]]] = {
    nn.Conv2d: _images,
    nn.Conv1d: _series,
    nn.Linear: lambda layer: _rows(layer.in_features),
    nn.Embedding: lambda layer: [Ids(layer.num_embeddings, _SAMPLES, length) for length in _LENGTHS[:7]],
    nn.MultiheadAttention: lambda layer: _rows(layer.embed_dim)[1:],
    nn.LayerNorm: lambda layer: _rows(layer.normalized_shape[-1]),
    nn.BatchNorm1d: lambda layer: _rows(layer.num_features),
    nn.BatchNorm2d: lambda layer: [(_SAMPLES, layer.num_features, side, side) for side in _SIDES],
}
