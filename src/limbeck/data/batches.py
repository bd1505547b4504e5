"""Batches with ids: a stateless pure function of (source, seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, DataError, problem
from limbeck.core.seeds import derive
from limbeck.data.arrays import Source
from limbeck.data.augment import Affine, Augment, affine, augment, draw_mix, mix_images, mix_labels
from limbeck.data.columns import is_image

__all__ = ["Batches"]


class Batches:
    """A source cut into batches. Each holds `id` int64 [B], `valid` bool [B], the inputs, and `y` if labelled.

    Images come as normalised float32 [B, C, H, W] in channels-last memory. The view of an augmented sample is the
    epoch, or `epoch % views`. With `shuffle=False` and no augmentation it is the evaluation pass.

    Args:
        source: what to read.
        batch_size: samples of a batch; the last one may be smaller.
        seed: decides order and augmentation.
        shuffle: a new order each epoch.
        augment: what may be done to images.
        workers: processes that read a dataset ahead; arrays need none.
        views: number of views that repeat, or None for a new one each epoch.

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
        augment: Augment | None = None,
        workers: int = 0,
        views: int | None = None,
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
        self.workers, self.views = workers, views
        self.augment = augment if augment is not None and (augment.moves or augment.mixes) else None
        self._augment_seed = derive(seed, "augment")
        self._steps: dict[tuple[torch.dtype, int], Affine | None] = {}
        if self.augment is not None:
            _check_augment(source, self.augment)

    def __len__(self) -> int:
        return math.ceil(len(self.source) / self.batch_size)

    @property
    def samples(self) -> int:
        """Number of samples in an epoch."""
        return len(self.source)

    def order(self, epoch: int) -> Tensor:
        """The positions of an epoch's samples, in the order in which they are read."""
        if not self.shuffle:
            return torch.arange(self.samples)
        generator = torch.Generator().manual_seed(derive(self.seed, "shuffle", epoch))
        return torch.randperm(self.samples, generator=generator)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch; the first `start` are skipped without being read."""
        positions = torch.split(self.order(epoch), self.batch_size)[start:]
        view = epoch if self.views is None else epoch % self.views
        seed = derive(self.seed, "workers", epoch)
        for at, raw in zip(positions, self.source.read(positions, workers=self.workers, seed=seed), strict=True):
            yield self._batch(self.source.ids[at], raw, view)

    def _batch(self, ids: Tensor, raw: dict[str, Tensor], view: int) -> dict[str, Tensor]:
        batch = {"id": ids, "valid": torch.ones(len(ids), dtype=torch.bool)}
        for name, column in raw.items():
            batch[name] = column if name == "y" else self._input(column, ids, view)
        if self.augment is not None and self.augment.mixes:
            self._mix(batch, ids, view, self.augment)
        return batch

    def _input(self, column: Tensor, ids: Tensor, view: int) -> Tensor:
        moved = self.augment is not None and self.augment.moves and _can_augment(column)
        if is_image(column) or moved:
            images = column if is_image(column) else column.permute(0, 2, 3, 1).contiguous()
            return augment(images, ids, self.augment, seed=self._augment_seed, view=view, step=self._step(images))
        if column.is_floating_point() and self.source.normalize is not None and not self.source.image:
            return self.source.normalize(column)
        return column

    def _step(self, images: Tensor) -> Affine | None:
        key = (images.dtype, images.shape[3])
        if key not in self._steps:
            # In a source of byte images, the normalisation speaks of those alone.
            own = None if self.source.image and not is_image(images) else self.source.normalize
            self._steps[key] = affine(own, dtype=images.dtype, channels=images.shape[3])
        return self._steps[key]

    def _mix(self, batch: dict[str, Tensor], ids: Tensor, view: int, how: Augment) -> None:
        inputs = [name for name in batch if name not in ("id", "valid", "y")]
        height, width = batch[inputs[0]].shape[2:]
        mix = draw_mix(ids, how, seed=self._augment_seed, view=view, height=height, width=width)
        for name in inputs:
            batch[name] = mix_images(batch[name], mix)
        if "y" in batch:
            assert self.source.classes is not None  # checked before the first batch
            batch["y"] = mix_labels(batch["y"], mix, self.source.classes)


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
    if not how.mixes:
        return
    if not all(suits) or len({_size(column) for column in inputs.values()}) > 1:
        raise DataError(problem("augment", "mixup and cutmix need images of one size alone", "set both to 0"))
    if "y" in first and source.classes is None:
        mend = "give `classes=` where the data is made, or set both to 0"
        raise DataError(problem("augment", "mixup and cutmix need to know the number of classes", mend))
    if "y" in first and not first["y"].is_floating_point() and first["y"].dim() != 1:
        raise DataError(problem("augment", "mixup and cutmix need one label a sample", "set both to 0"))


def _size(column: Tensor) -> tuple[int, ...]:
    return tuple(column.shape[1:3] if is_image(column) else column.shape[2:])
