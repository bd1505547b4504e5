"""Weights that training keeps sparse or shared, and how little of them a file needs to hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from limbeck.compress.base import Change, Evidence, Left, edit
from limbeck.core.setting import setting
from limbeck.core.surgery import find

__all__ = [
    "Bake",
    "Masked",
    "Place",
    "Shared",
    "bake",
    "kept_by",
    "pack",
    "settle",
    "stored_bytes",
    "stored_places",
    "unpack",
]


class Masked(nn.Module):
    """A parametrisation that holds some weights at zero, whatever an optimizer's momentum or decay does to them."""

    names = ("original", "0.mask")

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.mask: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where the mask is false."""
        return torch.where(self.mask, weight, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What to hold so that `forward` gives this weight as far as it can."""
        return torch.where(self.mask, weight, 0.0)

    def pack(self, original: Tensor) -> dict[str, Tensor]:
        """The values that are kept, in order, and a bit a weight."""
        return {"original": original[self.mask], "0.mask": _pack_bits(self.mask.flatten().to(torch.uint8), 1)}

    def unpack(self, packed: Mapping[str, Tensor], original: Tensor) -> dict[str, Tensor]:
        """The tensors that were packed; `original` says their shape."""
        mask = _unpack_bits(packed["0.mask"], 1, original.numel()).bool().view(original.shape)
        full = torch.zeros(original.shape, dtype=packed["original"].dtype)
        full[mask] = packed["original"]
        return {"original": full, "0.mask": mask}


class Shared(nn.Module):
    """A parametrisation whose parameter is a codebook [C, K]; each weight is one of its channel's K numbers.

    With `zeros` there is one number more, a zero that is not learned, under index 0.
    """

    names = ("original", "0.indices")

    def __init__(self, indices: Tensor, shape: tuple[int, ...], *, levels: int, zeros: bool) -> None:
        super().__init__()
        self.register_buffer("indices", indices)
        self.indices: Tensor
        self.shape, self.levels, self.zeros = shape, levels, zeros

    @property
    def bits(self) -> int:
        """Of an index in a file."""
        return max(math.ceil(math.log2(self.levels)), 1)

    def forward(self, codebook: Tensor) -> Tensor:
        """The weight that the codebook and the indices amount to."""
        if self.zeros:
            codebook = nn.functional.pad(codebook, (1, 0))
        return codebook.gather(1, self.indices.long()).view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The codebook nearest to a weight: the mean of those that share an index."""
        rows = weight.reshape(len(self.indices), -1).double()
        sums, counts = (rows.new_zeros(len(rows), self.levels) for _ in range(2))
        where = self.indices.long()
        sums.scatter_add_(1, where, rows)
        counts.scatter_add_(1, where, torch.ones_like(rows))
        means = (sums / counts.clamp_min(1)).to(weight.dtype)
        return means[:, 1:].contiguous() if self.zeros else means

    def pack(self, original: Tensor) -> dict[str, Tensor]:
        """The codebook as it is, and the indices in the least bits that tell them apart."""
        return {"original": original, "0.indices": _pack_bits(self.indices.flatten(), self.bits)}

    def unpack(self, packed: Mapping[str, Tensor], original: Tensor) -> dict[str, Tensor]:
        """The tensors that were packed; `original` is the codebook."""
        if packed["original"].shape != original.shape:
            raise ValueError(f"a codebook is {tuple(packed['original'].shape)}, not {tuple(original.shape)}")
        indices = _unpack_bits(packed["0.indices"], self.bits, self.indices.numel())
        return {"original": packed["original"], "0.indices": indices.view(self.indices.shape)}


class Place(NamedTuple):
    """A parametrised weight: where its tensors stand in the state dict, and what keeps it."""

    prefix: str
    keeper: Masked | Shared
    original: Tensor


def kept_by(layer: nn.Module) -> Masked | Shared | None:
    """What of ours keeps the layer's weight sparse or shared, if that is all that is parametrised about it."""
    chain = _chain(layer)
    first = chain[0] if chain is not None and len(chain) == 1 else None
    return first if isinstance(first, Masked | Shared) else None


