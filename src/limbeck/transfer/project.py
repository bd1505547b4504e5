"""What units that go had to say, taken over by those that stay: least squares on activations, and PCA of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from limbeck.compress.base import Evidence
from limbeck.compress.readers import hear, readers_of
from limbeck.core.coupling import Coupling, Group, Place
from limbeck.core.surgery import find, tensor_at

__all__ = ["compact_embeddings", "least_squares"]

_RIDGE = 1e-8
"""Added to the diagonal, relative to its mean: units that never speak have no inverse."""


def least_squares(
    model: nn.Module, coupling: Coupling, removed: Mapping[str, Sequence[int]], evidence: Evidence
) -> set[str]:
    """Let every layer that reads cut units read, in their place, what those that stay can say of them; in place.

    For a reader's weight W the columns of the units that stay become W_k + W_g R, where R minimises
    |x_g - R x_k - c|^2 over all that the reader hears of `evidence`; W_g c goes to the bias of a linear layer that has
    one, elsewhere c is 0. Exact where the units that go are linear combinations of the others.

    Source: Luo et al. 2017, "ThiNet", section 3.2 (the least squares after channels are chosen).

    Returns:
        The names of the tensors that changed.
    """
    readers = {
        place: (group, layer)
        for group in coupling.groups
        if removed.get(group.name)
        for place, layer in readers_of(model, group).items()
    }
    sums: dict[str, Tensor] = {}

    def take(name: str, heard: Tensor) -> None:
        x = torch.cat([heard, heard.new_ones(1, heard.shape[1])]).double()
        sums[name] = sums[name] + x @ x.T if name in sums else x @ x.T

    hear(model, evidence, {place.tensor: layer for place, (_, layer) in readers.items()}, take)
    changed = set()
    for place, (group, layer) in readers.items():
        if place.tensor in sums:
            changed |= _take_over(layer, place, group, removed[group.name], sums[place.tensor])
    return changed


def _take_over(layer: nn.Module, place: Place, group: Group, gone: Sequence[int], sums: Tensor) -> set[str]:
    index = group.index[place]
    away = [i for unit in gone for i in index[unit]]
    stay = [i for unit in range(len(index)) if unit not in set(gone) for i in index[unit]]
    bias = layer.bias if isinstance(layer, nn.Linear) else None
    known = [*stay, len(sums) - 1] if bias is not None else stay
    inner = sums[known][:, known]
    inner = inner + _RIDGE * inner.diagonal().mean().clamp_min(1e-30) * torch.eye(len(known)).to(inner)
    solved = torch.linalg.solve(inner, sums[known][:, away])  # [known, away]
    weight = layer.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        columns = weight.detach().double().movedim(place.dim, -1)
        added = columns[..., away] @ solved.T.to(columns.device)
        columns[..., stay] += added[..., : len(stay)]
        weight.copy_(columns.movedim(-1, place.dim))
        if bias is None:
            return {place.tensor}
        bias.add_(added[..., -1].to(bias.dtype))
    return {place.tensor, f"{place.tensor.rpartition('.')[0]}.bias"}


def compact_embeddings(
    model: nn.Module, coupling: Coupling, removed: Mapping[str, Sequence[int]]
) -> tuple[set[str], list[str]]:
    """Turn the columns of embeddings that lose some so that what stays is their principal components; in place.

    With E = U S V' (about the origin, for which no bias is needed) the columns that stay become E V_k, and the weights
    of those who read them W V_k, so that E W' becomes its best approximation of that rank: exact where the rank of E
    is no larger. Only where nothing but linear layers and recurrent ones read the embedding.

    Source: Raunak et al. 2019, "Effective dimensionality reduction for word embeddings", section 2, without its mean.

    Returns:
        The names of the tensors that changed, and a note for each embedding that was sliced instead.
    """
    changed: set[str] = set()
    notes = []
    for group in coupling.groups:
        tables = [place for place in group.index if _is_table(model, place)]
        if not tables or not removed.get(group.name):
            continue
        others = [place for place in group.index if place not in tables]
        if len(tables) > 1 or not others or not all(_reads(model, place) for place in others):
            notes.append(f"{tables[0].tensor} was sliced: more than linear and recurrent layers depend on its columns")
            continue
        changed |= _turn(model, group, tables[0], others, removed[group.name])
    return changed, notes


def _turn(model: nn.Module, group: Group, table: Place, others: Sequence[Place], gone: Sequence[int]) -> set[str]:
    stay = [unit for unit in range(len(group.units)) if unit not in set(gone)]
    order = [unit[0] for unit in group.index[table]]
    with torch.no_grad():
        weight = tensor_at(model, table.tensor)
        turned = torch.linalg.svd(weight[:, order].double(), full_matrices=False).Vh
        turned = torch.cat([turned, turned.new_zeros(max(0, len(stay) - len(turned)), turned.shape[1])])[: len(stay)]
        for place in (table, *others):
            tensor = tensor_at(model, place.tensor)
            index = [unit[0] for unit in group.index[place]]
            tensor[:, [index[unit] for unit in stay]] = (tensor[:, index].double() @ turned.T.to(tensor.device)).to(
                tensor.dtype
            )
    return {table.tensor, *(place.tensor for place in others)}


def _is_table(model: nn.Module, place: Place) -> bool:
    return place.dim == 1 and isinstance(find(model, place.tensor.rpartition(".")[0]), nn.Embedding)


def _reads(model: nn.Module, place: Place) -> bool:
    path, _, name = place.tensor.rpartition(".")
    layer = find(model, path)
    linear = isinstance(layer, nn.Linear) and name == "weight"
    return place.dim == 1 and (linear or (isinstance(layer, nn.RNNBase) and name.startswith("weight_ih_l0")))
