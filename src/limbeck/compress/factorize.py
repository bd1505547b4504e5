"""Layers split into thinner ones in a row, where that weighs less.

Letters: m outputs, n inputs (of a convolution: input channels times kernel positions), k the rank.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.compress.base import Change, Evidence, Left, edit
from limbeck.compress.places import CONVS, look, places, watched
from limbeck.compress.values import pack_values, unpack_values
from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting
from limbeck.core.surgery import find, replace

__all__ = ["Factorize", "LowRank", "output_moments"]

_ROUNDS = 5
"""Of alternating least squares after the first guess of a Tucker decomposition."""


@setting
class Factorize:
    """Replace a linear layer or convolution by thinner ones in a row. Lossy.

    A linear layer [m, n] becomes n → k → m. A convolution becomes one of the same kernel with k outputs and a 1×1 after
    it (`conv="spatial"`), or a 1×1, one of the same kernel between fewer channels, and a 1×1 (`conv="tucker"`).
    Exactly one of `rank`, `ratio` and `energy` says how thin. A layer is left alone, and said so, where the parts
    would weigh as much as the whole: for two parts from k = m·n / (m + n) on.

    With `fit="outputs"` what is kept is where the layer's own answers on the data lie, and not the largest part of the
    weight. With y = W·x it gives the least squared error of y that rank k allows: with U the first k eigenvectors of
    the second moment of y, W becomes U·(Uᵀ·W). That is the optimum of Eckart and Young for the matrix of answers, and
    the same as whitening the inputs before the decomposition, without an inverse.

    Attributes:
        rank: the same k for every layer; a Tucker decomposition uses it on both sides.
        ratio: the share of a layer's weights that the parts may have, in (0, 1]; 1 leaves everything alone.
        energy: the share of the squared spectrum to keep, in (0, 1]; a Tucker decomposition keeps it on both sides.
        fit: what is approximated best: the weight, or the layer's outputs on the data, which then is needed.
        conv: how convolutions are split.
        include: patterns of paths to split; `*` stands for anything.
        exclude: patterns of paths to leave alone.

    Source: Denil et al. 2013 (low rank); Zhang et al. 2016, "Accelerating very deep convolutional networks", section 3
    (a convolution and a 1×1, fitted to its responses); Kim et al. 2016, section 3 (Tucker-2); Wang et al. 2024,
    "SVD-LLM", section 3 (whitening).
    """

    kind: Literal["factorize"] = "factorize"
    rank: int | None = None
    ratio: float | None = None
    energy: float | None = None
    fit: Literal["weights", "outputs"] = "weights"
    conv: Literal["spatial", "tucker"] = "spatial"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    follows: ClassVar[frozenset[str]] = frozenset(
        {"prune", "depth", "merge_units", "merge", "vocabulary", "features", "bake"}
    )

    def __post_init__(self) -> None:
        """Refuse what says nothing, or two things."""
        given = [name for name in ("rank", "ratio", "energy") if getattr(self, name) is not None]
        if len(given) != 1:
            wrong = f"{' and '.join(given) or 'none of rank, ratio and energy'} is given"
            raise ConfigError(problem("factorize", wrong, "give one of rank, ratio and energy"))
        if self.rank is not None and self.rank < 1:
            raise ConfigError(problem("factorize.rank", f"it is {self.rank}", "give a rank of 1 or more"))
        share = self.ratio if self.ratio is not None else self.energy
        if share is not None and not 0 < share <= 1:
            raise ConfigError(problem(f"factorize.{given[0]}", f"it is {share}", "give a share above 0, at most 1"))
        if self.fit == "outputs" and self.conv == "tucker":
            wrong = 'fit="outputs" is for layers in two parts, and conv="tucker" makes three'
            raise ConfigError(problem("factorize", wrong, 'set conv="spatial" or fit="weights"'))

    @property
    def needs(self) -> frozenset[str]:
        """Data, where outputs are fitted."""
        return frozenset({"data"}) if self.fit == "outputs" else frozenset()

    def changes(self, model: nn.Module, evidence: Evidence) -> tuple[Sequence[Change], Sequence[Left]]:
        """One edit a layer that gets lighter."""
        if self.ratio == 1:
            return (), ()
        found = places(
            model, (nn.Linear, *CONVS), include=self.include, exclude=self.exclude, where="factorize.include"
        )
        plain = set(look(model, evidence).plain)
        changes: list[Change] = []
        left: list[Left] = []
        fit = [(path, layer) for path, layer in found if path in plain and getattr(layer, "groups", 1) == 1]
        moments = output_moments(model, fit, evidence) if self.fit == "outputs" else {}
        for path, layer in found:
            if getattr(layer, "groups", 1) != 1:
                left.append(Left(at=path, why="it is a grouped convolution"))
            elif path not in plain:
                left.append(Left(at=path, why="its weight is shared, parametrised or read by more than the layer"))
            elif self.conv == "tucker" and isinstance(layer, CONVS) and _positions(layer) > 1:
                self._tucker(path, _weight(layer), changes, left)
            else:
                self._two(path, _weight(layer), moments.get(path), changes, left)
        return changes, left

    def _two(self, path: str, weight: Tensor, moment: Tensor | None, changes: list[Change], left: list[Left]) -> None:
        matrix = weight.flatten(1)
        m, n = matrix.shape
        basis = None
        if moment is None:
            spectrum = torch.linalg.svdvals(matrix).square()
        else:
            spectrum, basis = (part.flip(-1) for part in torch.linalg.eigh(moment))
            spectrum = spectrum.clamp_min(0)
        if self.rank is not None:
            rank = self.rank
        elif self.ratio is not None:
            rank = max(int(self.ratio * m * n / (m + n)), 1)
        else:
            rank = _enough(spectrum, self.energy or 1.0)
        if rank * (m + n) >= m * n:
            left.append(Left(at=path, why=f"rank {rank} weighs no less: the break-even is {m * n / (m + n):.4g}"))
            return
        detail: dict[str, Any] = {"rank": rank}
        if basis is not None:
            detail["values"] = pack_values(basis[:, :rank])
        changes.append(Change(edit="low_rank", at=path, detail=detail))

    def _tucker(self, path: str, weight: Tensor, changes: list[Change], left: list[Left]) -> None:
        outputs, inputs = weight.shape[:2]
        if self.rank is not None:
            ranks = min(self.rank, inputs), min(self.rank, outputs)
        elif self.ratio is not None:
            ranks = _fitting(weight, self.ratio)
        else:
            ranks = (
                _enough(torch.linalg.svdvals(weight.transpose(0, 1).flatten(1)).square(), self.energy or 1.0),
                _enough(torch.linalg.svdvals(weight.flatten(1)).square(), self.energy or 1.0),
            )
        # Neither side can span more than what the other side and the kernel give it.
        kernel = weight[0, 0].numel()
        ranks = min(ranks[0], ranks[1] * kernel), min(ranks[1], ranks[0] * kernel)
        if _tucker_size(weight, *ranks) >= weight.numel():
            left.append(Left(at=path, why=f"ranks {ranks[0]} and {ranks[1]} weigh no less than the whole"))
        else:
            changes.append(Change(edit="tucker", at=path, detail={"inputs": ranks[0], "outputs": ranks[1]}))


class LowRank(nn.Module):
    """A linear layer in two parts, n → k → m. Where its `weight` is read, it is the product of the two."""

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = down.in_features, up.out_features, down.out_features
        self.down, self.up = down, up

    @property
    def weight(self) -> Tensor:
        """The weight [m, n] that the two parts amount to."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias [m]."""
        return self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., m] of inputs [..., n]."""
        outputs: Tensor = self.up(self.down(x))
        return outputs


def output_moments(model: nn.Module, layers: Sequence[tuple[str, nn.Module]], evidence: Evidence) -> dict[str, Tensor]:
    """The mean outer product [m, m] of each layer's outputs less its bias, over the data's positions, in float64.

    Streamed: what is kept does not grow with the data. The model answers as it is set; see `undisturbed`.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def see(path: str, layer: nn.Module, _x: Tensor | None, output: Tensor) -> None:
        rows = output.detach().double()
        rows = (
            rows.flatten(0, -2)
            if isinstance(layer, nn.Linear)
            else rows.movedim(1 - _weight(layer).dim(), -1).flatten(0, -2)
        )
        if isinstance(layer.bias, Tensor):
            rows = rows - layer.bias.detach().double()
        sums[path] = sums.get(path, 0) + rows.T @ rows
        counts[path] = counts.get(path, 0) + len(rows)

    assert evidence.batches is not None
    reader = evidence.reader(model)
    with torch.no_grad(), watched(layers, see):
        for batch in evidence.batches():
            reader(batch)
    return {path: total / max(counts[path], 1) for path, total in sums.items()}


