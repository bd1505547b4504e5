"""A digest of a model's weights, made once and in flat memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["WeightsDigest"]

_CHUNK = 1 << 24
_SAMPLE = 64


class WeightsDigest:
    """SHA-256 over names, types, shapes and values of all parameters and buffers, remembered until one changes.

    A change is seen by torch's count of writes, by the address, and by 64 values spread over each tensor, since writes
    through `.data` or NumPy aren't counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen: object = None
        self._digest = ""

    def __call__(self) -> str:
        """The digest of the weights as they are now."""
        marks = [(name, _mark(value)) for name, value in _tensors(self._model)]
        if marks != self._seen:
            self._digest, self._seen = _digest(self._model), marks
        return self._digest


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name; buffers that are kept out of the state shape the answers as well."""
    state = model.state_dict()
    yield from ((name, value) for name, value in state.items() if isinstance(value, Tensor))
    yield from ((name, value) for name, value in model.named_buffers() if name not in state)


def _mark(value: Tensor) -> tuple[object, ...]:
    places = torch.linspace(0, max(value.numel() - 1, 0), min(_SAMPLE, value.numel()), dtype=torch.float64).long()
    sample = value.detach().flatten() if value.dim() == 0 else value.detach()[torch.unravel_index(places, value.shape)]
    count = -1 if value.is_inference() else value._version
    return value.data_ptr(), count, tuple(value.shape), value.stride(), _bytes(sample.cpu())


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in _tensors(model):
        digest.update(f"{name}/{value.dtype}/{tuple(value.shape)}".encode())
        for chunk in value.detach().reshape(-1).split(_CHUNK):  # type: ignore[no-untyped-call]
            digest.update(_bytes(chunk.cpu()))
    return digest.hexdigest()


def _bytes(flat: Tensor) -> bytes:
    return flat.contiguous().view(torch.uint8).numpy().tobytes()
