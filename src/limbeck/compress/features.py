"""Columns of a table that say nothing, left out of what a network reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.compress.base import Change, Evidence, Left, Plan, edit
from limbeck.compress.places import look, places, watched
from limbeck.compress.values import as_ranges, from_ranges, pack_values, unpack_values
from limbeck.core.errors import ConfigError, DataError, ModelError, problem
from limbeck.core.extras import need
from limbeck.core.seeds import derive
from limbeck.core.setting import setting
from limbeck.core.surgery import find, replace

__all__ = ["Features", "Select", "Selected", "kept_columns", "loss_increase", "shadow_hits"]

Floats = npt.NDArray[np.float64]


@setting
class Features:
    """Leave out the columns of a table that do not help, from the linear layers that read the table. Lossy.

    The layers get a `Select` before them, so the data keeps its columns; what a column contributed on average goes to
    the bias. Which columns go:

    - "shadow": `rounds` forests are grown on the table beside a shuffled copy of each column. A column goes if it beats
      the best shuffled copy in fewer of them than a fair coin would, by a binomial test at `alpha` shared among the
      columns (Bonferroni). One that is shown to beat it more often stays; of the others `undecided` says what is
      done. It looks at the data and not at the network. The luckiest of many useless columns is often undecided.
    - "permutation": those whose shuffling raises the network's own loss by at most `tolerance` of it, in the mean of
      `rounds`.
    - "ablation": the same, with the column held at its mean.

    Attributes:
        by: how columns are judged.
        column: the batch's column that is the table, [B, features] of floats.
        most: the largest share of the columns that may go, the least important first; 0 changes nothing.
        tolerance: the rise of the loss, as a share of it, that still counts as none ("permutation", "ablation").
        alpha: the level of the test ("shadow").
        rounds: shufflings, or forests.
        undecided: what is done with columns for which "shadow" shows neither.
        include: patterns of paths of layers that may be cut; `*` stands for anything.
        exclude: patterns of paths to leave alone.

    Source: Kursa & Rudnicki 2010, "Feature selection with the Boruta package", section 2 (shadows and the test);
    Breiman 2001, section 10, and Fisher, Rudin & Dominici 2019, equation 3 (permutation).
    """

    kind: Literal["features"] = "features"
    by: Literal["shadow", "permutation", "ablation"] = "shadow"
    column: str = "x"
    most: float = 1.0
    tolerance: float = 0.001
    alpha: float = 0.05
    rounds: int = 20
    undecided: Literal["keep", "drop"] = "keep"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    needs: ClassVar[frozenset[str]] = frozenset({"data", "labels"})
    follows: ClassVar[frozenset[str]] = frozenset({"prune", "depth", "merge_units", "merge", "bake", "vocabulary"})

    def __post_init__(self) -> None:
        """Refuse what cannot be judged by."""
        if not 0 <= self.most <= 1 or not 0 < self.alpha < 1 or self.rounds < 1 or not self.tolerance >= 0:
            wrong = f"most {self.most}, alpha {self.alpha}, rounds {self.rounds}, tolerance {self.tolerance}"
            mend = "give most from 0 to 1, alpha between, rounds from 1 and a tolerance from 0 on"
            raise ConfigError(problem("features", wrong, mend))

    def changes(self, model: nn.Module, evidence: Evidence) -> tuple[Sequence[Change], Sequence[Left]]:
        """One edit a linear layer that reads the table."""
        table, y = self._gather(evidence)
        plain = set(look(model, evidence).plain)
        found = places(model, (nn.Linear,), include=self.include, exclude=self.exclude, where="features.include")
        readers = _readers(model, found, evidence, self.column)
        layers = [path for path in readers if path in plain]
        left = [Left(at=path, why="its weight is shared or parametrised") for path in readers if path not in plain]
        if not layers:
            return (), left or [Left(at="", why=f"no linear layer reads {self.column!r} as it is")]
        useless, importance = self._judge(model, evidence, table, y)
        order = sorted(useless, key=lambda column: importance[column])
        count = min(int(self.most * table.shape[1]), table.shape[1] - 1)
        gone = set(order[:count])
        kept = [column for column in range(table.shape[1]) if column not in gone]
        if not gone:
            return (), left
        means = table.double().mean(0)[sorted(gone)]
        detail = {"columns": as_ranges(kept), "values": pack_values(means)}
        return [Change(edit="select_columns", at=path, detail=dict(detail)) for path in layers], left

    def _judge(self, model: nn.Module, evidence: Evidence, table: Tensor, y: Tensor) -> tuple[list[int], Floats]:
        """The columns that do not help, and how important each column is."""
        if self.by == "shadow":
            hits, importance = shadow_hits(table, y, rounds=self.rounds, seed=evidence.seed)
            level = self.alpha / table.shape[1]
            below = [_at_most(int(hit), self.rounds) <= level for hit in hits]
            # The coin is fair: to win at least `hit` times is as likely as to lose at least as often.
            above = [_at_most(self.rounds - int(hit), self.rounds) <= level for hit in hits]
            gone = below if self.undecided == "keep" else [not shown for shown in above]
            return [c for c, out in enumerate(gone) if out], importance
        rise, loss = loss_increase(model, evidence, self.column, rounds=self.rounds, shuffled=self.by == "permutation")
        return [c for c, value in enumerate(rise) if value <= self.tolerance * loss], rise

    def _gather(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """The whole table [N, features] and its labels [N]."""
        assert evidence.batches is not None
        tables, labels = [], []
        for batch in evidence.batches():
            if self.column not in batch or batch[self.column].dim() != 2 or not batch[self.column].is_floating_point():
                wrong = f"the batch has no column {self.column!r} of rows of floats"
                raise DataError(problem("features.column", wrong, "name the column that is the table"))
            tables.append(batch[self.column].cpu())
            labels.append(batch["y"].cpu())
        if not tables:
            raise DataError(problem("features", "there is no batch", "give data with the evidence"))
        return torch.cat(tables), torch.cat(labels)


class Select(nn.Module):
    """The columns that are kept, of a table that still has all."""

    def __init__(self, columns: Tensor) -> None:
        super().__init__()
        self.register_buffer("columns", columns)
        self.columns: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., kept] of [..., features]."""
        return x.index_select(-1, self.columns)


