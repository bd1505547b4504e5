"""What the processor can do with small numbers, as far as it changes what is computed."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

__all__ = ["sums_saturate"]

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
