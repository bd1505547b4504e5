"""A teacher with data of its own: another resolution, another normalisation, another modality, joined by sample id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import DataError, LimbeckError, ModelError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.types import RESERVED, Named
from limbeck.teachers.signal import Teaching, digest_of, plain_function

__all__ = ["Joinable", "JoinedTeacher", "Rows"]

Encode = Callable[[Mapping[str, Any]], Named]
"""From raw columns to the teacher's inputs."""


@runtime_checkable
class Joinable(Protocol):
    """Samples with ids, read by position. Every `limbeck.data.Source` is one; so is `Rows`, which also holds text."""

    @property
    def ids(self) -> Tensor:
        """int64 [N], one key a sample."""
        ...

    def fetch(self, index: Tensor) -> Mapping[str, Any]:
        """The raw columns of the samples at these positions."""
        ...

    def fingerprint(self) -> str:
        """A digest that changes when the content does."""
        ...


class Rows:
    """Columns in memory, tensors, arrays or lists of strings, under ids that are 0, 1, 2, … unless given.

    Raises:
        DataError: there are no columns, or they are of different lengths.
    """

    def __init__(self, columns: Mapping[str, Any], *, ids: Any = None) -> None:
        self.columns = {name: _column(name, value) for name, value in columns.items()}
        sizes = {name: len(value) for name, value in self.columns.items()}
        if not sizes or min(sizes.values()) == 0 or len(set(sizes.values())) > 1:
            raise DataError(problem("teacher.data", f"its columns have the lengths {sizes}", "give one row a sample"))
        size = next(iter(sizes.values()))
        self.ids = torch.arange(size) if ids is None else torch.as_tensor(ids, dtype=torch.int64)
        if self.ids.shape != (size,):
            raise DataError(problem("teacher.data", f"{len(self.ids)} ids for {size} rows", "give one id a row"))

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, index: Tensor) -> dict[str, Any]:
        """The rows at these positions; text stays a list of strings."""
        at = index.tolist()
        return {k: v[index] if isinstance(v, Tensor) else [v[i] for i in at] for k, v in self.columns.items()}

    def fingerprint(self) -> str:
        """sha256 over ids and content, by column name."""
        total = hashlib.sha256(self.ids.numpy().tobytes())
        for name, value in sorted(self.columns.items()):
            if isinstance(value, Tensor):
                total.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
                total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            else:
                total.update(f"{name}:text:{len(value)};".encode())
                for text in value:
                    data = text.encode()
                    total.update(len(data).to_bytes(8, "big") + data)
        return total.hexdigest()


