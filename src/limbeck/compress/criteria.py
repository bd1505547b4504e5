"""How much a unit matters, by eight measures. A greater score is kept longer.

A unit's *members* are the slices of weights (of two dimensions or more) that make it and read it; where it has none,
those of its other parameters. Its score is the mean of its members' scores. A unit with several rows (a head, a gated
hidden unit) is one vector. w is such a vector, g the gradient of the mean loss of a batch there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.compress.base import Evidence
from limbeck.compress.readers import hear, readers_of
from limbeck.core.coupling import Group, Place
from limbeck.core.kernels import plain_kernels
from limbeck.core.seeds import derive
from limbeck.core.surgery import find, tensor_at

__all__ = [
    "CRITERIA",
    "NEEDS",
    "Criterion",
    "Scores",
    "activation",
    "fisher",
    "geometric_median",
    "l1",
    "l2",
    "lamp",
    "norm_scale",
    "rows_of",
    "taylor",
    "uniform",
]  # fmt: skip

Criterion = Literal["l1", "l2", "norm_scale", "taylor", "fisher", "activation", "geometric_median", "lamp", "random"]
Scores = dict[str, Tensor]
"""For a group's name, a score for each of its units. A group that the measure cannot judge is not there."""


def l1(rows: Tensor) -> Tensor:
    """Sum |w| (Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.1). Rows [U, K] to scores [U]."""
    return rows.abs().sum(1)


def l2(rows: Tensor) -> Tensor:
    """The root of sum w^2. Rows [U, K] to scores [U]."""
    return rows.square().sum(1).sqrt()


def geometric_median(rows: Tensor) -> Tensor:
    """The sum of the distances to all units of the group: small for one that the others can stand in for.

    He et al. 2019, "Filter pruning via geometric median", equation 7. Rows [U, K] to scores [U].
    """
    return torch.cdist(rows[None], rows[None], compute_mode="donot_use_mm_for_euclid_dist")[0].sum(1)


def lamp(rows: Tensor) -> Tensor:
    """|w_u|^2 by the sum of |w_v|^2 over the units v that are not smaller, u among them.

    Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", equation 2, of units instead of single
    weights. The greatest unit scores 1. Rows [U, K] to scores [U].
    """
    squares = rows.square().sum(1)
    order = squares.argsort(stable=True)
    above = squares[order].flip(0).cumsum(0).flip(0)
    return torch.empty_like(squares).index_copy(0, order, squares[order] / above.clamp_min(1e-30))


def taylor(rows: Tensor, gradient: Tensor) -> Tensor:
    """(sum w g)^2: the square of how the loss would change, to first order, if the unit were zero.

    Molchanov et al. 2019, "Importance estimation for neural network pruning", equation 8, summed over the unit.
    Rows and gradients [U, K] to scores [U].
    """
    return (rows * gradient).sum(1).square()


def fisher(rows: Tensor, gradient: Tensor) -> Tensor:
    """Half the sum of w^2 g^2: how the loss would grow, to second order, at a minimum.

    LeCun et al. 1990, "Optimal brain damage", equation 5, the diagonal Hessian taken as the square of the gradient
    (exact for the empirical Fisher matrix where a batch is one sample). Rows and gradients [U, K] to scores [U].
    """
    return 0.5 * (rows.square() * gradient.square()).sum(1)


def rows_of(group: Group, place: Place, tensor: Tensor) -> Tensor:
    """What of a tensor belongs to each unit, flat [U, K]; a unit with fewer indices is filled up with zeros."""
    index = group.index[place]
    longest = max(map(len, index))
    rows = []
    for unit in index:
        row = tensor.index_select(place.dim, torch.tensor(unit, device=tensor.device)).movedim(place.dim, 0)
        rows.append(F.pad(row.reshape(len(unit), -1), (0, 0, 0, longest - len(unit))).flatten())
    return torch.stack(rows)


def _members(model: nn.Module, group: Group) -> list[tuple[Place, nn.Parameter]]:
    named = ((place, tensor_at(model, place.tensor)) for place in group.index)
    every = [(place, tensor) for place, tensor in named if isinstance(tensor, nn.Parameter)]
    return [(place, tensor) for place, tensor in every if tensor.dim() > 1] or every


def _by_weight(measure: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Sequence[Group], Evidence], Scores]:
    def scores(model: nn.Module, groups: Sequence[Group], _evidence: Evidence) -> Scores:
        return {
            group.name: torch.stack(
                [measure(rows_of(group, place, tensor.detach().float())) for place, tensor in _members(model, group)]
            ).mean(0)
            for group in groups
        }

    return scores


