"""Map-style datasets and loaders as sources: read sample by sample, in our order, under stable ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import data as torch_data

from limbeck.core.errors import DataError, problem
from limbeck.core.normalize import Normalize
from limbeck.data.arrays import ArraySource, Source, SubsetSource, check_labels, hash_columns
from limbeck.data.columns import are_numbers, check_finite, clean_columns, is_image, name_columns

__all__ = ["DatasetSource", "from_dataset", "from_loader"]

Collate = Callable[[list[Any]], Any]


class DatasetSource:
    """Any object with `len(d)` and `d[i]`, batched by torch's `default_collate` or by `collate`.

    Samples are tuples whose last item is the label, dicts, or plain tensors. One sample is read at once, to learn
    the columns. Values are checked as they are read.

    Raises:
        DataError: the dataset is empty, or its samples cannot be batched.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        collate: Collate | None = None,
        workers: int = 0,
        classes: int | None = None,
        normalize: Normalize | None = None,
        where: str = "data",
    ) -> None:
        self.dataset, self.collate, self.workers, self.where = dataset, collate, workers, where
        self.normalize = normalize
        if not len(dataset):
            raise DataError(problem(where, "the dataset is empty", "give at least one sample"))
        self.ids = torch.arange(len(dataset))
        first = self.fetch(torch.tensor([0]))
        self.image = any(is_image(column) for name, column in first.items() if name != "y")
        names = getattr(dataset, "classes", None)
        named = isinstance(names, list | tuple) and bool(names) and all(isinstance(name, str) for name in names)
        self.class_names: tuple[str, ...] | None = tuple(names) if named and names else None
        self.labels = self._known_labels()
        y = first.get("y")
        soft = int(y.shape[1]) if y is not None and y.is_floating_point() and not are_numbers(y) else None
        named_count = len(self.class_names) if self.class_names else None
        counted = int(self.labels.max()) + 1 or None if self.labels is not None else None
        self.classes: int | None = next((n for n in (classes, named_count, soft, counted) if n is not None), None)
        if classes is not None:
            check_labels(self, classes, where)

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, index: Tensor) -> dict[str, Tensor]:
        """The raw columns of the samples at these positions."""
        positions = index.tolist()
        many = getattr(self.dataset, "__getitems__", None)
        samples = many(positions) if callable(many) else [self.dataset[i] for i in positions]
        try:
            collated = (self.collate or torch_data.default_collate)(list(samples))
        except (TypeError, RuntimeError) as error:
            if self.collate is not None:
                raise
            mend = "make the dataset yield tensors of one shape, or give a DataLoader with its own collate_fn"
            raise DataError(problem(self.where, f"samples cannot be batched ({_short(error)})", mend)) from None
        return self._clean(collated, index)

    def read(self, batches: Iterable[Tensor], *, workers: int = 0, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """`fetch` for one index after the other, in `workers` processes (or as many as the user's loader had)."""
        batches, workers = list(batches), workers or self.workers
        if not workers:
            yield from map(self.fetch, batches)
            return
        loader = torch_data.DataLoader(
            self.dataset,
            batch_sampler=[index.tolist() for index in batches],
            num_workers=workers,
            collate_fn=self.collate,
            generator=torch.Generator().manual_seed(seed),  # else every epoch would draw from the global generator
        )
        for index, collated in zip(batches, loader, strict=True):
            yield self._clean(collated, index)

    def fingerprint(self) -> str:
        """sha256 over length, repr and a few samples. A dataset that draws at random has none that lasts."""
        return self._digest

    def inputs_fingerprint(self) -> str:
        """sha256 over length, repr and a few samples, labels left out."""
        return self._inputs_digest

    def subset(self, index: Tensor) -> SubsetSource:
        """The samples at these positions, under their own ids."""
        return SubsetSource(self, index)

    @cached_property
    def _digest(self) -> str:
        return self._digest_of(self._some(), repr(self.normalize))

    @cached_property
    def _inputs_digest(self) -> str:
        return self._digest_of({name: column for name, column in self._some().items() if name != "y"})

    def _some(self) -> dict[str, Tensor]:
        return self.fetch(_spread(len(self)))

    def _digest_of(self, columns: dict[str, Tensor], *more: str) -> str:
        digest = hash_columns(columns)
        # Addresses in a repr change from process to process.
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.dataset))
        digest.update(":".join([str(len(self)), text, *more]).encode())
        return str(digest.hexdigest())

    def _clean(self, collated: Any, index: Tensor) -> dict[str, Tensor]:
        columns = clean_columns(name_columns(collated, self.where), self.where)
        for name, column in columns.items():
            if len(column) != len(index):
                wrong = f"column {name!r} has {len(column)} rows for {len(index)} samples"
                raise DataError(problem(self.where, wrong, "let collate_fn return one row a sample, samples first"))
        check_finite(columns, self.where, index)
        return columns

    def _known_labels(self) -> Tensor | None:
        """The labels that torchvision's datasets keep beside the samples, if the samples agree with them."""
        for name in ("targets", "labels"):
            held = getattr(self.dataset, name, None)
            if not isinstance(held, list | tuple | Tensor) and type(held).__module__ != "numpy":
                continue
            try:
                labels = torch.as_tensor(held)
            except (TypeError, ValueError, RuntimeError):
                continue
            if labels.dim() != 1 or labels.is_floating_point() or len(labels) != len(self):
                continue
            y = self._some().get("y")
            if y is not None and y.dim() == 1 and torch.equal(y, labels[_spread(len(self))].long()):
                return labels.long()
        return None


