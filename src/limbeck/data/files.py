"""Settings that name data: the embedded digits, and arrays in an npz file or from torchvision."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from limbeck.core.check import one_of
from limbeck.core.errors import ConfigError, DataError, nearest, problem
from limbeck.core.extras import need
from limbeck.core.normalize import Normalize
from limbeck.core.seeds import derive
from limbeck.core.setting import setting
from limbeck.data.arrays import ArraySource, Source
from limbeck.data.sources import hold_out, split

__all__ = ["Digits", "Npz", "Splits", "check_file", "check_share"]

Arrays = Mapping[str, "np.ndarray[Any, Any]"]
NAMES = (
    {"images": "train_images", "labels": "train_labels", "test": "test_images", "test_y": "test_labels"},
    {"images": "x_train", "labels": "y_train", "test": "x_test", "test_y": "y_test"},
)
VAL_NAMES = (("val_images", "val_labels"), ("x_val", "y_val"))


class Splits(NamedTuple):
    """The three parts of a data set. Choose on `val`; touch `test` once."""

    train: Source
    val: Source
    test: Source


@setting
class Digits:
    """1,797 real handwritten digits, 8x8, that come with scikit-learn: float32 [N, 1, 8, 8] in 0..1.

    `labelled` keeps the labels of that many training samples; the others stay in train under the label -1.
    """

    kind: Literal["digits"] = "digits"
    labelled: int | None = None
    test_share: float = 0.3
    val_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse shares that leave a part empty, and a negative number of labels."""
        check_share("digits", test_share=self.test_share, val_share=self.val_share)
        if self.labelled is not None and self.labelled < 1:
            raise ConfigError(problem("digits", f"labelled is {self.labelled}", "give 1 or more, or None for all"))

    def load(self) -> Splits:
        """Read the digits and split them, stratified by class.

        Raises:
            ExtraError: scikit-learn is not installed.
            DataError: more labels are asked for than there are training samples.
        """
        datasets = need("sklearn.datasets", extra="demo", why="the digits")
        held = datasets.load_digits()
        x = torch.from_numpy(held.images).float().unsqueeze(1) / 16
        y = torch.from_numpy(held.target).long()
        names = tuple(str(digit) for digit in range(10))
        rest, test = split(ArraySource((x, y), class_names=names, where="digits"), self.test_share, self.seed)
        train, val = split(rest, self.val_share, self.seed)
        if self.labelled is None or self.labelled == len(train):
            return Splits(train, val, test)
        if self.labelled > len(train):
            wrong = f"labelled is {self.labelled}, there are {len(train)} training samples"
            raise DataError(problem("digits", wrong, f"give {len(train)} or less"))
        bare, _ = hold_out(train, self.labelled, self.seed)
        sparse_y = y.clone()
        sparse_y[bare.ids] = -1
        sparse = ArraySource((x, sparse_y), class_names=names, where="digits")
        return Splits(sparse.subset(train.ids), val, test)


