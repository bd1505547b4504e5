"""Data that lives in memory, and any data seen through a choice of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from limbeck.core.errors import DataError, problem
from limbeck.core.normalize import Normalize
from limbeck.data.columns import are_numbers, check_finite, clean_columns, is_image, name_columns

__all__ = ["ArraySource", "Source", "SubsetSource", "check_labels", "whole"]


@runtime_checkable
class Source(Protocol):
    """Samples with stable ids, read by index. Positions never decide identity, ids do."""

    @property
    def ids(self) -> Tensor:
        """int64 [N], one stable key a sample."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """int64 [N], -1 where there is no label; None if there are none, they are no classes, or not known unread."""
        ...

    @property
    def classes(self) -> int | None:
        """Number of classes, where it is known."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name a class, where they are known."""
        ...

    @property
    def normalize(self) -> Normalize | None:
        """What batches get applied to their images, or their features."""
        ...

    @property
    def image(self) -> bool:
        """Whether an input column is uint8 N,H,W,C."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def fetch(self, index: Tensor) -> dict[str, Tensor]:
        """The raw columns of the samples at these positions, `y` among them when labelled."""
        ...

    def read(self, batches: Iterable[Tensor], *, workers: int = 0, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """`fetch` for one index after the other, ahead of time in `workers` processes where that helps."""
        ...

    def fingerprint(self) -> str:
        """A digest that changes when the content does."""
        ...

    def inputs_fingerprint(self) -> str:
        """A digest of what models are given, labels and normalisation left out; of the whole, for a part of it."""
        ...

    def subset(self, index: Tensor) -> Source:
        """The samples at these positions, under their own ids."""
        ...


class ArraySource:
    """Columns held in memory. Arrays are shared, not copied, where their type and layout are already right.

    Args:
        data: `(X, y)`, `X`, `((X1, X2), y)`, or a dict; numpy arrays, tensors, or lists of numbers.
        classes: number of classes; found from the labels when None.
        class_names: one name a class.
        normalize: applied to images (after division by 255) and to float inputs when batches are made.
        where: what to call this data in messages.

    Raises:
        DataError: empty, of different lengths, not finite, not numbers, or with impossible labels.
    """

    def __init__(
        self,
        data: Any,
        *,
        classes: int | None = None,
        class_names: Iterable[str] | None = None,
        normalize: Normalize | None = None,
        where: str = "data",
    ) -> None:
        self.columns = clean_columns(name_columns(data, where), where)
        check_finite(self.columns, where)
        self.class_names = None if class_names is None else tuple(class_names)
        self.normalize = normalize
        self.image = any(is_image(column) for name, column in self.columns.items() if name != "y")
        self.ids = torch.arange(len(self))
        y = self.columns.get("y")
        self.labels: Tensor | None = y if y is not None and y.dim() == 1 and not are_numbers(y) else None
        named = len(self.class_names) if self.class_names is not None else None
        known = classes if classes is not None else named
        self.classes: int | None = known if known is not None else _count_classes(y)
        if known is not None:
            check_labels(self, known, where)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def fetch(self, index: Tensor) -> dict[str, Tensor]:
        """The raw columns of the samples at these positions."""
        # index_select copies whole rows; `column[index]` walks single elements and is many times slower.
        return {name: column.index_select(0, index) for name, column in self.columns.items()}

    def read(self, batches: Iterable[Tensor], *, workers: int = 0, seed: int = 0) -> Iterator[dict[str, Tensor]]:  # noqa: ARG002 - memory needs neither
        """`fetch` for one index after the other; worker processes would only slow memory down."""
        return map(self.fetch, batches)

    def fingerprint(self) -> str:
        """sha256 over names, types, shapes and bytes of all columns, computed once."""
        return self._digest

    def inputs_fingerprint(self) -> str:
        """sha256 over names, types, shapes and bytes of the columns that models are given."""
        return self._inputs_digest

    def subset(self, index: Tensor) -> SubsetSource:
        """The samples at these positions, under their own ids; nothing is copied."""
        return SubsetSource(self, index)

    @cached_property
    def _digest(self) -> str:
        digest = hash_columns(self.columns)
        digest.update(repr(self.normalize).encode())
        return str(digest.hexdigest())

    @cached_property
    def _inputs_digest(self) -> str:
        return str(hash_columns({name: column for name, column in self.columns.items() if name != "y"}).hexdigest())


class SubsetSource:
    """Some samples of another source, in a given order, under the ids they have there.

    Raises:
        DataError: no sample is chosen, or one that is not there.
    """

    def __init__(self, parent: Source, index: Tensor) -> None:
        index = torch.as_tensor(index, dtype=torch.int64)
        size = len(parent)
        if index.numel() == 0:
            raise DataError(problem("subset", "no samples are chosen", "choose at least one"))
        if int(index.min()) < 0 or int(index.max()) >= size:
            wrong = f"positions run from {int(index.min())} to {int(index.max())}, the data has {size} samples"
            raise DataError(problem("subset", wrong, f"choose positions from 0 to {size - 1}"))
        self.parent, self.index = parent, index
        self.ids = parent.ids[index]
        self.classes, self.class_names = parent.classes, parent.class_names
        self.normalize, self.image = parent.normalize, parent.image

    @cached_property
    def labels(self) -> Tensor | None:
        """The labels of the chosen samples, if they are known."""
        labels = self.parent.labels
        return None if labels is None else labels[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def fetch(self, index: Tensor) -> dict[str, Tensor]:
        """The raw columns of the samples at these positions of the subset."""
        return self.parent.fetch(self.index[index])

    def read(self, batches: Iterable[Tensor], *, workers: int = 0, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """`fetch` for one index after the other, as the parent does it."""
        return self.parent.read([self.index[at] for at in batches], workers=workers, seed=seed)

    def fingerprint(self) -> str:
        """sha256 over the parent's fingerprint and the chosen ids."""
        digest = hashlib.sha256(self.parent.fingerprint().encode())
        digest.update(self.ids.numpy().tobytes())
        return digest.hexdigest()

    def inputs_fingerprint(self) -> str:
        """That of what this is a part of: its ids say which part."""
        return self.parent.inputs_fingerprint()

    def subset(self, index: Tensor) -> SubsetSource:
        """A choice from the choice: one step from the parent, however often it is repeated."""
        chosen = SubsetSource(self, index)  # checks the positions against this subset
        return SubsetSource(self.parent, self.index[chosen.index])


