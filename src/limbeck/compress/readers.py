"""The layers that read units, and what they hear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from torch import Tensor, nn

from limbeck.compress.base import Evidence
from limbeck.core.coupling import Group, Place
from limbeck.core.surgery import find

__all__ = ["hear", "reader_at", "readers_of"]


def reader_at(model: nn.Module, place: Place) -> nn.Module | None:
    """The linear layer or ungrouped convolution whose input at this place of its weight is the units themselves."""
    path, _, name = place.tensor.rpartition(".")
    layer = find(model, path)
    if name != "weight":
        return None
    if isinstance(layer, nn.Linear):
        return layer if place.dim == 1 else None
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups == 1:
        return layer if place.dim == (0 if layer.transposed else 1) else None
    return None


def readers_of(model: nn.Module, group: Group) -> dict[Place, nn.Module]:
    """Those of a group."""
    found = ((place, reader_at(model, place)) for place in group.index)
    return {place: layer for place, layer in found if layer is not None}


def hear(
    model: nn.Module, evidence: Evidence, layers: Mapping[str, nn.Module], take: Callable[[str, Tensor], None]
) -> None:
    """Run every batch of the evidence through the model and hand on what the layers read, channels first [C, N].

    Args:
        model: in evaluation mode.
        evidence: whose `batches` are run, or its one batch where there are none.
        layers: by a name for each.
        take: is called with the name and the input, in float32, of every call of a layer.
    """

    def listen(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        dim = -1 if isinstance(module, nn.Linear) else 1
        take(name, args[0].detach().float().movedim(dim, 0).flatten(1))

    handles = [layer.register_forward_pre_hook(partial(listen, name)) for name, layer in layers.items()]
    reader = evidence.reader(model)
    batches: Iterable[Mapping[str, Tensor]] = evidence.batches() if evidence.batches else (evidence.batch,)
    try:
        for batch in batches:
            reader(batch)
    finally:
        for handle in handles:
            handle.remove()
        reader.close()
