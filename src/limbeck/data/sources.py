"""The one door from whatever holds data to a `Source`, and deterministic splits of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from limbeck.core.errors import ConfigError, DataError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.seeds import derive
from limbeck.data.arrays import ArraySource, Source, SubsetSource, check_labels, whole
from limbeck.data.columns import name_columns
from limbeck.data.datasets import STREAM_MEND, DatasetSource, from_dataset, from_loader

__all__ = [
    "ArraySource",
    "DatasetSource",
    "Source",
    "SubsetSource",
    "as_source",
    "check_labels",
    "hold_out",
    "split",
    "whole",
]

FORMS = (
    "give (X, y) or X as arrays or tensors, ((X1, X2), y), a dict of arrays, a map-style torch dataset, "
    "a DataLoader over one, a list of batches, or a Source"
)


def as_source(
    data: Any, *, where: str = "train", classes: int | None = None, normalize: Normalize | None = None
) -> Source:
    """Whatever holds data, as a `Source`; a `Source` passes through.

    Accepted: `(X, y)`, `X`, `((X1, X2), y)`, a dict of arrays, a map-style torch dataset, a DataLoader over one, a list
    of batches. `normalize` is what batches will have applied; a `Source` brings its own.

    Raises:
        DataError: it is none of these, or what it holds contradicts itself.
    """
    if isinstance(data, Source):
        if classes is not None:
            check_labels(data, classes, where)
        if normalize is not None and normalize != data.normalize:
            raise DataError(
                problem(where, "this source has its own normalisation", "give `normalize` where it is made")
            )
        return data
    settings: dict[str, Any] = {"classes": classes, "normalize": normalize, "where": where}
    if isinstance(data, torch_data.DataLoader):
        return from_loader(data, **settings)
    if isinstance(data, torch_data.IterableDataset):
        raise DataError(problem(where, "an IterableDataset has no stable ids", STREAM_MEND))
    if isinstance(data, tuple | dict | Tensor) or hasattr(data, "__array__"):
        return ArraySource(data, **settings)
    if isinstance(data, list):
        return _from_list(data, settings)
    if isinstance(data, Iterator):
        raise DataError(problem(where, f"a {type(data).__name__} can be read only once", STREAM_MEND))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes):
        return from_dataset(data, **settings)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        raise DataError(problem(where, f"a {type(data).__name__} gives samples no stable ids", STREAM_MEND))
    raise DataError(problem(where, f"a {type(data).__name__} holds no data that can be read here", FORMS))


def split(source: Source, share: float = 0.1, seed: int = 0) -> tuple[Source, Source]:
    """The rest, and a held-out share of it: disjoint, the same for the same seed, under the same ids.

    Stratified by label where labels are known and every class has two samples; never empty on either side.

    Raises:
        ConfigError: `share` is not between 0 and 1.
        DataError: there are fewer than two samples.
    """
    if not 0 < share < 1:
        raise ConfigError(problem("split", f"share is {share}", "give a share above 0 and below 1"))
    return hold_out(source, round(share * len(source)), seed)


def hold_out(source: Source, count: int, seed: int = 0) -> tuple[Source, Source]:
    """As `split`, with the number of samples to hold out (moved to 1 .. N - 1 where it is outside).

    Raises:
        DataError: there are fewer than two samples.
    """
    size = len(source)
    if size < 2:
        raise DataError(problem("split", f"there is {size} sample", "give at least two, or give both parts yourself"))
    count = min(max(count, 1), size - 1)
    rng = np.random.default_rng(derive(seed, "split"))
    order = torch.from_numpy(rng.permutation(size))
    held = _stratified(source.labels, order, count)
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[order[:count] if held is None else held] = True
    return source.subset((~chosen).nonzero().view(-1)), source.subset(chosen.nonzero().view(-1))


def _stratified(labels: Tensor | None, order: Tensor, count: int) -> Tensor | None:
    """`count` positions, as many from each class as its share asks for; None where that cannot be done."""
    if labels is None:
        return None
    _, group, sizes = (
        torch.from_numpy(part) for part in np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    )
    if int(sizes.min()) < 2:
        return None
    exact = sizes.double() * count / len(labels)
    quota = torch.minimum(exact.floor().long(), sizes - 1)
    # Largest remainders first; a class never gives its last sample away unless all others already have.
    for floor in (1, 0):
        for klass in (quota - exact).argsort(stable=True).tolist() * int(sizes.max()):
            if int(quota.sum()) >= count:
                break
            if int(quota[klass]) < int(sizes[klass]) - floor:
                quota[klass] += 1
    grouped = order[group[order].argsort(stable=True)]
    rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[group[grouped]]
    return grouped[rank < quota[group[grouped]]]


def _from_list(batches: list[Any], settings: dict[str, Any]) -> Source:
    """A list of batches, read whole; a list of samples (whose labels are single numbers) is a map-style dataset."""
    where = str(settings["where"])
    if not batches:
        raise DataError(problem(where, "the list is empty", FORMS))
    if not isinstance(batches[0], tuple | list | dict | Tensor) and not hasattr(batches[0], "__array__"):
        raise DataError(problem(where, f"a list of {type(batches[0]).__name__} is neither batches nor samples", FORMS))
    named = [name_columns(batch, where) for batch in batches]
    label = named[0].get("y")
    if label is not None and getattr(label, "ndim", int(isinstance(label, list))) == 0:
        return from_dataset(batches, **settings)
    if any(set(columns) != set(named[0]) for columns in named):
        raise DataError(problem(where, "the batches have different columns", "give every batch the same columns"))
    try:
        whole = {key: torch.cat([torch.as_tensor(columns[key]) for columns in named]) for key in named[0]}
    except (TypeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise DataError(
            problem(where, f"the batches cannot be joined ({reason})", "give batches of one sample shape")
        ) from None
    return ArraySource(whole, **settings)
