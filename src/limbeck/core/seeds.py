"""Seeds: one number in, every random stream out."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Words", "derive", "mix_words", "seed_everything"]

Words = npt.NDArray[np.uint64]


def seed_everything(seed: int) -> None:
    """Seed torch (every device), numpy and Python, so that a run is a function of its settings."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - users' datasets still draw from the global generator
    random.seed(seed)


def derive(seed: int, *names: str | int) -> int:
    """A seed of its own for each named purpose: independent streams, stable over Python versions.

    >>> derive(0, "shuffle", 3) == derive(0, "shuffle", 3) != derive(0, "shuffle", 4)
    True
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def mix_words(word: Words) -> Words:
    """The finishing mix of splitmix64, a bijection of 64-bit words, element by element.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 15.
    """
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)
