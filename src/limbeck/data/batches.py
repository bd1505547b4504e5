"""Batches with ids: a stateless pure function of (source, seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, DataError, nearest, problem
from limbeck.core.normalize import Normalize
from limbeck.core.seeds import derive
from limbeck.core.types import RESERVED
from limbeck.data.arrays import Source
from limbeck.data.augment import Augment, augment
from limbeck.data.columns import are_numbers, is_image
from limbeck.data.describe import Augmentation
from limbeck.data.mix import Mixing, digest_ids, draw_mix, mix_images, mix_labels, partners
from limbeck.data.pixels import Affine, affine
from limbeck.data.transform import Transform

__all__ = ["Batches"]


class Batches:
    """A source cut into batches.

    Each holds `id` int64 [B], `valid` bool [B], `view` int64 [B], the inputs, and `y` if labelled. Images come as
    normalised float32 [B, C, H, W] in channels-last memory. The view of an augmented sample is the epoch, or
    `epoch % views`; without augmentation there is one view alone, 0. With `shuffle=False` and no augmentation it is
    the evaluation pass.

    Args:
        source: what to read.
        batch_size: samples of a batch; the last one may be smaller.
        seed: decides the order.
        shuffle: a new order each epoch.
        augment: what may be done to images, or a `Transform` of any column.
        workers: processes that read a dataset ahead; arrays need none.
        views: number of views that repeat, or None for a new one each epoch.
        augment_seed: decides augmentation, so that runs with other orders see the same views; from `seed` when None.
        part: (i, n): of every batch, the i-th of n nearly equal parts, counted from 0. A part without samples is one
            sample that is not `valid`.

    Raises:
        DataError: the batch size does not suit the data, or the augmentation does not.
        ConfigError: `views` or `workers` cannot be.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        augment: Augmentation | None = None,
        workers: int = 0,
        views: int | None = None,
        augment_seed: int | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise DataError(problem("batch_size", f"it is {batch_size}", "give 1 or more"))
        if batch_size > len(source):
            wrong = f"it is {batch_size}, the data has {len(source)} samples"
            raise DataError(problem("batch_size", wrong, f"give {len(source)} or less"))
        if workers < 0 or (views is not None and views < 1):
            wrong = f"workers is {workers}, views is {views}"
            raise ConfigError(problem("batches", wrong, "give workers of 0 or more, and views of 1 or more, or None"))
        self.source, self.batch_size, self.seed, self.shuffle = source, batch_size, seed, shuffle
        self.workers, self.views, self.part = workers, views, part
        self.augment_seed = derive(seed, "augment") if augment_seed is None else augment_seed
        off = isinstance(augment, Augment) and not (augment.moves or augment.mixes)
        self.augment = None if off else augment
        self._how = self.augment if isinstance(self.augment, Augment) else None
        self._transform = self.augment if isinstance(self.augment, Transform) else None
        self._mixing = self._how.mixing if self._how is not None else None
        self._steps: dict[tuple[torch.dtype, int, Normalize | None], Affine | None] = {}
        if self._how is not None:
            _check_augment(source, self._how)
        if self._transform is not None:
            _check_transform(source, self._transform, self.augment_seed)

    def __len__(self) -> int:
        return math.ceil(len(self.source) / self.batch_size)

    @property
    def samples(self) -> int:
        """Number of samples in an epoch."""
        return len(self.source)

    @property
    def partners_depend_on(self) -> str | None:
        """A digest of the set of ids that partners come from; None where nothing is mixed.

        Targets for mixed samples belong to this set: with one id more or less, others are mixed.
        """
        return digest_ids(self.source.ids) if self._mixing is not None else None

    def order(self, epoch: int) -> Tensor:
        """The positions of an epoch's samples, in the order in which they are read."""
        if not self.shuffle:
            return torch.arange(self.samples)
        generator = torch.Generator().manual_seed(derive(self.seed, "shuffle", epoch))
        return torch.randperm(self.samples, generator=generator)

    def view(self, epoch: int) -> int:
        """The view that an epoch shows."""
        if self.augment is None:
            return 0
        return epoch if self.views is None else epoch % self.views

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch; the first `start` are skipped without being read."""
        whole = torch.split(self.order(epoch), self.batch_size)[start:]
        own = [torch.tensor_split(at, self.part[1])[self.part[0]] for at in whole]
        reads = [mine if len(mine) else at[:1] for mine, at in zip(own, whole, strict=True)]
        batches = self.read(reads, self.view(epoch), seed=derive(self.seed, "workers", epoch))
        for mine, batch in zip(own, batches, strict=True):
            yield batch if len(mine) else batch | {"valid": torch.zeros(1, dtype=torch.bool)}

    def read(self, positions: Sequence[Tensor], view: int, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of these positions in one view; `seed` is for a dataset's own generators in worker processes."""
        ids, reads = self.source.ids, tuple(positions)
        if self._mixing is not None:
            # Partners are read behind the batch that they are for: one read, ahead of time where there are workers.
            partner = partners(ids, seed=self.augment_seed, view=view)
            reads = tuple(torch.cat([at, partner[at]]) for at in positions)
        raws = self.source.read(reads, workers=self.workers, seed=seed)
        for at, read, raw in zip(positions, reads, raws, strict=True):
            batch = {
                "id": ids[at],
                "valid": torch.ones(len(at), dtype=torch.bool),
                "view": torch.full((len(at),), view),
            }
            columns = {k: v if k == "y" else self._input(k, v, ids[read], view) for k, v in raw.items()}
            yield batch | (columns if self._mixing is None else self._mixed(columns, ids[at], view, self._mixing))

    def _input(self, name: str, column: Tensor, ids: Tensor, view: int) -> Tensor:
        byte_image = is_image(column)
        if self._transform is not None and name == self._transform.on:
            column = self._transform.apply(column, ids, seed=self.augment_seed, view=view)
            if byte_image:
                return self._images(column.permute(0, 2, 3, 1).contiguous(), ids, view, self.source.normalize)
        elif byte_image:
            return self._images(column, ids, view, self.source.normalize)
        # In a source of byte images, the normalisation speaks of those alone.
        own = None if self.source.image else self.source.normalize
        if self._how is not None and _can_augment(column):
            return self._images(column.permute(0, 2, 3, 1).contiguous(), ids, view, own)
        if column.is_floating_point() and own is not None:
            return own(column)
        return column

    def _images(self, images: Tensor, ids: Tensor, view: int, normalize: Normalize | None) -> Tensor:
        key = (images.dtype, images.shape[3], normalize)
        if key not in self._steps:
            self._steps[key] = affine(normalize, dtype=images.dtype, channels=images.shape[3])
        return augment(images, ids, self._how, seed=self.augment_seed, view=view, step=self._steps[key])

    def _mixed(self, columns: dict[str, Tensor], ids: Tensor, view: int, how: Mixing) -> dict[str, Tensor]:
        """Samples mixed with their partners, which come behind them."""
        halves = {name: (column[: len(ids)], column[len(ids) :]) for name, column in columns.items()}
        inputs = {name: half for name, half in halves.items() if name != "y"}
        height, width = next(iter(inputs.values()))[0].shape[2:]
        mix = draw_mix(ids, how, seed=self.augment_seed, view=view, height=height, width=width)
        mixed = {name: mix_images(own, other, mix) for name, (own, other) in inputs.items()}
        if "y" in halves:
            assert self.source.classes is not None  # checked before the first batch
            mixed["y"] = mix_labels(*halves["y"], mix, self.source.classes)
        return mixed


