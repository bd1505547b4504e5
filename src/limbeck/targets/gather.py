"""Rows of a store for any samples, in any order, of any views: mapped files, and no Python loop over rows.

Shapes: B = samples asked for, T = places of tokens, F = tokens that count, one sample after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.core.errors import CheckpointError, DataError, ShapeError, nearest, problem
from limbeck.core.types import Named
from limbeck.targets.codec import Part
from limbeck.targets.plan import FORMAT, Manifest, Output
from limbeck.targets.shard import REMAKE, mapped

__all__ = ["Gatherer", "scatter"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class _Shard(NamedTuple):
    """The parts of a shard as bytes [rows, bytes of a row], and where the rows of each sample begin, if ragged."""

    parts: dict[str, Bytes]
    offsets: Ints | None


class _Cut(NamedTuple):
    """What is asked for, by shard: view · blocks + block, and rows within; how to put rows back (None: as they are)."""

    shards: list[int]
    rows: list[Ints]
    back: Ints | None


class Gatherer:
    """Reads a store. It can be pickled into workers and forked; maps are opened again where they are needed."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.damaged: dict[str, str] = {}
        self._maps: dict[str, dict[int, _Shard]] = {}
        self._ids: Ints | None = None
        self._constants: Named | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_ids": None, "_constants": None}

    def close(self) -> None:
        """Let go of all files; what was gathered stays."""
        self._maps, self._ids, self._constants = {}, None, None

    def forget(self, output: str, view: int, block: int) -> None:
        """Let go of a shard that was written anew."""
        self._maps.get(output, {}).pop(view * self.manifest.blocks + block, None)
        self.damaged.pop(self.manifest.plan.file(output, view, block), None)

    @property
    def ids(self) -> Ints:
        """All ids in rising order."""
        if self._ids is None:
            self._ids = mapped(self.path / "ids.safetensors", {"format": FORMAT, "holds": "ids"})["ids"].numpy()
        return self._ids

    @property
    def constants(self) -> Named:
        """What was stored once."""
        if self._constants is None:
            about = {"format": FORMAT, "holds": "constants"}
            has = bool(self.manifest.constants)
            self._constants = mapped(self.path / "constants.safetensors", about) if has else {}
        return self._constants

    def outputs_for(self, names: Iterable[str] | None) -> tuple[dict[str, set[str]], set[str], list[str]]:
        """Names (of outputs, decoded names, constants) as outputs with their decoded names, constants, and unknown."""
        table = {name: output.decoded(name) for name, output in self.manifest.plan.outputs.items()}
        if names is None:
            return {name: set(decoded) for name, decoded in table.items()}, set(self.manifest.constants), []
        owner = {decoded: name for name, all_ in table.items() for decoded in all_}
        outputs: dict[str, set[str]] = {}
        constants, unknown = set(), []
        for name in names:
            if name in table:
                outputs.setdefault(name, set()).update(table[name])
            elif name in owner:
                outputs.setdefault(owner[name], set()).add(name)
            elif name in self.manifest.constants:
                constants.add(name)
            else:
                unknown.append(name)
        return outputs, constants, unknown

    def gather(self, ids: Tensor, views: Tensor | int, names: Iterable[str] | None) -> dict[str, Tensor]:
        """See `Store.gather`."""
        outputs, constants, unknown = self.outputs_for(names)
        if unknown:
            known = [n for name, output in self.manifest.plan.outputs.items() for n in (name, *output.decoded(name))]
            mend = nearest(unknown[0], [*known, *self.manifest.constants])
            raise DataError(problem(str(self.path), f"the store holds nothing called {unknown[0]!r}", mend))
        cut = self._cut(self._rows(ids), views)
        found: dict[str, Tensor] = {}
        for name, decoded in outputs.items():
            values = self._gather_one(name, self.manifest.plan.outputs[name], cut, len(ids))
            found |= {key: value for key, value in values.items() if key in decoded}
        return found | {name: self.constants[name] for name in sorted(constants)}

    def _rows(self, ids: Tensor) -> Ints:
        asked = ids.detach().cpu().numpy()
        if asked.dtype != np.int64 or asked.ndim != 1:
            wrong = f"ids are {asked.dtype} {asked.shape}"
            raise DataError(problem(str(self.path), wrong, "ask with ids as torch.int64 [B]"))
        rows = np.minimum(np.searchsorted(self.ids, asked), len(self.ids) - 1)
        wrong_B = self.ids[rows] != asked
        if wrong_B.any():
            wrong = f"the store holds no sample with the id {asked[wrong_B][0]}"
            mend = "gather samples that it was made for, or remember these too, in another folder"
            raise DataError(problem(str(self.path), wrong, mend))
        return rows

    def _cut(self, rows: Ints, views: Tensor | int) -> _Cut:
        if not len(rows):
            return _Cut([], [], None)
        view = views if isinstance(views, int) else views.detach().cpu().numpy()
        if not isinstance(view, int) and view.shape != rows.shape:
            wrong = f"views are {view.shape}, ids are {rows.shape}"
            raise ShapeError(problem(str(self.path), wrong, "give one view for each id, or one for all"))
        low, high = (view, view) if isinstance(view, int) else (int(view.min()), int(view.max()))
        if low < 0 or high >= self.manifest.plan.views:
            wrong = f"the store holds no view {low if low < 0 else high}, only 0 to {self.manifest.plan.views - 1}"
            mend = "run `limbeck remember` again with more views: those that are there stay"
            raise DataError(problem(str(self.path), wrong, mend))
        size, blocks = self.manifest.plan.rows, self.manifest.blocks
        block = rows // size
        local, key = rows - block * size, block + np.multiply(view, blocks)
        if (key == key[0]).all():
            return _Cut([int(key[0])], [local], None)
        order = key.argsort(kind="stable")
        key, local, back = key[order], local[order], np.empty_like(order)
        back[order] = np.arange(len(order))
        edges = [0, *(np.flatnonzero(key[1:] != key[:-1]) + 1).tolist(), len(key)]
        return _Cut(key[edges[:-1]].tolist(), [local[a:b] for a, b in pairwise(edges)], back)

    def _gather_one(self, name: str, output: Output, cut: _Cut, count: int) -> dict[str, Tensor]:
        maps = self._maps.setdefault(name, {})
        for number in cut.shards:
            if number not in maps:
                maps[number] = self._map(name, *divmod(number, self.manifest.blocks))
        shards = [maps[number] for number in cut.shards]
        places, back = cut.rows, cut.back
        found: dict[str, Tensor] = {}
        if output.tokens:
            offsets = [s.offsets for s in shards if s.offsets is not None]
            starts = [o[rows] for o, rows in zip(offsets, cut.rows, strict=True)]
            sizes = [o[rows + 1] - start for o, rows, start in zip(offsets, cut.rows, starts, strict=True)]
            places = [_runs(start, size) for start, size in zip(starts, sizes, strict=True)]
            size = np.concatenate(sizes) if sizes else np.empty(0, np.int64)
            if back is not None:
                back, size = _runs((np.cumsum(size) - size)[back], size[back]), size[back]
            count, found[f"{name}.lengths"] = int(size.sum()), torch.from_numpy(size)
        kept = {}
        for key, part in output.codec.parts(output.shape).items():
            rows = np.empty((count, _width(part)), np.uint8)
            at = 0
            for shard, place in zip(shards, places, strict=True):  # indices are known to be good; "clip" spares a copy
                end = at + len(place)
                shard.parts[key].take(place, 0, rows[at:end], "clip")
                at = end
            kept[key] = _typed(rows if back is None else rows[back], part)
        decoded = output.codec.decode(kept)
        return found | {f"{name}.{suffix}" if suffix else name: value for suffix, value in decoded.items()}

    def _map(self, name: str, view: int, block: int) -> _Shard:
        file = self.manifest.plan.file(name, view, block)
        path = self.path / file
        if file in self.damaged:
            raise CheckpointError(problem(str(path), f"is damaged: {self.damaged[file]}", REMAKE))
        tensors = mapped(path, self.manifest.identity(name, view, block))
        output, rows = self.manifest.plan.outputs[name], self.manifest.rows(block)
        offsets = tensors.pop("offsets").numpy() if output.tokens else None
        fits = offsets is None or (len(offsets) == rows + 1 and offsets[0] == 0 and bool((np.diff(offsets) >= 0).all()))
        length = rows if offsets is None else int(offsets[-1])
        parts = output.codec.parts(output.shape)
        seen = {key: (x.dtype, tuple(x.shape)) for key, x in tensors.items()}
        if not fits or seen != {key: (part.dtype, (length, *part.shape)) for key, part in parts.items()}:
            raise CheckpointError(problem(str(path), "is damaged: its tensors are not those of its plan", REMAKE))
        return _Shard({key: _bytes(tensors[key], part) for key, part in parts.items()}, offsets)


