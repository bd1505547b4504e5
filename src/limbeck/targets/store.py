"""A teacher's signals on disk, filled by any number of processes that need not know of one another.

    store/manifest.json                      what it holds; once sealed, every file with its digest
    store/ids.safetensors                    the samples, in rising order: the place in this list is the row
    store/constants.safetensors              what all samples share, such as an output weight (if there is any)
    store/<output>/<view>-<block>.safetensors   rows [block · R, (block + 1) · R) of one view

What is in a file follows from its name and the plan. So nothing can be doubled, and a directory listing says what is
left to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.check import whole
from limbeck.core.errors import CheckpointError, ConfigError, DataError, ShapeError, nearest, problem
from limbeck.core.folder import first_difference
from limbeck.core.records import write_json
from limbeck.targets.codec import Origin
from limbeck.targets.gather import Gatherer
from limbeck.targets.keep import alone, begin, check_shared, keep_shared, look_over, sealed_faults
from limbeck.targets.plan import Manifest, Piece, Plan, sorted_ids
from limbeck.targets.shard import REMAKE, Look, packed, replace, sweep

__all__ = ["Store"]


class Store:
    """A store of targets. Make or join one with `create`, read one with `open`."""

    def __init__(self, path: Path, manifest: Manifest, *, versions: Mapping[str, Any] | None = None) -> None:
        self.path, self._manifest = path, manifest
        self._versions = versions
        self._gatherer = Gatherer(path, manifest)

    # Making and opening -----------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | Path, plan: Plan, ids: Tensor, constants: Mapping[str, Tensor] | None = None) -> Store:
        """Make a store, or join one that holds the same; more views or outputs extend it and keep what is there.

        Args:
            path: the folder.
            plan: what it is to hold.
            ids: int64 [n], in any order, each once.
            constants: what all samples share, kept once and exactly.

        Raises:
            CheckpointError: the folder holds something else (the field that differs is named), or cannot be written.
            DataError: ids are missing or come twice.
        """
        folder, rising, constants = Path(path), sorted_ids(ids), dict(constants or {})
        wanted = Manifest.of(plan, rising, constants)
        if not (folder / "manifest.json").exists():
            begin(folder, wanted)
        with alone(folder):
            found = Manifest.read(folder)
            joined = found.joined(wanted, str(folder))
            keep_shared(folder, joined, rising, constants)
            if joined != found:
                write_json(folder / "manifest.json", joined.plain())
        return cls(folder, joined, versions=wanted.plan.made_by)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Store:
        """Open a store for reading, sealed or not; `verify=False` checks that files are there and their size only.

        Raises:
            CheckpointError: it is no store, or a file of a sealed one is missing or damaged; the file is named. What
                an unsealed one lacks is told by `missing`, what is damaged in it by `damaged`.
        """
        folder = Path(path)
        store = cls(folder, Manifest.read(folder))
        check_shared(folder, store._manifest, verify=verify)
        seen = look_over(folder, store._manifest) if verify else None
        if not store.sealed:
            store._gatherer.damaged = _damaged(folder, seen or {})
            return store
        faults = sealed_faults(folder, store._manifest, seen)
        if faults:
            file, fault = next(iter(faults.items()))
            more = f" (and so are {len(faults) - 1} more)" if len(faults) > 1 else ""
            wrong = f"this file of the store is no good: {fault}{more}"
            raise CheckpointError(problem(str(folder / file), wrong, REMAKE))
        return store

    def close(self) -> None:
        """Let go of all files; what was gathered stays."""
        self._gatherer.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it is -------------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """What it is to hold."""
        return self._manifest.plan

    @property
    def sealed(self) -> bool:
        """Whether every file was there and whole, and is on record."""
        return self._manifest.sealed

    @property
    def ids(self) -> Tensor:
        """All samples, int64 [n], in rising order."""
        return torch.from_numpy(self._gatherer.ids.copy())

    @property
    def constants(self) -> dict[str, Tensor]:
        """What was stored once."""
        return dict(self._gatherer.constants)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `gather` gives."""
        decoded = [key for name, output in self.plan.outputs.items() for key in output.decoded(name)]
        return (*decoded, *self._manifest.constants)

    @property
    def damaged(self) -> dict[str, str]:
        """Files that the last look found to be no good, and what is wrong with each."""
        return dict(self._gatherer.damaged)

    @property
    def nbytes(self) -> int:
        """Its size on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def describe(self) -> dict[str, Any]:
        """What it is, how big, how much of it is there, and what it was made from, as plain data."""
        there = {at for at in self._manifest.places if (self.path / self.plan.file(*at)).exists()}
        told = self._manifest.plain()
        told.pop("shards", None)
        outputs = {
            name: {**told["outputs"][name], "names": list(output.decoded(name)), "bytes_a_row": output.bytes}
            for name, output in self.plan.outputs.items()
        }
        counts = {"shards": len(self._manifest.places), "shards_there": len(there)}
        sizes = {"path": str(self.path), "bytes": self.nbytes, **counts, "damaged": self.damaged}
        return {**sizes, **told, "outputs": outputs}

    # Filling ----------------------------------------------------------------------------------------------------------

    def missing(self, part: tuple[int, int] = (0, 1)) -> list[Piece]:
        """What is still to be made, by view and block. Damaged files count, and are told by `damaged`.

        Args:
            part: (i, n) takes every n-th piece of the whole plan from the i-th on, for n processes.
        """
        index, parts = part
        whole("targets.part", parts)
        whole("targets.part", index, least=0)
        if index >= parts:
            wrong = f"part {index} of {parts} is none"
            raise ConfigError(problem("targets.part", wrong, f"count parts from 0 to {parts - 1}"))
        places = [(view, block) for view in range(self.plan.views) for block in range(self._manifest.blocks)]
        mine = set(places[index::parts])
        seen = look_over(self.path, self._manifest, [at for at in self._manifest.places if at[1:] in mine])
        bad = {file for file, found in seen.items() if found.fault}
        self._gatherer.damaged = _damaged(self.path, seen)
        pieces = []
        for view, block in places[index::parts]:
            lacks = tuple(name for name in self.plan.outputs if self.plan.file(name, view, block) in bad)
            pieces += [Piece(view, block, lacks)] if lacks else []
        return pieces

    def rows_of(self, piece: Piece) -> Tensor:
        """The ids of the samples of a piece, int64 [n], in the order in which `write` takes them."""
        start = piece.block * self.plan.rows
        return torch.from_numpy(self._gatherer.ids[start : start + self._manifest.rows(piece.block)].copy())

    def write(
        self,
        piece: Piece,
        values: Mapping[str, Tensor | Mapping[str, Tensor]],
        lengths: Tensor | None = None,
    ) -> None:
        """Write outputs of a piece, a file each.

        Args:
            piece: from `missing`.
            values: by output, rows [n, ...] as the teacher gave them, or what the output's codec made of them. Of an
                output by tokens: [F, ...], the tokens that count, one sample after another.
            lengths: int64 [n], how many tokens of each sample count; needed by outputs by tokens.

        Raises:
            DataError: values cannot be kept: NaN, beyond the type, or an output that is not of the plan.
            ShapeError: rows do not line up.
            CheckpointError: the file cannot be written, or other versions of software began the store.
        """
        differs = first_difference(self.plan.made_by, self._versions or {}, "made_by")
        if self._versions is not None and differs:
            wrong = f"other software began this store: `{differs}` differs, and its answers may too"
            raise CheckpointError(
                problem(str(self.path), wrong, "finish it with the versions on record, or start anew")
            )
        for name, value in values.items():
            if name not in self.plan.outputs:
                wrong = f"the store holds no output {name!r}"
                raise DataError(problem(str(self.path), wrong, nearest(name, self.plan.outputs)))
            tensors = self._encoded(piece, name, value, lengths)
            at = (name, piece.view, piece.block)
            replace(self.path / self.plan.file(*at), packed(tensors, self._manifest.identity(*at)))
            self._gatherer.forget(*at)

    def seal(self) -> None:
        """Put every file on record and clear away what killed processes left. Sealing twice changes nothing.

        Raises:
            CheckpointError: a file is missing or damaged; it is named.
        """
        with alone(self.path):
            now = Manifest.read(self.path)  # another process may have extended it
            self._manifest = self._gatherer.manifest = now
            seen = look_over(self.path, self._manifest)
            bad = {file: found.fault for file, found in seen.items() if found.fault}
            if bad:
                file, fault = next(iter(bad.items()))
                wrong = f"it cannot be sealed: {len(bad)} of {len(seen)} files are no good, first {file}: {fault}"
                mend = "run the same `limbeck remember` again (every part of it): it makes what is missing"
                raise CheckpointError(problem(str(self.path), wrong, mend))
            for folder in {self.path, *((self.path / file).parent for file in seen)}:
                sweep(folder)
            shards = {file: {"sha256": x.sha256, "bytes": x.bytes} for file, x in seen.items()}
            sealed = changed(now, sealed=True, shards=shards)
            if sealed.plain() != now.plain():
                write_json(self.path / "manifest.json", sealed.plain())
            self._manifest = self._gatherer.manifest = sealed
            self._gatherer.damaged = {}

    # Reading ----------------------------------------------------------------------------------------------------------

    def gather(self, ids: Tensor, views: Tensor | int = 0, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The signal of these samples in these views, in their order; ids may repeat.

        Args:
            ids: int64 [B].
            views: int64 [B], or one for all.
            names: outputs, decoded names or constants; all if None.

        Returns:
            By decoded name, float32 values and int64 ids [B, ...]; of outputs by tokens, rows [F, ...] one sample after
            another, and `<output>.lengths` [B], for `scatter`. Constants come whole, and are mapped: do not write to
            them.

        Raises:
            DataError: an id, a view or a name that the store does not hold.
            CheckpointError: a file is missing or damaged.
        """
        return self._gatherer.gather(ids, views, names)

    def covers(self, ids: Tensor, views: Iterable[int], names: Iterable[str] | None = None) -> list[str]:
        """What the store lacks of these samples, views and names, in words; nothing if it holds them all."""
        outputs, _, unknown = self._gatherer.outputs_for(names)
        lacks = [f"the output {name!r}" for name in unknown]
        held = torch.isin(ids, self.ids)
        if not held.all():
            strange = ids[~held]
            lacks.append(
                f"the sample {int(strange[0])}" + (f" and {len(strange) - 1} more" if strange[1:].numel() else "")
            )
        views = sorted(set(views))
        beyond = [view for view in views if not 0 <= view < self.plan.views]
        if beyond:
            lacks.append(f"view {beyond[0]}" + (f" and {len(beyond) - 1} more views" if len(beyond) > 1 else ""))
        rows = torch.searchsorted(self.ids, ids[held])
        blocks = sorted(set((rows // self.plan.rows).tolist()))
        for name in outputs:
            spots = [(view, block) for view in views if view not in beyond for block in blocks]
            gone = [self.plan.file(name, *at) for at in spots]
            gone = [f for f in gone if f in self._gatherer.damaged or not (self.path / f).exists()]
            if gone:
                lacks.append(f"{len(gone)} of {len(spots)} files of {name!r}, first {gone[0]}")
        return lacks

    # Within -----------------------------------------------------------------------------------------------------------

    def _encoded(
        self, piece: Piece, name: str, value: Tensor | Mapping[str, Tensor], lengths: Tensor | None
    ) -> dict[str, Tensor]:
        output, count = self.plan.outputs[name], self._manifest.rows(piece.block)
        ids, tokens, extra = self.rows_of(piece), None, {}
        if output.tokens:
            lengths = _lengths(name, lengths, count)
            starts = lengths.cumsum(0) - lengths
            ids, count = ids.repeat_interleave(lengths), int(lengths.sum())
            tokens = torch.arange(count) - starts.repeat_interleave(lengths)
            extra = {"offsets": torch.cat([starts, lengths.sum().view(1)])}
        if isinstance(value, Tensor):
            _check_shape(name, value, (count, *output.shape))
            value = output.codec.encode(value, Origin(name, self.plan.seed, piece.view, ids, tokens))
        parts = output.codec.parts(output.shape)
        if set(value) != set(parts) or any(value[key].dtype != part.dtype for key, part in parts.items()):
            wrong = f"its parts are {sorted(value)}, the codec {output.codec.kind!r} has {sorted(parts)}"
            raise DataError(problem(f"output {name!r}", wrong, "encode it with the plan's codec, or give raw values"))
        for key, part in parts.items():
            _check_shape(name, value[key], (count, *part.shape))
        return {**value, **extra}


def _damaged(folder: Path, seen: Mapping[str, Look]) -> dict[str, str]:
    return {file: found.fault for file, found in seen.items() if found.fault and (folder / file).exists()}


def _lengths(name: str, lengths: Tensor | None, count: int) -> Tensor:
    if lengths is None or lengths.shape != (count,) or lengths.is_floating_point() or bool((lengths < 0).any()):
        got = "none" if lengths is None else f"{tuple(lengths.shape)} of {lengths.dtype}"
        wrong = f"it is kept by tokens, and its lengths are {got}"
        raise ShapeError(
            problem(f"output {name!r}", wrong, f"give how many tokens of each of the {count} samples count")
        )
    return lengths.detach().cpu().long()


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape:
        wrong = f"its values are {tuple(x.shape)}, the plan and the piece want {shape}"
        raise ShapeError(problem(f"output {name!r}", wrong, "give a row for each sample (or token) of the piece"))