def _can_augment(column: Tensor) -> bool:
    return is_image(column) or (column.is_floating_point() and column.dim() == 4)


def _check_augment(source: Source, how: Augment) -> None:
    first = source.fetch(torch.tensor([0]))
    inputs = {name: column for name, column in first.items() if name != "y"}
    suits = [_can_augment(column) for column in inputs.values()]
    if not any(suits):
        seen = ", ".join(f"{name} is {column.dtype} {tuple(column.shape[1:])}" for name, column in inputs.items())
        mend = "leave `augment` out: it is for images (uint8, or float N,C,H,W)"
        raise DataError(problem("augment", f"no input is an image: {seen}", mend))
    if how.recolours:
        for name, column in inputs.items():
            _check_colours(name, column)
    if not how.mixes:
        return
    if not all(suits) or len({_size(column) for column in inputs.values()}) > 1:
        raise DataError(problem("augment", "mixup and cutmix need images of one size alone", "set both to 0"))
    if are_numbers(first.get("y")):
        raise DataError(
            problem("augment", "mixup and cutmix mix classes, and labels are real numbers", "set both to 0")
        )
    if "y" in first and source.classes is None:
        mend = "give `classes=` where the data is made, or set both to 0"
        raise DataError(problem("augment", "mixup and cutmix need to know the number of classes", mend))
    if "y" in first and not first["y"].is_floating_point() and first["y"].dim() != 1:
        raise DataError(problem("augment", "mixup and cutmix need one label a sample", "set both to 0"))


def _check_colours(name: str, column: Tensor) -> None:
    if is_image(column) or not _can_augment(column):
        return
    channels = column.shape[1]
    if channels not in (1, 3, 4):
        mend = "set brightness, contrast, saturation, hue and grey to 0"
        raise DataError(problem("augment", f"column {name!r} has {channels} channels, which are no colours", mend))
    low, high = float(column.min()), float(column.max())
    if low < 0 or high > 1:
        wrong = f"column {name!r} runs from {low:.3g} to {high:.3g}, and colours are changed on pixels from 0 to 1"
        raise DataError(problem("augment", wrong, "give bytes, or floats from 0 to 1, and let `normalize` do the rest"))


def _check_transform(source: Source, transform: Transform, seed: int) -> None:
    first = source.fetch(torch.tensor([0]))
    if transform.on not in first:
        names = [name for name in first if name not in RESERVED]
        mend = f"set `on`: {nearest(transform.on, names)}"
        raise DataError(problem("transform", f"there is no column {transform.on!r}", mend))
    if transform.on == "y":
        raise DataError(problem("transform", "`y` is the label", "set `on` to an input, and change labels in the data"))
    transform.check(first[transform.on], source.ids[:1], seed=seed)


def _size(column: Tensor) -> tuple[int, ...]:
    return tuple(column.shape[1:3] if is_image(column) else column.shape[2:])