def stored_places(model: nn.Module) -> Iterator[Place]:
    """The weights of a model that a file holds in short."""
    for path, module in model.named_modules():
        keeper = kept_by(module)
        if keeper is not None:
            prefix = f"{path}.parametrizations.weight." if path else "parametrizations.weight."
            yield Place(prefix, keeper, _chain(module).original)


def pack(model: nn.Module) -> dict[str, Tensor]:
    """The model's state as a file holds it: tied tensors once, sparse and shared weights in short."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            state[name] = value.detach().contiguous()
            seen.add(id(value))
    for place in stored_places(model):
        for name, value in place.keeper.pack(place.original.detach()).items():
            state[place.prefix + name] = value.contiguous()
    return state


def unpack(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill a model of the same structure with what `pack` gave.

    Raises:
        ValueError: the state belongs to another model.
    """
    full = dict(state)
    for place in stored_places(model):
        lacks = [name for name in place.keeper.names if place.prefix + name not in full]
        if lacks:
            raise ValueError(f"it lacks {place.prefix}{lacks[0]}")
        packed = {name: full[place.prefix + name] for name in place.keeper.names}
        unpacked = place.keeper.unpack(packed, place.original)
        full |= {place.prefix + name: value for name, value in unpacked.items()}
    own = model.state_dict(keep_vars=True)
    given = {id(own[name]) for name in full if name in own}
    wrong = [f"it lacks {name}" for name, value in own.items() if id(value) not in given]
    wrong += [f"it has {name}, which the model has not" for name in full if name not in own]
    wrong += [
        f"{name} is {tuple(value.shape)}, not {tuple(own[name].shape)}"
        for name, value in full.items()
        if name in own and value.shape != own[name].shape
    ]
    if wrong:
        raise ValueError(wrong[0])
    with torch.no_grad():
        for name, value in full.items():
            own[name].copy_(value)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the tensors that a saved model's file holds; its header comes on top."""
    return sum(value.numel() * value.element_size() for value in pack(model).values())


@setting
class Bake:
    """Write sparse and shared weights out as plain ones. Lossless.

    Nothing keeps them any more, nor is their file small.
    """

    kind: Literal["bake"] = "bake"
    needs: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[frozenset[str]] = frozenset({"mask", "cluster"})

    def changes(self, model: nn.Module, _evidence: Evidence) -> tuple[list[Change], list[Left]]:
        """One edit a parametrised weight."""
        paths = [path for path, module in model.named_modules() if kept_by(module) is not None]
        return [Change(edit="bake", at=path, detail={}) for path in paths], []


def bake(model: nn.Module) -> nn.Module:
    """A copy of a model with plain weights in the place of sparse and shared ones; its answers are the same bits."""
    baked = copy.deepcopy(model)
    for module in list(baked.modules()):
        settle(module)
    return baked


def settle(layer: nn.Module) -> None:
    """Make the layer's weight a plain parameter again, in place, if something of ours keeps it."""
    chain = _chain(layer)
    if kept_by(layer) is None or chain is None:
        return
    weight = nn.Parameter(chain().detach().clone(), requires_grad=chain.original.requires_grad)
    # Not torch's `remove_parametrizations`, which strips the class, and the class is shared by all copies of a layer.
    del layer._modules["parametrizations"]
    layer.__class__ = layer.__class__.__bases__[0]
    layer._parameters = {"weight": weight, **layer._parameters}


def _chain(layer: nn.Module) -> Any:
    """What computes the layer's weight, and nothing else of it."""
    chains = layer.parametrizations if is_parametrized(layer) else None
    assert chains is None or isinstance(chains, nn.ModuleDict)
    return chains["weight"] if chains is not None and list(chains) == ["weight"] else None


@edit("bake")
def _bake(model: nn.Module, at: str) -> None:
    settle(find(model, at))


def _pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Small whole numbers [N] as a stream of `bits` bits each, the lowest first, filled up to whole bytes."""
    numbers = codes.cpu().numpy().astype(np.uint8)
    spread = np.unpackbits(numbers[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(spread.ravel(), bitorder="little"))


def _unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    if packed.dtype != torch.uint8 or packed.numel() != -(-count * bits // 8):
        raise ValueError(f"{packed.numel()} bytes do not hold {count} numbers of {bits} bits")
    spread = np.unpackbits(packed.cpu().numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy(np.packbits(spread, axis=1, bitorder="little")[:, 0])
