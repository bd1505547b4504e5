"""Only kernels that can be looked into: fused attention, recurrence and encoder layers hide what they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["plain_kernels"]


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Inside, attention, recurrent and encoder layers run as matrix products; every global switch is restored after."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415 - rarely needed

    # `backends.mkldnn.flags()` also sets TF32, which warns on machines without it; so the switches are set one by one.
    fast, mkldnn, cudnn = (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
    )
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # a property, typed as its descriptor
        torch.backends.cudnn.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = mkldnn
        torch.backends.cudnn.enabled = cudnn