def from_dataset(dataset: Any, *, collate: Collate | None = None, workers: int = 0, **settings: Any) -> Source:
    """A map-style dataset as a source. `TensorDataset` becomes arrays; `Subset` keeps the ids of what it is part of."""
    if isinstance(dataset, torch_data.Subset):
        whole = from_dataset(dataset.dataset, collate=collate, workers=workers, **settings)
        return whole.subset(torch.as_tensor(list(dataset.indices), dtype=torch.int64))
    if type(dataset) is torch_data.TensorDataset and collate is None:
        return ArraySource(dataset.tensors, **settings)
    return DatasetSource(dataset, collate=collate, workers=workers, **settings)


def from_loader(loader: torch_data.DataLoader[Any], **settings: Any) -> Source:
    """The dataset behind a loader, with its collate_fn and workers; our batch size and seed decide the order.

    Raises:
        DataError: the loader chooses samples in a way that would be lost.
    """
    where = str(settings.get("where", "data"))
    if isinstance(loader.dataset, torch_data.IterableDataset):
        raise DataError(problem(where, "the loader reads an IterableDataset, which has no stable ids", STREAM_MEND))
    mend = "give the dataset itself, or `torch.utils.data.Subset(dataset, indices)` to choose samples"
    if type(loader.batch_sampler) is not torch_data.BatchSampler:
        raise DataError(problem(where, "the loader makes its batches by a rule of its own, which would be lost", mend))
    plain_collate = loader.collate_fn is torch_data.default_collate
    collate = None if plain_collate else loader.collate_fn
    source = from_dataset(loader.dataset, collate=collate, workers=loader.num_workers, **settings)
    sampler = loader.sampler
    if isinstance(sampler, torch_data.SubsetRandomSampler):
        return source.subset(torch.tensor(sorted(int(i) for i in sampler.indices)))
    if isinstance(sampler, torch_data.SequentialSampler):
        return source
    if isinstance(sampler, torch_data.RandomSampler) and not sampler.replacement and sampler.num_samples == len(source):
        return source
    raise DataError(problem(where, f"the loader's {type(sampler).__name__} chooses samples, which would be lost", mend))


STREAM_MEND = "read it into a list or arrays first, or give a map-style dataset (one with `__len__` and `__getitem__`)"


def _spread(size: int) -> Tensor:
    """A few positions from the first to the last: what a data set that is not in memory is known by."""
    return torch.linspace(0, size - 1, min(size, 8)).round().long()


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120]