@edit("low_rank")
def _low_rank(model: nn.Module, at: str, *, rank: int, values: Any = None) -> None:
    layer: Any = find(model, at)
    weight = _weight(layer)
    matrix = weight.flatten(1)
    m, n = matrix.shape
    if matrix.is_meta:
        up, down = matrix.new_empty(m, rank), matrix.new_empty(rank, n)
    else:
        if values is None:
            basis = torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
        else:
            basis = unpack_values(values, at).to(matrix)
        up, down = _balanced(basis, basis.T @ matrix)
    if isinstance(layer, nn.Linear):
        first: nn.Module = nn.Linear(n, rank, bias=False, device="meta")
        second: nn.Module = nn.Linear(rank, m, bias=layer.bias is not None, device="meta")
    else:
        first = _conv_like(layer, layer.in_channels, rank)
        second = type(layer)(rank, m, 1, bias=layer.bias is not None, device="meta")
        down, up = down.view(rank, *weight.shape[1:]), up.view(m, rank, *([1] * (weight.dim() - 2)))
    _fill(first, down, None, layer)
    _fill(second, up, layer.bias, layer)
    if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
        replace(model, at, LowRank(first, second))
    else:
        replace(model, at, nn.Sequential(OrderedDict(down=first, up=second)))


@edit("tucker")
def _tucker(model: nn.Module, at: str, *, inputs: int, outputs: int) -> None:
    layer: Any = find(model, at)
    weight = _weight(layer)
    ones = [1] * (weight.dim() - 2)
    if weight.is_meta:
        into, out = weight.new_empty(weight.shape[1], inputs), weight.new_empty(weight.shape[0], outputs)
        core = weight.new_empty(outputs, inputs, *weight.shape[2:])
    else:
        into, out, core = _decompose(weight, inputs, outputs)
    kind = type(layer)
    first = kind(weight.shape[1], inputs, 1, bias=False, device="meta")
    middle = _conv_like(layer, inputs, outputs)
    last = kind(outputs, weight.shape[0], 1, bias=layer.bias is not None, device="meta")
    _fill(first, into.T.reshape(inputs, weight.shape[1], *ones), None, layer)
    _fill(middle, core, None, layer)
    _fill(last, out.reshape(weight.shape[0], outputs, *ones), layer.bias, layer)
    replace(model, at, nn.Sequential(OrderedDict(down=first, core=middle, up=last)))


