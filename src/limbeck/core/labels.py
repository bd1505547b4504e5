"""Names for the places along a tensor's dimensions, and which of them stand or fall together.

A *label* is a number for one index along one dimension of a parameter. A *strip* says which labels an activation's
elements carry: an int64 tensor with as many dimensions as the activation, of length 1 where the label does not vary.
A convolution's output [B, C, H, W] has a strip [1, C, 1, 1]; after `flatten` it is [1, C*H*W], each label H*W times.
A tensor has several strips, one for each source of names. Where two labels meet, they are joined: cut both or none.
Where one meets what no cut can change (the batch, a pixel, a class), it is fixed, and so is all that it is joined to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Ids", "Labels", "Strips", "aligned", "compress", "spread", "varies"]

Ids = NDArray[np.int64]
Strips = tuple[Tensor, ...]


class Labels:
    """A union-find of labels, with a note for every class that must stay as it is.

    Args:
        norms: whether what a norm runs over may be cut.
    """

    def __init__(self, norms: bool = False) -> None:
        self.norms = norms
        self._parent: Ids = np.zeros(0, dtype=np.int64)
        self._count = 0
        self._fixed: dict[int, str] = {}

    def fresh(self, count: int) -> Ids:
        """New labels, joined to nothing."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            grown = np.arange(max(1024, 2 * self._count), dtype=np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        return np.arange(start, self._count, dtype=np.int64)

    def roots(self, ids: Ids) -> Ids:
        """The class of each label."""
        found = self._parent[ids]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                self._parent[ids] = found
                return found
            found = above

    def join(self, first: Ids, second: Ids) -> None:
        """Labels at equal places stand or fall together."""
        pairs = np.stack([self.roots(first.ravel()), self.roots(second.ravel())])
        for a, b in np.unique(pairs[:, pairs[0] != pairs[1]], axis=1).T:
            high, low = (int(self.roots(np.array([x]))[0]) for x in (a, b))
            if high != low:
                self._parent[low] = high
                if low in self._fixed:
                    self._note(high, self._fixed[low])

    def fix(self, ids: Ids, why: str = "") -> None:
        """These labels, and all that they are joined to, must stay; why, unless it goes without saying."""
        for root in np.unique(self.roots(ids.ravel())):
            self._note(int(root), why)

    def _note(self, root: int, why: str) -> None:
        self._fixed[root] = self._fixed.get(root) or why

    def why_fixed(self, label: int) -> str | None:
        """Why a label must stay; None where it need not."""
        return self._fixed.get(int(self.roots(np.array([label]))[0]))

    def all_fixed(self, ids: Ids) -> bool:
        """Whether every one of these labels must stay."""
        return all(int(root) in self._fixed for root in np.unique(self.roots(ids.ravel())))

    # Strips

    def strips(self, by_dim: Mapping[int, Ids], dims: int) -> Strips:
        """Strips that vary along one dimension each."""
        return tuple(spread(ids, dim, dims) for dim, ids in sorted(by_dim.items()) if len(ids) > 1)

    def along(self, strips: Strips, prefer: Iterable[int] = ()) -> dict[int, Ids]:
        """The labels dimension by dimension.

        A strip that varies along several (heads and their channels) is bound to one of them, the first in `prefer`
        or else the outermost: labels that share an index there are joined, and the other dimensions are fixed.
        """
        found: dict[int, Ids] = {}
        for strip in strips:
            dims = varies(strip)
            if not dims:
                continue
            carrier = next((dim for dim in prefer if dim in dims), dims[0])
            rows = strip.movedim(carrier, 0).reshape(strip.shape[carrier], -1).numpy()
            self.join(rows, np.broadcast_to(rows[:, :1], rows.shape))
            self._meet(found, carrier, rows[:, 0].copy())
            for dim in dims:
                if dim != carrier:
                    ids = self.fresh(strip.shape[dim])
                    self.fix(ids)  # the width of a head, once heads are the units
                    self._meet(found, dim, ids)
        return found

    def _meet(self, found: dict[int, Ids], dim: int, ids: Ids) -> None:
        """Of two names for one dimension, the one that can be cut is kept; never both."""
        if dim not in found or self.all_fixed(found[dim]):
            found[dim] = ids
        elif not self.all_fixed(ids):
            self.fix(ids, "two kinds of units are mixed along one dimension")

    def meet(self, first: Ids | None, second: Ids | None) -> Ids | None:
        """Join what is at equal places, where both are named; the name of either."""
        if first is None or second is None:
            return second if first is None else first
        self.join(first, second)
        return first

    def merged(self, operands: Sequence[Strips]) -> Strips:
        """What elementwise work on tensors with these (aligned) strips gives: labels at equal places are joined."""
        operands = [tuple(s for s in strips if varies(s)) for strips in operands]
        while True:
            clash = self._clash(operands)
            if clash is None:
                break
            which, strip, taken = clash
            free = [dim for dim in varies(strip) if dim not in taken]
            rest = tuple(s for s in operands[which] if s is not strip)
            operands[which] = rest + self.strips(self.along((strip,), free), strip.dim())
        found: dict[tuple[int, ...], Tensor] = {}
        for strip in (strip for strips in operands for strip in strips):
            dims = varies(strip)
            if dims in found:
                self.join(found[dims].numpy(), strip.numpy())
            else:
                found[dims] = strip
        return tuple(found.values())

    def _clash(self, operands: Sequence[Strips]) -> tuple[int, Tensor, set[int]] | None:
        """A strip along several dimensions that another operand names otherwise, and the dimensions so named."""
        for which, strips in enumerate(operands):
            for strip in strips:
                dims = varies(strip)
                if len(dims) > 1:
                    others = (s for at, more in enumerate(operands) if at != which for s in more)
                    taken = {d for s in others if varies(s) != dims for d in varies(s)} & set(dims)
                    if taken:
                        return which, strip, taken
        return None

    def tidy(self, strips: Iterable[Tensor]) -> Strips:
        """Where a dimension has several names, those that must stay give way to one that can be cut."""
        kept = [strip for strip in strips if varies(strip)]
        loose = [strip for strip in kept if not self.all_fixed(strip.numpy())]
        taken = {dim for strip in loose for dim in varies(strip)}
        return tuple(s for s in kept if any(s is one for one in loose) or not taken & set(varies(s)))


def varies(strip: Tensor) -> tuple[int, ...]:
    """The dimensions along which the label differs."""
    return tuple(dim for dim, size in enumerate(strip.shape) if size > 1)


def spread(ids: Ids, dim: int, dims: int) -> Tensor:
    """A strip with these labels along one of so many dimensions."""
    return torch.from_numpy(ids.copy()).view([-1 if at == dim else 1 for at in range(dims)])


def aligned(strips: Strips, dims: int) -> Strips:
    """Strips of a tensor that is broadcast to more dimensions."""
    return tuple(strip.view([1] * (dims - strip.dim()) + list(strip.shape)) for strip in strips)


def compress(dense: Tensor) -> Tensor:
    """A label for each element as a strip: what does not vary along a dimension is told once."""
    for dim in range(dense.dim()):
        if dense.shape[dim] < 2:
            continue
        first = dense.narrow(dim, 0, 1)
        if bool((dense == first).all()):
            dense = first
    return dense.contiguous()
