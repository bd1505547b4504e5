"""Uniform numbers that are a function of what they are for: the same in any batch, order, process or resume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limbeck.core.seeds import derive, mix_words

__all__ = ["draw"]

_STEP = np.uint64(0x9E3779B97F4A7C15)


def draw(seed: int, output: str, view: int, keys_2n: NDArray[np.int64], *, draws: int) -> NDArray[np.float64]:
    """Uniform numbers [n, draws], strictly between 0 and 1, for each (seed, output, view, key, key, draw).

    Each number is a chain of mixes of the splitmix64 generator, one a key.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 15 (its mixing).
    """
    state = np.full(1, derive(seed, "targets", output, view), np.uint64)
    for keys in (*keys_2n[..., None], np.arange(draws, dtype=np.int64)):
        state = mix_words((mix_words(state + _STEP) ^ keys.astype(np.uint64)) + _STEP)
    return ((state >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
