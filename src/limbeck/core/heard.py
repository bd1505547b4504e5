"""Norms and means that run over the units that are heard, as if those that are silent were not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.core.kernels import plain_kernels

__all__ = ["norms_of_the_heard"]


@contextmanager
def norms_of_the_heard() -> Iterator[None]:
    """Inside, indices along the last dimension at which a tensor is zero throughout do not count in norms and means."""
    with plain_kernels(), _Heard():  # type: ignore[no-untyped-call]  # its base is torch's own
        yield


class _Heard(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own base
    """Layer and RMS norms over the last dimension, and means over it (of which other norms are made)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` on what is heard."""
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        if name in ("native_layer_norm", "_fused_rms_norm") and len(args[1]) == 1:
            heard = _heard(args[0])
            if heard is not None:
                return _normed(func, heard, args)
        if name == "mean" and len(args) > 1 and args[1] and [d % args[0].dim() for d in args[1]] == [args[0].dim() - 1]:
            heard = _heard(args[0])
            if heard is not None:
                return func(args[0][..., heard], *args[1:], **kwargs)
        return func(*args, **kwargs)


def _heard(x: Tensor) -> Tensor | None:
    """The indices along the last dimension that are not zero throughout; None if all are heard, or none."""
    silent = (x == 0).flatten(0, -2).all(0) if x.dim() > 1 else x == 0
    return None if not bool(silent.any()) or bool(silent.all()) else (~silent).nonzero().view(-1)


def _normed(func: Any, heard: Tensor, args: Any) -> Any:
    x, (width,), *rest = args
    affine = [t[heard] if isinstance(t, Tensor) and t.shape == (width,) else t for t in rest]
    found = func(x[..., heard], [len(heard)], *affine)
    whole = torch.zeros_like(x)
    whole[..., heard] = found[0]
    return (whole, *found[1:])
