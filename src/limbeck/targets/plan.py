"""What a store is to hold, as plain data: `manifest.json`, and when two of them agree."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.core.check import whole
from limbeck.core.errors import CheckpointError, ConfigError, DataError, problem
from limbeck.core.folder import first_difference, value_at
from limbeck.core.records import read_object
from limbeck.core.setting import as_plain, build, tagged
from limbeck.targets.codec import CODECS, Dense, Sampled, TopK

__all__ = ["FORMAT", "Manifest", "Output", "Piece", "Plan", "digest", "sorted_ids"]

FORMAT = 1
_OWN = ("teacher", "data", "augmentation", "seed", "rows", "batch_size", "made_by")
_FIELDS = ("format", *_OWN, "views", "samples", "constants", "outputs", "sealed")


class Piece(NamedTuple):
    """A part of the work: the samples of one block, in one view, and the outputs that are still to be made of them."""

    view: int
    block: int
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One output and how it is kept.

    Attributes:
        codec: how: `Dense`, `TopK` or `Sampled`.
        shape: of one sample, or of one token where `tokens`.
        dtype: what the teacher gives, for the record.
        tokens: the output is ragged: only rows of tokens that count are kept, one after another.
    """

    codec: Dense | TopK | Sampled
    shape: tuple[int, ...]
    dtype: str = "float32"
    tokens: bool = False

    @property
    def bytes(self) -> int:
        """What a sample takes, or a token."""
        return self.codec.bytes(self.shape)

    def decoded(self, name: str) -> tuple[str, ...]:
        """The names under which it comes back."""
        names = tuple(f"{name}.{suffix}" if suffix else name for suffix in self.codec.suffixes)
        return (*names, f"{name}.lengths") if self.tokens else names


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a store is to hold. Everything here decides its bytes, so all but `views` and `outputs` must stay as it is.

    Attributes:
        teacher: what its answers depend on, as plain data; so are `data` and `augmentation`.
        outputs: by name.
        seed: of the augmentation and of sampled answers.
        views: how many augmented versions of each sample.
        rows: samples in one file of one view of one output: what a kill costs at most, and what is read as one.
        batch_size: of the teacher's calls; rounding may depend on it.
        made_by: versions of the software that fills it.

    Raises:
        ConfigError: it is impossible, or not plain data.
    """

    teacher: Mapping[str, Any]
    data: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    outputs: Mapping[str, Output]
    seed: int = 0
    views: int = 1
    rows: int = 4096
    batch_size: int = 128
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be; turn mappings into what JSON gives back."""
        for name, value in (("views", self.views), ("rows", self.rows), ("batch_size", self.batch_size)):
            whole(f"targets.{name}", value)
        whole("targets.seed", self.seed, least=0)
        for name in ("teacher", "data", "augmentation", "made_by"):
            object.__setattr__(self, name, _plain(f"targets.{name}", getattr(self, name)))
        object.__setattr__(self, "outputs", dict(sorted(self.outputs.items())))
        seen: dict[str, str] = {}
        for name, output in self.outputs.items():
            if any(size < 1 for size in output.shape):
                wrong = f"its rows are {output.shape}"
                raise ConfigError(problem(f"output {name!r}", wrong, "keep outputs that are not empty"))
            output.codec.check(name, output.shape)
            for decoded in output.decoded(name):
                if decoded in seen:
                    wrong = f"{decoded!r} is a name of its values and of those of {seen[decoded]!r}"
                    raise ConfigError(problem(f"output {name!r}", wrong, "rename one of the two outputs"))
                seen[decoded] = name

    def plain(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "made_by": self.made_by,
            "teacher": self.teacher,
            "data": self.data,
            "augmentation": self.augmentation,
            "seed": self.seed,
            "views": self.views,
            "rows": self.rows,
            "batch_size": self.batch_size,
            "outputs": {name: as_plain(output) for name, output in self.outputs.items()},
        }

    def folder(self, output: str) -> str:
        """The folder of an output: its name where that is safe on any file system, else a name made from it."""
        safe = re.fullmatch(r"[a-z0-9_][a-z0-9_.@-]{0,60}", output) and not output.endswith((".json", ".safetensors"))
        if safe:
            return output
        return f"{re.sub(r'[^a-z0-9_]+', '-', output.lower())[:40]}-{hashlib.sha256(output.encode()).hexdigest()[:8]}"

    def file(self, output: str, view: int, block: int) -> str:
        """The file of one block of one view of one output, within the store."""
        return f"{self.folder(output)}/{view:04d}-{block:05d}.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A plan with what it was made for (samples, constants), and once sealed, every file."""

    plan: Plan
    samples: Mapping[str, Any]
    constants: Mapping[str, Any]
    sealed: bool = False
    shards: Mapping[str, Any] = field(default_factory=dict)
    _digests: dict[str, str] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def of(cls, plan: Plan, ids: Tensor, constants: Mapping[str, Tensor]) -> Manifest:
        """That of a new store.

        Raises:
            ConfigError: a constant has the name of an output.
        """
        taken = {decoded for name, output in plan.outputs.items() for decoded in (name, *output.decoded(name))}
        for name in constants:
            if name in taken:
                raise ConfigError(problem(f"constant {name!r}", "an output has this name", "rename one of the two"))
        about = {
            name: {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch."), "sha256": digest(x)}
            for name, x in sorted(constants.items())
        }
        return cls(plan=plan, samples={"count": len(ids), "sha256": digest(ids)}, constants=about)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """That of a folder.

        Raises:
            CheckpointError: there is none, it is damaged, or it is of another format.
        """
        path = folder / "manifest.json"
        if not path.exists():
            wrong = "is no store of targets: it has no manifest.json"
            raise CheckpointError(problem(str(folder), wrong, "name a folder that `limbeck remember` made"))
        found = read_object(path, "format")
        if found["format"] != FORMAT:
            wrong = f"it is in format {found['format']!r}, this limbeck reads {FORMAT}"
            raise CheckpointError(problem(str(path), wrong, "read it with the limbeck that made it, or make it again"))
        read_object(path, *_FIELDS)
        try:
            if not all(isinstance(found[name], dict) for name in ("samples", "constants", "outputs")):
                raise TypeError("a table is no table")
            outputs = {name: _output(name, value) for name, value in found["outputs"].items()}
            plan = Plan(outputs=outputs, views=found["views"], **{name: found[name] for name in _OWN})
            sealed, shards = found["sealed"], found.get("shards", {})
            if not isinstance(sealed, bool) or any(set(about) != {"sha256", "bytes"} for about in shards.values()):
                raise TypeError("its list of files is unreadable")
            if not isinstance(found["samples"]["count"], int) or any(
                set(about) != {"shape", "dtype", "sha256"} for about in found["constants"].values()
            ):
                raise TypeError("what it says of samples or constants is unreadable")
        except (ConfigError, TypeError, AttributeError, KeyError) as error:
            said = " ".join(str(error).split()).removesuffix(".")
            mend = "restore it, or delete the folder and run `limbeck remember` again"
            raise CheckpointError(problem(str(path), f"is damaged ({said})", mend)) from None
        samples, constants = found["samples"], found["constants"]
        return cls(plan=plan, samples=samples, constants=constants, sealed=sealed, shards=shards)

    def plain(self) -> dict[str, Any]:
        """What `manifest.json` holds."""
        told = {"format": FORMAT, **self.plan.plain(), "samples": self.samples, "constants": self.constants}
        return told | {"sealed": self.sealed} | ({"shards": dict(sorted(self.shards.items()))} if self.sealed else {})

    @property
    def blocks(self) -> int:
        """Blocks of a view."""
        return -(-int(self.samples["count"]) // self.plan.rows)

    def rows(self, block: int) -> int:
        """Samples of a block: `rows`, fewer in the last."""
        return min(self.plan.rows, int(self.samples["count"]) - block * self.plan.rows)

    def identity(self, output: str, view: int, block: int) -> dict[str, Any]:
        """What a shard says that it is."""
        if output not in self._digests:
            told = self.plain()
            about = {name: told[name] for name in (*_OWN, "samples", "format")} | {"output": told["outputs"][output]}
            self._digests[output] = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return {"format": FORMAT, "plan": self._digests[output], "output": output, "view": view, "block": block}

    @property
    def places(self) -> list[tuple[str, int, int]]:
        """(output, view, block) of every shard, in order of their work."""
        return [
            (name, view, block)
            for view in range(self.plan.views)
            for block in range(self.blocks)
            for name in self.plan.outputs
        ]

    def joined(self, wanted: Manifest, where: str) -> Manifest:
        """This manifest, with the views, outputs and constants that another asks for beyond it.

        Other versions of software may join what needs nothing more; `Store.write` refuses them.

        Raises:
            CheckpointError: the two are not of one store; the first field that differs is named with both values.
        """
        mine, other = self.plain(), wanted.plain()
        new = (
            sorted(set(wanted.plan.outputs) - set(self.plan.outputs)),
            sorted(set(wanted.constants) - set(self.constants)),
        )
        grows = bool(new[0] or new[1] or wanted.plan.views > self.plan.views)
        for name in (*_OWN, "samples", "outputs", "constants"):
            if name == "made_by" and not grows:
                continue
            a, b = mine[name], other[name]
            if name in ("outputs", "constants"):
                both = set(a) & set(b)
                a, b = ({key: side[key] for key in sorted(both)} for side in (a, b))
            differs = first_difference(a, b, name)
            if differs:
                raise CheckpointError(_differ(where, differs, mine, other))
        if not grows:
            return self
        outputs = {**self.plan.outputs, **{name: wanted.plan.outputs[name] for name in new[0]}}
        constants = {**self.constants, **{name: wanted.constants[name] for name in new[1]}}
        plan = replace(self.plan, outputs=outputs, views=max(self.plan.views, wanted.plan.views))
        constants = dict(sorted(constants.items()))
        return replace(self, plan=plan, constants=constants, sealed=False, shards={})


def digest(x: Tensor) -> str:
    """The SHA-256 of the bytes of a tensor."""
    flat = x.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _output(name: str, value: Mapping[str, Any]) -> Output:
    codec = build(tagged(CODECS), value["codec"], f"outputs.{name}.codec")
    shape = tuple(value["shape"])
    if set(value) != {"codec", "shape", "dtype", "tokens"} or not all(isinstance(size, int) for size in shape):
        raise TypeError(f"outputs.{name} is unreadable")
    return Output(codec=codec, shape=shape, dtype=value["dtype"], tokens=value["tokens"])


def _plain(where: str, value: Any) -> Any:
    try:
        if not isinstance(value, Mapping):
            raise TypeError(f"it is a {type(value).__name__}")
        return json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        mend = "give a mapping of strings, finite numbers, lists and mappings"
        raise ConfigError(problem(where, f"this is no plain data ({error})", mend)) from None


def _differ(where: str, path: str, mine: Any, other: Any) -> str:
    values = [json.dumps(value_at(side, path)) for side in (mine, other)]
    a, b = (value if len(value) <= 80 else value[:77] + "..." for value in values)
    wrong = f"this store was made for something else: `{path}` is {a} there, and {b} now"
    return problem(where, wrong, "choose another folder with `out`, or delete this one")


def sorted_ids(ids: Tensor) -> Tensor:
    """Ids in rising order.

    Raises:
        DataError: there are none, they are no int64 numbers, or one comes twice.
    """
    mend = "give each sample an id of its own: whole numbers, as torch.int64 [n]"
    if ids.dtype != torch.int64 or ids.dim() != 1 or not len(ids):
        wrong = f"the ids are {str(ids.dtype).removeprefix('torch.')} {tuple(ids.shape)}"
        raise DataError(problem("targets.ids", wrong, mend))
    rising = ids.detach().cpu().sort().values
    twice = (rising[1:] == rising[:-1]).nonzero()
    if len(twice):
        raise DataError(problem("targets.ids", f"the id {int(rising[twice[0, 0]])} comes twice", mend))
    return rising
