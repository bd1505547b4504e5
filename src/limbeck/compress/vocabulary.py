"""Rows of a vocabulary that no sentence uses, left out of embeddings and output layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from limbeck.compress.base import Change, Evidence, Left, Plan, edit
from limbeck.compress.places import places, watched
from limbeck.compress.values import as_ranges, from_ranges
from limbeck.core.errors import ConfigError, DataError, ModelError, problem
from limbeck.core.setting import setting
from limbeck.core.surgery import find, replace

__all__ = ["Remapped", "Vocabulary", "id_map", "remap"]


@setting
class Vocabulary:
    """Leave out the rows of an embedding that the data never asks for. Lossless on the sentences of that data.

    The trimmed embedding takes the old ids, so tokenizer and data stay as they are. An output layer that is tied to the
    embedding loses the same rows and stays tied: its logits are then by new id, and `remap` turns labels into those.
    All embeddings that share a weight are trimmed alike. The embedding's `padding_idx` is kept and moves along.

    Attributes:
        keep: ids to keep whether they are used or not, such as special tokens.
        unknown: an id whose row stands for every id left out; None makes such an id an error.
        include: patterns of paths of embeddings to trim; `*` stands for anything.
        exclude: patterns of paths to leave alone.

    Source: Abdaoui, Pradel & Sigel 2020, "Load what you need", section 3 (the vocabulary that a language uses).
    """

    kind: Literal["vocabulary"] = "vocabulary"
    keep: tuple[int, ...] = ()
    unknown: int | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    needs: ClassVar[frozenset[str]] = frozenset({"data"})
    follows: ClassVar[frozenset[str]] = frozenset(
        {"prune", "depth", "merge_units", "merge", "bake", "factorize", "features"}
    )

    def changes(self, model: nn.Module, evidence: Evidence) -> tuple[Sequence[Change], Sequence[Left]]:
        """One edit a weight, at the first embedding that holds it."""
        found = places(model, (nn.Embedding,), include=self.include, exclude=self.exclude, where="vocabulary.include")
        used = _used(model, found, evidence)
        left: list[Left] = []
        changes: list[Change] = []
        groups: dict[int, list[str]] = {}
        for path, layer in found:
            if is_parametrized(layer):
                left.append(Left(at=path, why="its weight is parametrised; bake it first"))
            elif path not in used:
                left.append(Left(at=path, why="the data does not reach it"))
            else:
                groups.setdefault(id(layer.weight), []).append(path)
        for paths in groups.values():
            change = self._trim(model, paths, used)
            if isinstance(change, Change):
                changes.append(change)
            else:
                left.append(Left(at=paths[0], why=change))
        return changes, left

    def _trim(self, model: nn.Module, paths: list[str], used: dict[str, Tensor]) -> Change | str:
        """The edit for one weight, or why there is none."""
        weight = find(model, paths[0]).weight
        assert isinstance(weight, Tensor)
        holders = _holders(model, weight)
        for path, layer in holders:
            if type(layer) not in (nn.Embedding, nn.Linear):
                return f"its weight is tied to {path}, which is neither an embedding nor a linear layer"
            if type(layer) is nn.Embedding and path not in paths:
                return f"its weight is tied to {path}, which is left alone"
        special = {*self.keep, *([self.unknown] if self.unknown is not None else [])}
        beyond = sorted(i for i in special if not 0 <= i < len(weight))
        if beyond:
            wrong = f"id {beyond[0]} is outside the {len(weight)} rows of {paths[0]}"
            raise ConfigError(problem("vocabulary.keep", wrong, "give ids of this embedding, or exclude it"))
        for _, layer in holders:
            if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
                special.add(layer.padding_idx)
        wanted = torch.stack([used[path] for path in paths]).any(0)
        wanted[sorted(special)] = True
        kept = wanted.nonzero().flatten().tolist()
        if len(kept) == len(weight):
            return "every row is used"
        return Change(edit="trim_rows", at=paths[0], detail={"kept": as_ranges(kept), "unknown": self.unknown})


class Remapped(nn.Module):
    """A trimmed embedding that takes the old ids.

    Ids that were left out get the row of `unknown`, or are refused on a CPU by name and elsewhere by torch.
    """

    def __init__(self, embedding: nn.Embedding, new_ids: Tensor) -> None:
        super().__init__()
        self.embedding = embedding
        self.register_buffer("new_ids", new_ids)
        self.new_ids: Tensor

    @property
    def weight(self) -> Tensor:
        """The rows that are kept [rows, width]."""
        return self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [..., width] of old ids [...].

        Raises:
            DataError: an id was left out, and nothing stands for it.
        """
        new = self.new_ids[ids]
        if new.device.type == "cpu" and not torch.compiler.is_compiling() and bool((new < 0).any()):
            wrong = f"id {int(ids[new < 0][0])} was trimmed from the vocabulary"
            raise DataError(problem("vocabulary", wrong, "trim with data that holds it, or say what `unknown` is"))
        vectors: Tensor = self.embedding(new)
        return vectors