def whole(source: Source) -> Source:
    """What a source is a part of, or the source itself."""
    while isinstance(source, SubsetSource):
        source = source.parent
    return source


def check_labels(source: Source, classes: int, where: str) -> None:
    """Refuse labels that `classes` outputs cannot hold; one output holds a real number. Unknown class numbers pass.

    Raises:
        DataError: a label is too large, soft labels have another width, or labels are real numbers and no classes.
    """
    mend = f"number classes 0 to {classes - 1}, or give the model more outputs"
    if classes == 1:
        mend = "give the model an output a class; or, if `y` is a quantity, give it as floats"
    labels = source.labels
    soft = source.fetch(torch.tensor([0])).get("y") if labels is None else None
    if labels is not None:
        bad = (labels >= classes).nonzero()
        if len(bad):
            at = int(bad[0])
            row = int(source.ids[at])  # as the user counts, also where this is a part that was split off
            raise DataError(problem(where, f"label `y` is {int(labels[at])} in row {row}, of {classes} classes", mend))
    elif are_numbers(soft):
        if classes != 1:
            mend = "give integers, e.g. `y.astype('int64')`; or, if `y` is a quantity, a model with one output"
            raise DataError(problem(where, f"labels `y` are not integers, and there are {classes} classes", mend))
    elif soft is not None and soft.is_floating_point() and soft.shape[-1] != classes:
        raise DataError(problem(where, f"soft labels have {soft.shape[-1]} columns, of {classes} classes", mend))


def hash_columns(columns: Mapping[str, Tensor]) -> Any:
    """A sha256 object fed with names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    feed: Callable[[Any], None] = digest.update
    for name in sorted(columns):
        column = columns[name].contiguous()
        feed(f"{name}:{column.dtype}:{tuple(column.shape)};".encode())
        feed(column.reshape(-1).view(torch.uint8).numpy())
    return digest


def _count_classes(y: Tensor | None) -> int | None:
    if y is None or y.dim() > 2 or are_numbers(y):
        return None
    if y.is_floating_point():
        return int(y.shape[1])
    return int(y.max()) + 1 or None if y.dim() == 1 else None
