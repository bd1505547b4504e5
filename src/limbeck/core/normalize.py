"""Per-channel normalisation of inputs, and the step from one normalisation to another."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting

__all__ = ["Normalize"]


@setting
class Normalize:
    """`(x - mean) / std` per channel, for inputs scaled to 0..1 (uint8 images are divided by 255 first)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse a normalisation that cannot be computed."""
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(
                problem("normalize", f"{len(self.mean)} means, {len(self.std)} stds", "give one of each a channel")
            )
        if min(self.std) <= 0:
            raise ConfigError(problem("normalize", f"std is {self.std}", "give standard deviations above zero"))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift as float32 vectors over channels: `x * scale + shift`."""
        std, mean = torch.tensor(self.std, dtype=torch.float64), torch.tensor(self.mean, dtype=torch.float64)
        return (1 / std).float(), (-mean / std).float()

    def after(self, applied: Normalize | None) -> Normalize:
        """What to apply to inputs that `applied` has already normalised, so that they end as this one says."""
        if applied is None:
            return self
        if len(applied.mean) != len(self.mean):
            raise ConfigError(
                problem(
                    "normalize",
                    f"the data has {len(applied.mean)} channels, the teacher expects {len(self.mean)}",
                    "give the teacher a normalisation with the data's channels",
                )
            )
        pairs = list(zip(self.mean, self.std, applied.mean, applied.std, strict=True))
        return Normalize(
            mean=tuple((m - a) / s for m, _, a, s in pairs),
            std=tuple(to / s for _, to, _, s in pairs),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise floats with channels on axis 1 (or the last axis of a 2-D table)."""
        scale, shift = (t.to(x).view(1, -1, *[1] * (x.dim() - 2)) for t in self.affine())
        return x * scale + shift