@setting
class Npz:
    """Arrays in one npz file, or a data set that torchvision keeps.

    Keys: `train_images train_labels test_images test_labels`, or `x_train y_train x_test y_test`; optional
    `val_images val_labels` (`x_val y_val`) and `label_names`. Without them `val` samples (a count, or a share) are held
    out of train, or out of test with `val_from="test"`: for a model that was trained on all of train, where samples of
    train would say nothing. `limit` keeps that many training samples, a larger limit holding the smaller one's.
    `torchvision` names a class such as "CIFAR10"; it is used where `path` is None or a folder, which is then its root.
    """

    kind: Literal["npz"] = "npz"
    path: str | None = None
    torchvision: str | None = None
    download: bool = False
    val: int | float = 5000
    val_from: Literal["train", "test"] = "train"
    limit: int | None = None
    normalize: Normalize | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that leave a part empty, and settings that name no data."""
        if self.path is None and self.torchvision is None:
            mend = 'set `path` to a file, or `torchvision` to a name such as "CIFAR10"'
            raise ConfigError(problem("npz", "neither `path` nor `torchvision` is set", mend))
        if self.val <= 0 or (isinstance(self.val, float) and self.val >= 1):
            raise ConfigError(problem("npz", f"val is {self.val}", "give a count of 1 or more, or a share below 1"))
        one_of("npz: val_from", self.val_from, ("train", "test"))
        if self.limit is not None and self.limit < 1:
            raise ConfigError(problem("npz", f"limit is {self.limit}", "give 1 or more, or None for all"))

    def load(self) -> Splits:
        """Read the arrays and split them.

        Raises:
            DataError: the file is missing, damaged, or its arrays do not fit together.
            ExtraError: `torchvision` is set and not installed.
        """
        if self.torchvision is not None and (self.path is None or Path(self.path).is_dir()):
            where, arrays = self.torchvision, _torchvision(self.torchvision, self.path or "data", self.download)
        else:
            where, arrays = str(self.path), _read_npz(Path(str(self.path)))
        keys = _pick_keys(arrays, where)
        names = arrays.get("label_names")
        shared: dict[str, Any] = {"normalize": self.normalize}
        if names is not None:
            shared["class_names"] = [str(name) for name in names]
        train: Source = self._part(arrays, keys["images"], keys["labels"], where, shared)
        # Held-out labels must be classes that train has: its count, unless names say more.
        shared.setdefault("classes", train.classes)
        test: Source = self._part(arrays, keys["test"], keys["test_y"], where, shared)
        held = next(((x, y) for x, y in VAL_NAMES if x in arrays and y in arrays), None)
        if held is None:
            return self._held_out(train, test, where)
        if self.val_from == "test":
            wrong = f"it holds {held[0]!r}, and val_from asks for samples of test"
            raise DataError(problem(where, wrong, "leave val_from out, or save the file without that part"))
        return Splits(self._limited(train), self._part(arrays, *held, where, shared), test)

    def _held_out(self, train: Source, test: Source, where: str) -> Splits:
        whole = train if self.val_from == "train" else test
        count = round(self.val * len(whole)) if isinstance(self.val, float) else self.val
        if count >= len(whole):
            wrong = f"val is {self.val}, {self.val_from} has {len(whole)} samples"
            raise DataError(problem(where, wrong, "set `val` to a smaller count, or to a share such as 0.1"))
        rest, val = hold_out(whole, count, self.seed)
        if self.val_from == "train":
            train = rest
        else:
            test = rest
        return Splits(self._limited(train), val, test)

    def _limited(self, train: Source) -> Source:
        if self.limit is None or self.limit >= len(train):
            return train
        order = np.random.default_rng(derive(self.seed, "limit")).permutation(len(train))
        return train.subset(torch.from_numpy(np.sort(order[: self.limit])))

    def _part(self, arrays: Arrays, x: str, y: str, where: str, shared: dict[str, Any]) -> ArraySource:
        labels = arrays[y]
        if labels.dtype.kind not in "biu":
            mend = "save labels as integers, 0 to classes - 1"
            raise DataError(problem(where, f"{y!r} is {labels.dtype}, labels are integers", mend))
        if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras keeps CIFAR
            labels = labels[:, 0]
        if labels.ndim != 1:
            mend = "save one label a sample"
            raise DataError(problem(where, f"{y!r} has shape {labels.shape}, one axis is expected", mend))
        # The labels' own uint8 would read 255 where -1 was meant; they are checked as int64.
        return ArraySource((arrays[x], labels.astype(np.int64)), where=f"{where} [{x}, {y}]", **shared)


def check_file(path: Path, kind: str) -> None:
    """Refuse a path that is no file with something in it.

    Raises:
        DataError: it is missing, a folder, or empty.
    """
    if path.is_dir():
        raise DataError(problem(str(path), f"this is a folder, {kind} is expected", "give the path of the file itself"))
    if not path.is_file():
        raise DataError(problem(str(path), "there is no such file", f"check the path: {kind} is expected"))
    if not path.stat().st_size:
        raise DataError(problem(str(path), "the file is empty", "write it again"))


def check_share(where: str, **shares: float) -> None:
    """Refuse shares that leave nothing on one side.

    Raises:
        ConfigError: a share is not between 0 and 1.
    """
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ConfigError(problem(where, f"{name} is {share}", "give a share above 0 and below 1"))


def _read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    check_file(path, "an npz file")
    mend = "save it with `numpy.savez(path, train_images=..., train_labels=..., test_images=..., test_labels=...)`"
    if not zipfile.is_zipfile(path):
        raise DataError(problem(str(path), "this is no npz file (it is not a zip archive)", mend))
    key = ""
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {}
            for key in held.files:
                if key in _known_keys():
                    arrays[key] = held[key]
            return arrays or dict.fromkeys(held.files, np.empty(0))
    except ValueError as error:
        wrong = f"array {key!r} cannot be read ({str(error).splitlines()[0]})"
        raise DataError(
            problem(str(path), wrong, "save plain number arrays; pickled objects are never loaded")
        ) from None
    except (zipfile.BadZipFile, OSError, EOFError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise DataError(problem(str(path), f"the file is damaged ({error})", "copy or write it again")) from None


def _known_keys() -> set[str]:
    return (
        {key for names in NAMES for key in names.values()} | {k for pair in VAL_NAMES for k in pair} | {"label_names"}
    )


def _pick_keys(arrays: Arrays, where: str) -> dict[str, str]:
    for names in NAMES:
        if all(key in arrays for key in names.values()):
            return names
    style = max(NAMES, key=lambda names: sum(key in arrays for key in names.values()))
    missing = [key for key in style.values() if key not in arrays]
    wrong = f"there is no {', '.join(map(repr, missing))}; it holds {', '.join(sorted(arrays)) or 'nothing'}"
    raise DataError(problem(where, wrong, f"save arrays named {', '.join(style.values())}"))


def _torchvision(name: str, root: str, download: bool) -> dict[str, np.ndarray[Any, Any]]:
    datasets = need(
        "torchvision.datasets", extra="torchvision", why=f"the data set {name!r}; or set data.path to an npz file"
    )
    maker = getattr(datasets, name, None)
    if maker is None:
        raise ConfigError(problem("npz", f"torchvision has no data set {name!r}", nearest(name, vars(datasets))))
    arrays = {}
    for part, train in (("train", True), ("test", False)):
        try:
            held = maker(root=root, train=train, download=download)
            images = np.asarray(held.data)
            arrays[f"{part}_images"] = images[..., None] if images.ndim == 3 else images
            arrays[f"{part}_labels"] = np.asarray(held.targets)
        except (RuntimeError, OSError, TypeError, AttributeError) as error:
            wrong = f"torchvision cannot read {name!r} ({str(error).splitlines()[0]})"
            raise DataError(problem(root, wrong, "check the root in `path`, or set `download: true`")) from None
    if all(isinstance(label, str) for label in getattr(held, "classes", [0])):
        arrays["label_names"] = np.asarray(held.classes)
    return arrays
