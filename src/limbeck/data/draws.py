"""Random numbers from a counter: a pure function of (seed, view, sample id, stream), whatever the batch.

Shapes: B = samples of a batch, S = streams of random numbers.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.core.seeds import Words, mix_words

__all__ = ["Draws", "Flags", "Floats", "Ints", "Words", "uniform"]

GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64 - 1

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Draws:
    """The random numbers of some samples in one view, float64 in [0, 1): splitmix64 over (seed, view, id, stream).

    Streams that have a name don't depend on which others are used, or in what order. For one name, different ids have
    different words: every step is a bijection.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """

    __slots__ = ("_word_B",)

    def __init__(self, ids_B: Tensor, *, seed: int, view: int) -> None:
        key = _mix_word(_mix_word(seed + GOLDEN) ^ (view + 1) * GOLDEN)
        # numpy, because its 64-bit words are unsigned (the shifts below must bring in zeros) and its calls are cheap.
        self._word_B = mix_words(ids_B.cpu().numpy().astype(np.uint64) * np.uint64(GOLDEN) ^ np.uint64(key))

    def counted(self, streams: int) -> Floats:
        """The first `streams` streams that have a number for a name, [S, B]."""
        step_S = np.arange(1, streams + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        return _unit(mix_words(self._word_B + step_S[:, None]))

    def named(self, name: str) -> Floats:
        """The stream of this name, [B]."""
        return _unit(self.words(name))

    def words(self, name: str) -> Words:
        """The stream of this name as 64 random bits a sample, [B]."""
        return mix_words(self._word_B + _step(name))


def uniform(ids_B: Tensor, *, seed: int, view: int, streams: int) -> Tensor:
    """Independent uniform numbers in [0, 1), float64 [S, B]: the numbered streams of `Draws`."""
    return torch.from_numpy(Draws(ids_B, seed=seed, view=view).counted(streams))


@lru_cache(maxsize=256)
def _step(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def _unit(word: Words) -> Floats:
    unit: Floats = (word >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return unit


def _mix_word(word: int) -> int:
    word &= WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31
