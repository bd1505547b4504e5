"""Settings for tables of numbers in CSV or TSV files.

Shapes: N = rows, F = feature columns.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from limbeck.core.errors import ConfigError, DataError, nearest, problem
from limbeck.core.setting import setting
from limbeck.data.arrays import ArraySource, Source
from limbeck.data.files import Splits, check_file, check_share
from limbeck.data.sources import split

__all__ = ["Table"]


@setting
class Table:
    """A CSV or TSV file with a header: the column `label`, and numeric features in all others, float32 [N, F].

    Labels that are all whole numbers are taken as class numbers; others become classes in sorted order of their names.
    `standardize` subtracts the training rows' mean and divides by their standard deviation.
    """

    kind: Literal["table"] = "table"
    path: str
    label: str
    test: str | None = None
    val: str | None = None
    delimiter: str | None = None
    standardize: bool = True
    val_share: float = 0.1
    test_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a delimiter that csv cannot use, and shares that leave nothing."""
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(problem("table", f"delimiter is {self.delimiter!r}", "give one character"))
        check_share("table", val_share=self.val_share, test_share=self.test_share)

    def load(self) -> Splits:
        """Read the files and split what is not split yet.

        Raises:
            DataError: a file is missing, or a cell, row or label is not what it must be.
        """
        rows = self._read(self.path)
        names = _class_names(rows.labels)
        parts: dict[str, Source] = {"train": _source(rows, names)}
        for part, path in (("test", self.test), ("val", self.val)):
            if path is not None:
                held = self._read(path)
                if held.features != rows.features:
                    missing = sorted(set(rows.features) ^ set(held.features)) or ["the order of columns"]
                    mend = f"give it the columns of {self.path}, in the same order"
                    raise DataError(problem(path, f"columns differ from train's: {', '.join(missing)}", mend))
                known = None if names is not None else max(map(int, rows.labels)) + 1
                parts[part] = _source(held, names, known)
        for part, share in (("test", self.test_share), ("val", self.val_share)):
            if part not in parts:
                parts["train"], parts[part] = split(parts["train"], share, self.seed)
        if self.standardize:
            parts = _standardized(parts)
        return Splits(parts["train"], parts["val"], parts["test"])

    def _read(self, path: str) -> _Rows:
        check_file(Path(path), "a table")
        delimiter = self.delimiter or ("\t" if Path(path).suffix.lower() in (".tsv", ".tab") else ",")
        try:
            with Path(path).open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file, delimiter=delimiter)
                lines = [(reader.line_num, cells) for cells in reader if cells]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(problem(path, f"this is no text table ({error})", "save it as UTF-8 CSV or TSV")) from None
        if len(lines) < 2:
            raise DataError(problem(path, "there is no row below the header", "give at least one row of data"))
        return _parse(path, self.label, lines)


class _Rows(NamedTuple):
    path: str
    features: tuple[str, ...]
    x: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    labels: list[str]


def _parse(path: str, label: str, lines: list[tuple[int, list[str]]]) -> _Rows:
    header = [name.strip() for name in lines[0][1]]
    if label not in header:
        raise DataError(problem(path, f"there is no column {label!r}", f"set `label`: {nearest(label, header)}"))
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise DataError(problem(path, f"column {sorted(twice)[0]!r} is there twice", "give every column its own name"))
    at = header.index(label)
    features = tuple(name for name in header if name != label)
    if not features:
        raise DataError(problem(path, "the label is the only column", "give at least one feature column"))
    x, labels = np.empty((len(lines) - 1, len(features))), []
    for row, (line, cells) in enumerate(lines[1:]):
        if len(cells) != len(header):
            mend = f"give every row {len(header)} cells, or set `delimiter`"
            raise DataError(problem(f"{path}, line {line}", f"it has {len(cells)} cells", mend))
        labels.append(cells[at].strip())
        if not labels[-1]:
            raise DataError(
                problem(f"{path}, line {line}", f"column {label!r} is empty", "fill it in, or drop the row")
            )
        x[row] = [
            _number(cell, f"{path}, line {line}", name)
            for name, cell in zip(header, cells, strict=True)
            if name != label
        ]
    return _Rows(path, features, x, labels)


def _number(cell: str, where: str, column: str) -> float:
    if not cell.strip():
        raise DataError(problem(where, f"column {column!r} is empty", "fill the cell in, or drop the row"))
    try:
        value = float(cell)
    except ValueError:
        mend = "give a number; encode words as 0/1 columns first"
        raise DataError(problem(where, f"column {column!r} is {cell!r}, no number", mend)) from None
    if not math.isfinite(value):
        raise DataError(problem(where, f"column {column!r} is {cell!r}", "give a finite number, or drop the row"))
    return value


def _class_names(labels: list[str]) -> tuple[str, ...] | None:
    """Sorted names, or None where every label is a whole number."""
    return None if all(text.lstrip("-").isdecimal() for text in labels) else tuple(sorted(set(labels)))


def _source(rows: _Rows, names: tuple[str, ...] | None, classes: int | None = None) -> ArraySource:
    if names is None:
        wrong = next((text for text in rows.labels if not text.lstrip("-").isdecimal()), None)
        numbers = [int(text) for text in rows.labels] if wrong is None else []
    else:
        place = {name: number for number, name in enumerate(names)}
        wrong = next((text for text in rows.labels if text not in place), None)
        numbers = [place[text] for text in rows.labels] if wrong is None else []
    if wrong is not None:
        mend = "train must have every class; correct the label, or add rows of that class to train"
        raise DataError(problem(rows.path, f"label {wrong!r} is not in train", mend))
    y = torch.tensor(numbers)
    return ArraySource((rows.x, y), class_names=names, classes=classes, where=rows.path)


def _standardized(parts: dict[str, Source]) -> dict[str, Source]:
    """Every part by the training rows' mean and standard deviation; a constant column becomes 0."""
    everything = torch.arange(len(parts["train"]))
    x = parts["train"].fetch(everything)["x"].double()
    mean, std = x.mean(0), x.std(0, correction=0)
    std[std <= 1e-12 * mean.abs().clamp_min(1e-12)] = 1.0
    done: dict[str, Source] = {}
    for name, part in parts.items():
        whole = _whole(part)
        columns = dict(whole.columns)
        columns["x"] = ((columns["x"].double() - mean) / std).float()
        scaled = ArraySource(columns, class_names=whole.class_names, classes=whole.classes)
        done[name] = scaled if whole is part else scaled.subset(part.ids)
    return done


def _whole(part: Source) -> ArraySource:
    """The arrays behind a part; their rows are numbered by its ids."""
    whole = getattr(part, "parent", part)
    assert isinstance(whole, ArraySource)
    return whole