def _decompose(weight: Tensor, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bases of the input channels [I, inputs] and the output channels [O, outputs], and the core between them.

    Higher-order orthogonal iteration on the first two axes (De Lathauwer et al. 2000).
    """
    out = _left(weight.flatten(1), outputs)
    for _ in range(_ROUNDS):
        into = _left(torch.einsum("oi...,op->ip...", weight, out).flatten(1), inputs)
        out = _left(torch.einsum("oi...,ip->op...", weight, into).flatten(1), outputs)
    return into, out, torch.einsum("oi...,op,iq->pq...", weight, out, into)


def _left(matrix: Tensor, rank: int) -> Tensor:
    basis: Tensor = torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
    return basis


def _balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, each of its terms shared evenly by the two sides, so that both train alike."""
    root = down.norm(dim=1).sqrt()
    root = torch.where(root > 0, root, 1.0)
    return up * root, down / root[:, None]


def _fill(layer: nn.Module, weight: Tensor, bias: Any, old: nn.Module) -> None:
    """Weights in the old layer's type, on its device, that learn where the old ones did."""
    assert isinstance(old.weight, Tensor)
    learns = old.weight.requires_grad
    layer.weight = nn.Parameter(weight.to(old.weight.dtype).contiguous(), requires_grad=learns)
    if isinstance(bias, Tensor):
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)


def _conv_like(layer: Any, inputs: int, outputs: int) -> nn.Module:
    """A convolution with the geometry of this one, without bias or values."""
    geometry = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    made: nn.Module = type(layer)(inputs, outputs, **geometry, bias=False, device="meta")
    return made


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach().double()


def _positions(layer: nn.Module) -> int:
    return _weight(layer)[0, 0].numel()


def _enough(spectrum: Tensor, energy: float) -> int:
    """How many of the falling squared values hold this share of their sum."""
    power = spectrum.cumsum(0)
    # A share of one asks for all of them, whatever rounding says.
    return len(power) if energy == 1 else min(int((power < energy * power[-1]).sum()) + 1, len(power))


def _tucker_size(weight: Tensor, inputs: int, outputs: int) -> int:
    return inputs * weight.shape[1] + inputs * outputs * weight[0, 0].numel() + outputs * weight.shape[0]


def _fitting(weight: Tensor, ratio: float) -> tuple[int, int]:
    """The largest ranks, in the proportion of the channels, that weigh at most this share of the whole."""
    outputs, inputs = weight.shape[:2]
    pairs = [(max(round(inputs * step / 256), 1), max(round(outputs * step / 256), 1)) for step in range(256, 0, -1)]
    weighs = ratio * weight.numel()
    return next((pair for pair in pairs if _tucker_size(weight, *pair) <= weighs), pairs[-1])
