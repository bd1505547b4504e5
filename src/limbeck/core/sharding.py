"""Parameters in parts, one on each process (FSDP2), and whole again. No other file knows distributed tensors.

It goes through `torch.distributed.fsdp.fully_shard` itself, on every device: Accelerate hands that on for GPUs only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["parted", "shard", "whole"]


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that may lie in parts; every process must ask."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def parted(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, laid out as `like` is."""
    if not hasattr(like, "full_tensor") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - pulls in much, and few need it

    held: Any = like
    return distribute_tensor(value.to(held.device), held.device_mesh, held.placements)


def shard(module: nn.Module, device: torch.device) -> None:
    """Lay each repeated block's parameters out over all processes, and what is left in one more group; in place."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in (*_blocks(module), module):
        # Always laid out again after a forward pass: scores are read, and averages swapped in, between two.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of lists and sequences, outermost first, that hold parameters nobody else holds.

    A parameter in two places (tied weights) must be in one group: such blocks stay with the rest.
    """
    holders: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    for child in module.children():
        for block in child if isinstance(child, nn.ModuleList | nn.Sequential) else ():
            own = list(block.parameters())
            if len(own) > 1 and all(holders[id(parameter)] == 1 for parameter in own):
                yield block
            elif own:
                yield from _blocks(block)
        if not isinstance(child, nn.ModuleList | nn.Sequential):
            yield from _blocks(child)