class Selected(nn.Sequential):
    """A `Select` and the linear layer that reads what it keeps."""


def kept_columns(plan: Plan) -> dict[str, list[int]]:
    """The columns that each cut layer still reads.

    Raises:
        ModelError: the plan is damaged.
    """
    cut = [change for change in plan.changes if change.edit == "select_columns"]
    return {change.at: from_ranges(change.detail["columns"], change.at) for change in cut}


def shadow_hits(table: Tensor, y: Tensor, *, rounds: int, seed: int) -> tuple[Floats, Floats]:
    """How often each column [F] beats the best of the shuffled columns, and its mean importance.

    Each round shuffles every column anew and grows a forest on both tables; importance is the fall of impurity.
    Whole-number labels are classes, others numbers.

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    ensemble = need("sklearn.ensemble", extra="demo", why="features by shadow")
    forest = ensemble.RandomForestRegressor if y.is_floating_point() else ensemble.RandomForestClassifier
    x = table.double().numpy()
    columns = x.shape[1]
    hits, importance = np.zeros(columns), np.zeros(columns)
    for index in range(rounds):
        chance = np.random.default_rng(derive(seed, "shadow", index))
        both = np.concatenate([x, chance.permuted(x, axis=0)], axis=1)
        grown = forest(n_estimators=100, max_features="sqrt", n_jobs=1, random_state=int(chance.integers(2**31)))
        found = grown.fit(both, y.numpy()).feature_importances_
        hits += found[:columns] > found[columns:].max()
        importance += found[:columns] / rounds
    return hits, importance


def loss_increase(
    model: nn.Module, evidence: Evidence, column: str, *, rounds: int, shuffled: bool
) -> tuple[Floats, float]:
    """How much the model's loss rises [F] when a column is shuffled, or held at its mean; and the loss itself.

    The loss is cross-entropy for whole-number labels, the squared error otherwise, in the mean over all samples. A
    column is shuffled within a batch, so batches should not be sorted.
    """
    assert evidence.batches is not None
    reader = evidence.reader(model)
    chance = torch.Generator().manual_seed(derive(evidence.seed, "shuffle"))
    total = samples = 0.0
    rise: Tensor | None = None
    times = rounds if shuffled else 1
    means = None if shuffled else _means(evidence, column)
    with torch.no_grad():
        for batch in evidence.batches():
            x = batch[column]
            base = _loss(reader(batch), batch)
            changed = x.new_zeros(x.shape[1], dtype=torch.float64)
            for c in range(x.shape[1]):
                for _ in range(times):
                    other = x.clone()
                    if means is None:
                        other[:, c] = x[torch.randperm(len(x), generator=chance).to(x.device), c]
                    else:
                        other[:, c] = means[c]
                    changed[c] += (_loss(reader({**batch, column: other}), batch) - base) / times
            rise = changed if rise is None else rise + changed
            total, samples = total + base, samples + len(x)
    assert rise is not None
    return (rise / samples).cpu().numpy(), total / samples


def _means(evidence: Evidence, column: str) -> Tensor:
    assert evidence.batches is not None
    total, count = 0.0, 0
    for batch in evidence.batches():
        total, count = total + batch[column].double().sum(0), count + len(batch[column])  # type: ignore[assignment]
    return total / count  # type: ignore[return-value]


def _loss(signal: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> float:
    """The sum over the batch, in float64."""
    logits, y = signal["logits"].double(), batch["y"]
    if y.is_floating_point():
        return float((logits.reshape(len(y), -1) - y.double().reshape(len(y), -1)).square().sum())
    return float(F.cross_entropy(logits, y.long(), reduction="sum"))


def _at_most(hits: int, rounds: int) -> float:
    """The chance of at most so many hits where each round is a fair coin."""
    ways = sum(math.comb(rounds, i) for i in range(hits + 1))
    return float(ways / 2**rounds)


def _readers(model: nn.Module, found: Sequence[tuple[str, nn.Module]], evidence: Evidence, column: str) -> list[str]:
    """The layers that are given the table as it is."""
    table = evidence.batch[column]
    paths: list[str] = []

    def see(path: str, _layer: nn.Module, x: Tensor | None, _output: Any) -> None:
        if x is not None and x.shape == table.shape and x.data_ptr() == table.data_ptr() and path not in paths:
            paths.append(path)

    with torch.no_grad(), watched(found, see):
        evidence.reader(model)(evidence.batch)
    return paths


@edit("select_columns")
def _select_columns(model: nn.Module, at: str, *, columns: str, values: Any = None) -> None:
    layer = find(model, at)
    kept = from_ranges(columns, at)
    if not isinstance(layer, nn.Linear) or not kept or not 0 <= kept[0] <= kept[-1] < layer.in_features:
        wrong = f"the plan cuts a linear layer with column {kept[-1] if kept else 0}, and this is {layer}"
        raise ModelError(problem(at, wrong, "replay on the base model"))
    weight = layer.weight.detach()
    chosen = set(kept)
    gone = [column for column in range(layer.in_features) if column not in chosen]
    bias = layer.bias.detach().double() if layer.bias is not None else weight.new_zeros(len(weight)).double()
    if values is not None and not weight.is_meta:
        bias = bias + weight[:, gone].double() @ unpack_values(values, at).to(weight.device).double()
    cut = nn.Linear(len(kept), layer.out_features, device="meta")
    cut.weight = nn.Parameter(weight[:, kept].clone(), layer.weight.requires_grad)
    cut.bias = nn.Parameter(bias.to(weight.dtype), layer.weight.requires_grad)
    replace(model, at, Selected(Select(torch.tensor(kept, device=weight.device)), cut))