def _by_gradient(
    measure: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[nn.Module, Sequence[Group], Evidence], Scores]:
    """The mean over batches; nothing but one gradient is held."""

    def scores(model: nn.Module, groups: Sequence[Group], evidence: Evidence) -> Scores:
        total: Scores = {}
        count = 0
        for gradient in _gradients(model, evidence):
            count += 1
            for group in groups:
                found = []
                for place, tensor in _members(model, group):
                    if id(tensor) in gradient:
                        w, g = (rows_of(group, place, t.float()) for t in (tensor.detach(), gradient[id(tensor)]))
                        found.append(measure(w, g))
                if found:
                    total[group.name] = total.get(group.name, 0) + torch.stack(found).mean(0)
        return {name: value / count for name, value in total.items()}

    return scores


def _gradients(model: nn.Module, evidence: Evidence) -> Iterator[dict[int, Tensor]]:
    """For each batch, the gradient of its mean loss by the identity of the parameter."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    reader = evidence.reader(model)
    frozen = [p for p in parameters if not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for batch in evidence.batches() if evidence.batches else ():
            with torch.enable_grad(), plain_kernels():  # cuDNN has no backward of recurrent layers in evaluation mode
                loss = _loss(reader(batch)["logits"], batch["y"])
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            yield {id(p): g for p, g in zip(parameters, found, strict=True) if g is not None}
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        reader.close()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with classes (negative ones are unknown), squared error with numbers."""
    if labels.is_floating_point():
        return F.mse_loss(logits.reshape(labels.shape), labels)
    known = labels.flatten() >= 0
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1])[known], labels.flatten()[known])


def norm_scale(model: nn.Module, groups: Sequence[Group], _evidence: Evidence) -> Scores:
    """|scale| of the norms over the units (Liu et al. 2017, "Network slimming", section 3); judges no others."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
    scores: Scores = {}
    for group in groups:
        found = [
            rows_of(group, place, tensor_at(model, place.tensor).detach().float()).abs().mean(1)
            for place in group.index
            if place.tensor.endswith("weight") and isinstance(find(model, place.tensor.rpartition(".")[0]), kinds)
        ]
        if found:
            scores[group.name] = torch.stack(found).mean(0)
    return scores


def activation(model: nn.Module, groups: Sequence[Group], evidence: Evidence) -> Scores:
    """Mean |activation| where a linear layer or convolution reads the unit; judges only units that one reads."""
    readers = {group.name: readers_of(model, group) for group in groups}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def take(name: str, heard: Tensor) -> None:
        sums[name] = sums.get(name, 0) + heard.abs().sum(1)
        counts[name] = counts.get(name, 0) + heard.shape[1]

    hear(model, evidence, {p.tensor: layer for found in readers.values() for p, layer in found.items()}, take)
    scores: Scores = {}
    for group in groups:
        found = []
        for place in readers[group.name]:
            if place.tensor in sums:
                mean = sums[place.tensor] / counts[place.tensor]
                found.append(torch.stack([mean[list(unit)].mean() for unit in group.index[place]]))
        if found:
            scores[group.name] = torch.stack(found).mean(0)
    return scores


def uniform(_model: nn.Module, groups: Sequence[Group], evidence: Evidence) -> Scores:
    """Drawn evenly from [0, 1) with the evidence's seed: the baseline that a measure must beat."""
    scores: Scores = {}
    for group in groups:
        generator = torch.Generator().manual_seed(derive(evidence.seed, "prune", group.name))
        scores[group.name] = torch.rand(len(group.units), generator=generator)
    return scores


CRITERIA: dict[str, Callable[[nn.Module, Sequence[Group], Evidence], Scores]] = {
    "l1": _by_weight(l1),
    "l2": _by_weight(l2),
    "norm_scale": norm_scale,
    "taylor": _by_gradient(taylor),
    "fisher": _by_gradient(fisher),
    "activation": activation,
    "geometric_median": _by_weight(geometric_median),
    "lamp": _by_weight(lamp),
    "random": uniform,
}
NEEDS = {
    "taylor": frozenset({"data", "labels"}),
    "fisher": frozenset({"data", "labels"}),
    "activation": frozenset({"data"}),
}
"""What a measure needs of the evidence; those that are not named need nothing."""
