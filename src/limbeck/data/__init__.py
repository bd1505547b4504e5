"""Data in: sources with stable ids, replayable augmentation, and batches that are a function of (seed, epoch)."""

from __future__ import annotations

from limbeck.data.augment import Augment
from limbeck.data.batches import Batches
from limbeck.data.columns import are_numbers
from limbeck.data.describe import Augmentation, describe
from limbeck.data.files import Digits, Npz, Splits
from limbeck.data.folders import ImageFolder
from limbeck.data.sources import (
    ArraySource,
    DatasetSource,
    Source,
    SubsetSource,
    as_source,
    check_labels,
    hold_out,
    split,
    whole,
)
from limbeck.data.tables import Table
from limbeck.data.transform import Transform

__all__ = [
    "SOURCES",
    "ArraySource",
    "Augment",
    "Augmentation",
    "Batches",
    "DatasetSource",
    "Digits",
    "ImageFolder",
    "Npz",
    "Source",
    "Splits",
    "SubsetSource",
    "Table",
    "Transform",
    "are_numbers",
    "as_source",
    "check_labels",
    "describe",
    "hold_out",
    "split",
    "whole",
]

SOURCES: dict[str, type] = {"digits": Digits, "npz": Npz, "images": ImageFolder, "table": Table}
"""Every setting that names data, by its `kind`."""