class JoinedTeacher:
    """A teacher that answers from data of its own: each sample's row is found by the batch's `id`, never by position.

    Its data is not augmented: every view of a sample has the same answer. Byte images (uint8 N,H,W,C) are divided by
    255 and come with channels first; what `data` says of its normalisation is applied, and the teacher's own replaces
    it. Labels are the batch's.

    Args:
        inner: any teacher.
        data: its samples, under the ids of the training data.
        encode: from raw columns to the teacher's inputs, for text, audio, or another processor. None takes the
            teacher's own (a tokenizer), or the columns as they are.

    Raises:
        DataError: two rows have one id.
    """

    def __init__(self, inner: Teaching, data: Joinable, *, encode: Encode | None = None) -> None:
        self.inner, self.data = inner, data
        self._given = encode
        self._encode: Encode | None = encode if encode is not None else getattr(inner, "encode", None)
        ids = data.ids.cpu().numpy()
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]
        twice = self._sorted[1:][self._sorted[1:] == self._sorted[:-1]]
        if len(twice):
            raise DataError(problem("teacher.data", f"the id {twice[0]} is there twice", "give each sample one id"))

    @property
    def offers(self) -> frozenset[str]:
        """What the teacher offers."""
        return self.inner.offers

    @property
    def words(self) -> str:
        """What it is."""
        return f"{self.inner.words} on data of its own"

    @property
    def form(self) -> Mapping[str, Any]:
        """How the teacher computes."""
        return self.inner.form

    def identity(self) -> dict[str, Any]:
        """The teacher's, with its data and how that is encoded."""
        return {
            "teacher": type(self).__name__,
            "inner": self.inner.identity(),
            "data": self.data.fingerprint(),
            "encode": plain_function(self._given),
        }

    def fingerprint(self) -> str:
        """A digest of the identity."""
        return digest_of(self.identity())

    def require(self, ids: Tensor) -> None:
        """Refuse samples that its data has not.

        Raises:
            DataError: an id is missing.
        """
        self._find(ids)

    def _find(self, ids: Tensor) -> Tensor:
        wanted = ids.cpu().numpy()
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        lost = wanted[self._sorted[at] != wanted]
        if len(lost):
            wrong = f"it has no sample {lost[0]}" + (
                f" and {len(lost) - 1} more of those asked for" if lost[1:].size else ""
            )
            raise DataError(problem("teacher.data", wrong, "give it a row for each id of the training data"))
        return torch.from_numpy(self._order[at])

    def open(
        self,
        names: Iterable[str],
        example: Named,
        *,
        applied: Normalize | None = None,  # noqa: ARG002 - it has data of its own
        device: torch.device | None = None,
        samples: Named | None = None,
    ) -> Named:
        """Open the teacher on the rows of its own that belong to `example`.

        Raises:
            DataError: its data lacks a sample, or cannot be encoded.
            ModelError: the teacher refuses.
        """
        own: Any = None if samples is None else self._joined(samples)
        return self.inner.open(
            names,
            self._joined(example),
            applied=getattr(self.data, "normalize", None),
            device=device,
            samples=own,
        )

    def close(self) -> None:
        """Close the teacher."""
        self.inner.close()

    def __call__(self, batch: Named) -> Named:
        """The signal for the samples that the batch names."""
        return self.inner(self._joined(batch))

    def _joined(self, batch: Named) -> dict[str, Tensor]:
        if "id" not in batch:
            raise DataError(problem("teacher.data", "the batch has no `id`", "make it with limbeck.data"))
        device = batch["id"].device
        raw = {k: v for k, v in self.data.fetch(self._find(batch["id"])).items() if k not in RESERVED}
        columns = self._encoded(raw)
        kept = {name: batch[name] for name in RESERVED if name in batch}
        return {**kept, **{name: value.to(device) for name, value in columns.items()}}

    def _encoded(self, raw: Mapping[str, Any]) -> Named:
        if self._encode is not None and (self._given is not None or not all(map(torch.is_tensor, raw.values()))):
            try:
                return dict(self._encode(raw))
            except LimbeckError:
                raise
            except Exception as error:
                wrong = f"its data cannot be encoded: {type(error).__name__}: {error}"
                raise DataError(problem("teacher.data", wrong, "make `encode` take the raw columns")) from error
        text = [name for name, value in raw.items() if not isinstance(value, Tensor)]
        if text:
            wrong = f"its column {text[0]!r} is text, and nothing makes numbers of it"
            raise ModelError(problem("teacher.data", wrong, "pass `encode=`, a function from the columns to inputs"))
        normalize = getattr(self.data, "normalize", None)
        image = any(map(_is_image, raw.values()))
        return {name: _ready(value, normalize, image) for name, value in raw.items()}


def _is_image(value: Tensor) -> bool:
    return value.dtype == torch.uint8 and value.dim() == 4 and value.shape[3] <= 4


def _ready(value: Tensor, normalize: Normalize | None, image: bool) -> Tensor:
    """As batches are made: images as floats with channels first; beside images only those are normalised."""
    if _is_image(value):
        value = value.permute(0, 3, 1, 2).float() / 255
        return normalize(value) if normalize is not None else value
    return normalize(value) if normalize is not None and not image and value.is_floating_point() else value


def _column(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return list(value)
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        wrong = f"its column {name!r} is neither numbers nor text ({error})"
        raise DataError(problem("teacher.data", wrong, "give tensors, arrays, or lists of strings")) from None
