"""Any other transform, sample by sample, each under random numbers of its own: slower, and replayable all the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, DataError, problem
from limbeck.data.columns import is_image
from limbeck.data.digest import digest_of
from limbeck.data.draws import Draws

__all__ = ["Transform"]

GENERATORS = ("torch", "numpy", "python")


class Transform:
    """A function of one sample, or a torchvision v2 transform, in place of `Augment`.

    It is called with one sample of the column `on`: an image as a uint8 tensor [C, H, W], anything else as its row. It
    returns a tensor or an array, of one shape for all samples; images as uint8 or as float from 0 to 1. Normalisation
    comes after it. The global CPU generators of torch, numpy and Python are seeded from (seed, id, view) for each
    call, and put back: the result is the same whatever the batch, order or workers, and nobody else's numbers change.
    A generator that the function holds itself is beyond reach; such a function is refused.

    Args:
        function: what to call.
        on: the column that it changes.
        name: what to call it in messages and manifests; its own name when None.

    Raises:
        ConfigError: it cannot be called.
    """

    def __init__(self, function: Callable[[Any], Any], *, on: str = "x", name: str | None = None) -> None:
        if not callable(function):
            wrong = f"a {type(function).__name__} cannot be called"
            raise ConfigError(problem("transform", wrong, "give a function of one sample"))
        self.function, self.on = function, on
        self.name = name or getattr(function, "__name__", None) or type(function).__name__

    def __repr__(self) -> str:
        return f"Transform({self.name}, on={self.on!r}, {self.fingerprint()[:12]})"

    def fingerprint(self) -> str:
        """A digest that changes with the function: its source, defaults and closure, or its class and settings.

        What it reaches through globals, and what compiled code does, is not seen.
        """
        return digest_of("transform", self.on, self.function)

    @torch.no_grad()
    def apply(self, column: Tensor, ids_B: Tensor, *, seed: int, view: int) -> Tensor:
        """The column after the transform: uint8 or float32 [B, C, H, W] from images, else [B, ...] as returned.

        Raises:
            DataError: the function fails, or returns what cannot be a batch.
        """
        samples = column.permute(0, 3, 1, 2) if is_image(column) else column
        draws = Draws(ids_B, seed=seed, view=view)
        seed_GB = [draws.words(f"transform {name}") for name in GENERATORS]
        done: list[Tensor] = []
        with _generators_put_back():
            for i, (sample, sample_id) in enumerate(zip(samples, ids_B.tolist(), strict=True)):
                _seed(*(int(seed_B[i]) for seed_B in seed_GB))
                # A copy, because transforms may work in place, and the data must not change.
                done.append(self._call(sample.clone(memory_format=torch.contiguous_format), sample_id))
                if done[i].shape != done[0].shape or done[i].dtype != done[0].dtype:
                    first, this = (f"{str(one.dtype)[6:]} {tuple(one.shape)}" for one in (done[0], done[i]))
                    wrong = f"sample {ids_B[0]} ends as {first}, sample {sample_id} as {this}"
                    raise DataError(problem(self._where, wrong, "return one shape and one type for all samples"))
        return torch.stack(done)

    def check(self, column: Tensor, ids_B: Tensor, *, seed: int) -> None:
        """Refuse, at the cost of two calls, a function that cannot be used or replayed.

        Raises:
            DataError: it fails, returns no image for an image, or two calls with one seed differ.
        """
        one, two = (self.apply(column, ids_B, seed=seed, view=0) for _ in range(2))
        if one.shape != two.shape or not torch.equal(one, two):
            wrong = "two calls with one seed differ, so it draws from a generator of its own or remembers calls"
            mend = "draw from torch, numpy.random or random, whose global generators are seeded for each sample"
            raise DataError(problem(self._where, wrong, mend))
        if is_image(column) and (one.dim() != 4 or one.dtype not in (torch.uint8, torch.float32)):
            wrong = f"it turns an image into {str(one.dtype)[6:]} {tuple(one.shape[1:])}"
            raise DataError(problem(self._where, wrong, "return uint8 or float, channels first: C,H,W"))

    @property
    def _where(self) -> str:
        return f"transform {self.name!r}"

    def _call(self, sample: Tensor, sample_id: int) -> Tensor:
        try:
            result = self.function(sample)
        except Exception as error:
            wrong = f"it failed on sample {sample_id}: {type(error).__name__}: {error}"
            mend = f"make it take one tensor, here {str(sample.dtype)[6:]} {tuple(sample.shape)}"
            raise DataError(problem(self._where, wrong, mend)) from error
        if isinstance(result, np.ndarray):
            result = torch.from_numpy(np.ascontiguousarray(result))
        if not isinstance(result, Tensor):
            wrong = f"it returns a {type(result).__name__}"
            raise DataError(problem(self._where, wrong, "return a tensor or an array"))
        plain = result.detach().as_subclass(Tensor)  # torchvision's images are a subclass
        return plain.float() if plain.is_floating_point() else plain


@contextmanager
def _generators_put_back() -> Iterator[None]:
    held = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - transforms draw from it
    try:
        yield
    finally:
        torch.set_rng_state(held[0])
        np.random.set_state(held[1])  # noqa: NPY002
        random.setstate(held[2])


def _seed(for_torch: int, for_numpy: int, for_python: int) -> None:
    """Three numbers, because torch and numpy would draw the same from one: both run the Mersenne twister."""
    torch.default_generator.manual_seed(for_torch)  # torch.manual_seed would seed the caller's GPUs too
    np.random.seed(for_numpy % 2**32)  # noqa: NPY002
    random.seed(for_python)
