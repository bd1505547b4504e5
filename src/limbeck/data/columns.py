"""From what a user holds (arrays, tuples, dicts, collated samples) to named, checked tensors.

Shapes: N = samples, H, W, C = rows, columns, channels of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import DataError, problem

__all__ = ["LABEL_KEYS", "are_numbers", "check_finite", "clean_columns", "is_image", "name_columns"]

LABEL_KEYS = ("y", "label", "labels", "target", "targets")
"""Keys of a dict that mean "the label"; the one that is present becomes `y`."""

CHANNELS = (1, 3, 4)
IGNORED_TOKEN = -100


def name_columns(data: Any, where: str) -> dict[str, Any]:
    """Give every column its name: `x` or `x0`, `x1`, ... for positional inputs, `y` for the label.

    A tuple's last item is the label; the items before it, or the items of the one tuple before it, are inputs.

    Raises:
        DataError: two columns claim to be the label, a reserved name is used, or there is no input.
    """
    if isinstance(data, Mapping):
        return _name_keys(data, where)
    if not isinstance(data, tuple | list):
        return {"x": data}
    inputs, label = (list(data[:-1]), data[-1]) if len(data) > 1 else (list(data), None)
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        named = _name_keys(inputs[0], where)
        if label is not None and "y" in named:
            raise DataError(problem(where, "labels are given twice", "leave them out of the dict, or out of the tuple"))
    else:
        if len(inputs) == 1 and _holds_arrays(inputs[0]):
            inputs = list(inputs[0])
        named = {"x": inputs[0]} if len(inputs) == 1 else {f"x{i}": value for i, value in enumerate(inputs)}
    if not named:
        raise DataError(problem(where, "there is no input column", "give (X, y), or X alone"))
    return named if label is None else {**named, "y": label}


def clean_columns(named: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Turn named columns into tensors of the types that models take, all of one length.

    Floats become float32, small integers int64; uint8 with four axes is an image and ends as N,H,W,C; labels end as
    int64 [N] (-1 means "no label"), as float32 [N, C] where they are soft, or as float32 [N] or [N, 1] where they are
    real numbers.

    Raises:
        DataError: a column is no array of numbers, is empty, or is longer than another; a label is impossible.
    """
    columns = {k: _label(v, where) if k == "y" else _input(k, v, where) for k, v in named.items() if v is not None}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        seen = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise DataError(problem(where, f"columns differ in length: {seen}", "give every column one row a sample"))
    if not any(lengths.values()):
        raise DataError(problem(where, "there are no samples", "give at least one"))
    return columns


def check_finite(columns: Mapping[str, Tensor], where: str, rows: Tensor | None = None) -> None:
    """Refuse NaN and infinity in float columns, naming the first bad row (`rows` holds the rows' own numbers).

    Raises:
        DataError: a value is not finite.
    """
    for name, column in columns.items():
        if column.is_floating_point() and not bool(torch.isfinite(column).all()):
            row = int(
                (~torch.isfinite(column).flatten(1).all(1) if column.dim() > 1 else ~column.isfinite()).nonzero()[0]
            )
            row = row if rows is None else int(rows[row])
            raise DataError(
                problem(
                    where, f"column {name!r} is NaN or infinite in row {row}", "drop such rows, or fill the values in"
                )
            )


def is_image(column: Tensor) -> bool:
    """Whether a cleaned column is a batch of images kept as bytes."""
    return column.dtype == torch.uint8 and column.dim() == 4


def are_numbers(y: Tensor | None) -> bool:
    """Whether labels are real numbers, one a sample: floats [N] or [N, 1]. Floats [N, C] are soft labels of classes."""
    return y is not None and y.is_floating_point() and (y.dim() == 1 or (y.dim() == 2 and y.shape[1] == 1))


def _name_keys(data: Mapping[Any, Any], where: str) -> dict[str, Any]:
    found = [key for key in data if key in LABEL_KEYS]
    if len(found) > 1:
        raise DataError(
            problem(
                where, f"{' and '.join(map(repr, found))} all name the label", "keep one of them, or rename the others"
            )
        )
    taken = [key for key in data if key in ("id", "valid", "view")]
    if taken:
        raise DataError(problem(where, f"the column name {taken[0]!r} is kept for the library", "rename that column"))
    named = {"y" if key in LABEL_KEYS else str(key): value for key, value in data.items()}
    if not set(named) - {"y"}:
        raise DataError(problem(where, "there is no input column", "give at least one column beside the label"))
    return named


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, tuple | list) and bool(value) and all(getattr(v, "ndim", 0) > 0 for v in value)


def _tensor(name: str, value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise DataError(
                problem(where, f"column {name!r} is ragged ({error})", "pad it, or give a dataset with a collate_fn")
            ) from None
        if array.dtype.kind not in "biuf":
            mend = "encode it as numbers first (text: tokenise; classes: 0, 1, 2, ...; images: a tensor of pixels)"
            raise DataError(problem(where, f"column {name!r} holds {_contents(value, array)}, not numbers", mend))
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        # torch.from_numpy refuses negative strides and warns about arrays that cannot be written.
        array = array.copy() if not array.flags.writeable or min(array.strides, default=0) < 0 else array
        tensor = torch.from_numpy(array)
    if tensor.dim() == 0:
        raise DataError(problem(where, f"column {name!r} is one number", "give an array with one row a sample"))
    return tensor


def _contents(value: Any, array: np.ndarray[Any, Any]) -> str:
    first = value[0] if isinstance(value, list | tuple) and value else array.flat[0] if array.size else None
    return f"{array.dtype} ({type(first).__name__})"


def _input(name: str, value: Any, where: str) -> Tensor:
    column = _tensor(name, value, where)
    if is_image(column):
        if column.shape[3] not in CHANNELS and column.shape[1] in CHANNELS:
            column = column.permute(0, 2, 3, 1)
        elif column.shape[3] not in CHANNELS:
            shape = tuple(column.shape)
            raise DataError(
                problem(
                    where,
                    f"column {name!r} is uint8 {shape}, no image layout",
                    "give N,H,W,C or N,C,H,W with 1, 3 or 4 channels",
                )
            )
    elif column.is_floating_point():
        column = column.float()
    elif column.dtype not in (torch.bool, torch.int32, torch.int64):
        column = column.long()
    return column.contiguous()


def _label(value: Any, where: str) -> Tensor:
    column = _tensor("y", value, where)
    if column.is_floating_point():
        return column.float().contiguous()
    column = column.long()
    # -100 is what PyTorch's losses and most text collators use for tokens that do not count.
    wrong = column < -1 if column.dim() == 1 else (column < -1) & (column != IGNORED_TOKEN)
    if bool(wrong.any()):
        first = wrong.flatten(1).any(1) if column.dim() > 1 else wrong
        row, low = int(first.nonzero()[0]), int(column[wrong][0])
        raise DataError(
            problem(where, f"label `y` is {low} in row {row}", "number classes from 0; -1 alone means 'no label'")
        )
    return column.contiguous()
