"""Settings for images in folders, one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from limbeck.core.errors import ConfigError, DataError, problem
from limbeck.core.extras import need
from limbeck.core.normalize import Normalize
from limbeck.core.setting import setting
from limbeck.data.arrays import ArraySource, Source
from limbeck.data.files import Splits, check_share
from limbeck.data.sources import split

__all__ = ["ImageFolder"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
Listed = list[tuple[Path, str]]


@setting
class ImageFolder:
    """Images under `path/train/<class>/`, with `val` and `test` folders where there are any; else `path/<class>/`.

    Missing parts are held out by shares. All images are read into memory as uint8 [N, size, size, 3].
    """

    kind: Literal["images"] = "images"
    path: str
    size: int
    val_share: float = 0.1
    test_share: float = 0.2
    normalize: Normalize | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a size or a share that leaves nothing."""
        if self.size < 1:
            raise ConfigError(problem("images", f"size is {self.size}", "give pixels, 1 or more"))
        check_share("images", val_share=self.val_share, test_share=self.test_share)

    def load(self) -> Splits:
        """Read and resize every image, and split what is not split yet.

        Raises:
            DataError: a folder or file is missing, damaged, or of a class that train has not.
            ExtraError: Pillow is not installed.
        """
        root = Path(self.path)
        if not root.is_dir():
            mend = "give the folder that holds `train/<class>/` or `<class>/`"
            raise DataError(problem(self.path, "there is no such folder", mend))
        image_module = need("PIL.Image", extra="images", why="images in folders")
        base = root / "train" if (root / "train").is_dir() else root
        listed = _list_images(base)
        names = sorted({name for _, name in listed})
        train: Source = self._read(listed, names, image_module)
        held: dict[str, Source] = {}
        for part in ("test", "val") if base != root else ():
            if (root / part).is_dir():
                held[part] = self._read(_list_images(root / part), names, image_module)
        for part, share in (("test", self.test_share), ("val", self.val_share)):
            if part not in held:
                train, held[part] = split(train, share, self.seed)
        return Splits(train, held["val"], held["test"])

    def _read(self, listed: Listed, names: list[str], image_module: Any) -> ArraySource:
        pixels = np.empty((len(listed), self.size, self.size, 3), dtype=np.uint8)
        labels = np.empty(len(listed), dtype=np.int64)
        for row, (path, name) in enumerate(listed):
            if name not in names:
                mend = f"add the class to train, or remove the folder; train has {', '.join(names)}"
                raise DataError(problem(str(path.parent), f"class {name!r} is not in train", mend))
            try:
                with image_module.open(path) as image:
                    square = image.convert("RGB").resize((self.size, self.size), image_module.Resampling.BILINEAR)
                    pixels[row] = np.asarray(square)
            except (OSError, ValueError, SyntaxError) as error:
                mend = "replace the file, or remove it"
                raise DataError(problem(str(path), f"this is no readable image ({error})", mend)) from None
            labels[row] = names.index(name)
        return ArraySource((pixels, labels), class_names=names, normalize=self.normalize, where=self.path)


def _list_images(folder: Path) -> Listed:
    listed: Listed = []
    for group in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = sorted(p for p in group.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            mend = f"put images there ({', '.join(SUFFIXES)}), or remove the folder"
            raise DataError(problem(str(group), "the folder of a class holds no image", mend))
        listed += [(path, group.name) for path in files]
    if not listed:
        raise DataError(problem(str(folder), "there is no folder of a class", "make one folder a class, images inside"))
    return listed
