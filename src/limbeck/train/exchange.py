"""Samples of all processes: gathered with gradient, or shared out for a pass without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from limbeck.core.types import Named

__all__ = ["joined", "own_rows", "spread"]


class _Gather(torch.autograd.Function):
    """Rows of all processes, equally many of each, one behind the other; the gradient is the sum of all they ask."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        every = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(every, rows.contiguous())
        return torch.cat(every)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        return whole[ctx.rows * dist.get_rank() :][: ctx.rows]


def _sizes(rows: int) -> list[int]:
    """How many rows each process has."""
    own = torch.tensor([rows])
    if dist.get_backend() == "nccl":
        own = own.cuda()
    every = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    return [int(size) for size in every]


def _by_sample(name: str, value: Tensor, rows: int) -> bool:
    """Whether a named tensor has an axis of samples; a layer's weight has none, whatever its size."""
    return value.dim() > 0 and len(value) == rows and not name.endswith("@weight")


def own_rows(rows: int) -> slice:
    """Which rows of what `joined` returns are this process's."""
    sizes, rank = _sizes(rows), dist.get_rank()
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def joined(*sides: Named) -> list[dict[str, Tensor]]:
    """Everything that has an axis of samples, with those of all processes; processes may have unequal numbers.

    Args:
        sides: named tensors; the last one holds `valid`, which says how many samples there are here.
    """
    rows = len(sides[-1]["valid"])
    sizes = _sizes(rows)
    most = max(sizes)
    kept = torch.cat([torch.arange(size) + i * most for i, size in enumerate(sizes)])

    def whole(value: Tensor) -> Tensor:
        flags = value.dtype == torch.bool  # which not every backend can send
        value = value.to(torch.uint8) if flags else value
        padded = torch.cat([value, value[:1].expand(most - rows, *value.shape[1:])]) if rows < most else value
        every: Tensor = _Gather.apply(padded)  # type: ignore[no-untyped-call]
        every = every[kept.to(every.device)] if min(sizes) < most else every
        return every.bool() if flags else every

    return [
        {name: whole(value) if _by_sample(name, value, rows) else value for name, value in sorted(side.items())}
        for side in sides
    ]


def spread(forward: Callable[[Named], Named]) -> Callable[[Named], Named]:
    """`forward` over this process's share of the samples, and the answers to all of them; for passes without gradient.

    Every process must come with the same batch.
    """

    def shared(batch: Named) -> Named:
        rows, parts = len(batch["valid"]), dist.get_world_size()
        share = -(-rows // parts)
        mine = torch.arange(share) + share * dist.get_rank()
        mine = mine.clamp(max=rows - 1)  # what is left over looks at the last sample, and is cut off below
        place = mine.to(batch["valid"].device)
        few = {name: value[place] if _by_sample(name, value, rows) else value for name, value in batch.items()}
        answers = {name: value for name, value in forward(few).items() if _by_sample(name, value, share)}
        (every,) = joined({**answers, "valid": few["valid"]})
        return {name: every[name][:rows] for name in answers}

    return shared