def scatter(flat: Tensor, lengths_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Rows of tokens [F, ...] at the places that count [B, T, ...], zeros elsewhere.

    Raises:
        ShapeError: a sample has another number of places than it has rows.
    """
    places = mask_BT.sum(1)
    differs = (places != lengths_B.to(places.device)).nonzero()
    if len(differs) or len(flat) != int(places.sum()):
        row = int(differs[0, 0]) if len(differs) else 0
        wrong = f"sample {row} of the batch has {int(places[row])} tokens that count, {int(lengths_B[row])} are stored"
        mend = "mask tokens as when they were stored: same text, same labels, same cut"
        raise ShapeError(problem("targets.scatter", wrong, mend))
    out = flat.new_zeros((*mask_BT.shape, *flat.shape[1:]))
    out[mask_BT.to(flat.device)] = flat
    return out


def _runs(starts: Ints, sizes: Ints) -> Ints:
    """start, start + 1, ... for each run, one after another."""
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())


def _width(part: Part) -> int:
    return math.prod(part.shape) * part.dtype.itemsize


def _bytes(x: Tensor, part: Part) -> Bytes:
    return x.reshape(-1).view(torch.uint8).numpy().reshape(len(x), _width(part))


def _typed(rows: Bytes, part: Part) -> Tensor:
    return torch.from_numpy(rows.reshape(-1)).view(part.dtype).view(len(rows), *part.shape)