def id_map(plan: Plan) -> dict[str, dict[int, int]]:
    """Old id to new id, for each embedding that a plan trims.

    Raises:
        ModelError: the plan is damaged.
    """
    trimmed = [change for change in plan.changes if change.edit == "trim_rows"]
    return {
        change.at: {old: new for new, old in enumerate(from_ranges(change.detail["kept"], change.at))}
        for change in trimmed
    }


def remap(ids: Tensor, ids_of: dict[int, int], *, other: int = -100) -> Tensor:
    """Old ids as new ones, for labels of a trimmed output layer; ids left out become `other`, which losses pass over.

    >>> remap(torch.tensor([[5, 9, 7]]), {5: 0, 7: 1})
    tensor([[   0, -100,    1]])
    """
    return torch.tensor([ids_of.get(int(i), other) for i in ids.flatten()], dtype=ids.dtype).view(ids.shape).to(ids)


def _used(model: nn.Module, found: list[tuple[str, nn.Module]], evidence: Evidence) -> dict[str, Tensor]:
    """Which rows of each embedding the data asks for."""
    used: dict[str, Tensor] = {}

    def see(path: str, layer: nn.Module, ids: Tensor | None, _output: Any) -> None:
        if ids is not None and isinstance(layer.weight, Tensor):
            mask = used.setdefault(path, torch.zeros(len(layer.weight), dtype=torch.bool))
            mask[ids.detach().flatten().cpu().long()] = True

    assert evidence.batches is not None
    reader = evidence.reader(model)
    with torch.no_grad(), watched(found, see):
        for batch in evidence.batches():
            reader(batch)
    return used


def _holders(model: nn.Module, weight: Tensor) -> list[tuple[str, nn.Module]]:
    return [
        (path, module)
        for path, module in model.named_modules()
        if any(parameter is weight for parameter in module.parameters(recurse=False))
    ]


@edit("trim_rows")
def _trim_rows(model: nn.Module, at: str, *, kept: str, unknown: int | None) -> None:
    layer = find(model, at)
    weight = layer.weight
    if not isinstance(layer, nn.Embedding) or not isinstance(weight, nn.Parameter):
        raise ModelError(problem(at, f"it is a {type(layer).__name__}, and no embedding", "replay on the base model"))
    rows = from_ranges(kept, at)
    if not rows or not 0 <= rows[0] <= rows[-1] < len(weight):
        wrong = f"it has {len(weight)} rows, and the plan keeps up to {rows[-1] if rows else 'none'}"
        raise ModelError(problem(at, wrong, "replay on the base model"))
    index = torch.tensor(rows, device=weight.device)
    new_ids = torch.full((len(weight),), -1, dtype=torch.int32)
    new_ids[rows] = torch.arange(len(rows), dtype=torch.int32)
    if unknown is not None:
        new_ids[new_ids < 0] = new_ids[unknown].clone()
    ids_now = {old: new for new, old in enumerate(rows)}
    new_ids = new_ids.to(weight.device)
    trimmed = nn.Parameter(weight.detach()[index].clone(), weight.requires_grad)
    for path, holder in _holders(model, weight):
        holder.weight = trimmed
        if isinstance(holder, nn.Embedding):
            holder.num_embeddings = len(rows)
            holder.padding_idx = None if holder.padding_idx is None else ids_now[holder.padding_idx]
            replace(model, path, Remapped(holder, new_ids))
        elif isinstance(holder, nn.Linear):
            holder.out_features = len(rows)
            if holder.bias is not None:
                holder.bias = nn.Parameter(holder.bias.detach()[index].clone(), holder.bias.requires_grad)
