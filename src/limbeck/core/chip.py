"""What a device does itself with small numbers, as far as it changes what is computed or how long it takes."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

__all__ = ["multiplies_bfloat16", "sums_saturate"]

_VNNI = ("avx512_vnni", "avx_vnni", "avxvnni", "avx512vnni")


@cache
def sums_saturate() -> bool:
    """Whether sums of two products of 8 bits can overflow here: on x86 without VNNI, which adds them in 16 bits.

    255 * 127 * 2 is more than 32767; with weights of 7 bits, 255 * 64 * 2 is not.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    if getattr(torch.cpu, "_is_vnni_supported", lambda: False)():  # torch has no public name for it
        return False
    return not any(flag in _flags() for flag in _VNNI)


def _flags() -> frozenset[str]:
    """The flags that Linux names; elsewhere none, and torch's answer is all there is."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the chip itself multiplies bfloat16; imitated, it is many times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if platform.machine() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public name for either
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
