"""The heads of `reconstruct.py`: modules that make the teacher's layer from the student's by more than a projection.

Shapes: B = batch, C = channels or width, H, W = positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import ShapeError, problem
from limbeck.core.setting import setting
from limbeck.core.types import Named
from limbeck.objectives.heads import Projected, Projection, make_head, width_of

__all__ = ["FLOOR", "Fusing", "Fusion", "Generating", "Generator", "Regressing", "Regressor", "scale_of"]

FLOOR = 1e-5
"""The least variance that a `Regressor` may learn."""


def scale_of(name: str) -> str:
    """The name of a regressor's scale beside its guess."""
    return f"{name}:log_scale"


@setting
class Regressing:
    """Asks for a guess at the teacher's `target` from the student's `source`, and a variance for each channel."""

    name: str
    source: str
    target: str

    def __call__(self, student: Named, teacher: Named) -> nn.Module:
        """The module.

        Raises:
            ShapeError: nothing leads from one shape to the other.
        """
        shapes = tuple(student[self.source].shape), tuple(teacher[self.target].shape)
        maps = all(len(shape) == 4 for shape in shapes)
        layers = Projection(*shapes, depth=3) if maps else make_head("linear", *shapes, self.name)
        return Regressor(self.name, self.source, layers, width_of(shapes[1]))


class Regressor(Projected):
    """A guess and, learned with it, the scale of its error in each channel."""

    def __init__(self, name: str, source: str, layers: nn.Module, width: int, variance: float = 5.0) -> None:
        super().__init__(name, source, layers)
        self.log_scale = nn.Parameter(torch.full((width,), math.log(math.expm1(variance - FLOOR))))

    def forward(self, student: Named, teacher: Named, batch: Named) -> dict[str, Tensor]:
        """The guess and the scale, each under its name."""
        return super().forward(student, teacher, batch) | {scale_of(self.name): self.log_scale}


@setting
class Fusing:
    """Asks for the student's `sources`, shallow to deep, fused into the shapes of the teacher's `targets`."""

    names: tuple[str, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the whole."""
        return "+".join(self.names)

    def __call__(self, student: Named, teacher: Named) -> nn.Module:
        """The module.

        Raises:
            ShapeError: a layer is no map.
        """
        for side, signal, layers in (("student", student, self.sources), ("teacher", teacher, self.targets)):
            for name in layers:
                only_maps("review", side, name, signal[name])
        inputs, outputs = ([s[k].shape[1] for k in n] for s, n in ((student, self.sources), (teacher, self.targets)))
        return Fusion(self, inputs, outputs)


class Fusion(nn.Module):
    """From the deepest layer up, each layer's map joined with all that lies deeper."""

    def __init__(self, request: Fusing, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        self.request = request
        middle = min(512, inputs[-1])
        deepest = len(inputs) - 1
        sizes = enumerate(zip(inputs, outputs, strict=True))
        self.blocks = nn.ModuleList(Fuse(a, middle, b, deepest=i == deepest) for i, (a, b) in sizes)

    def forward(self, student: Named, teacher: Named, batch: Named) -> dict[str, Tensor]:  # noqa: ARG002
        """The fused maps in the teacher's shapes."""
        fused, made = None, {}
        request = self.request
        parts = zip(request.names, request.sources, request.targets, self.blocks, strict=True)
        for name, source, target, block in reversed(list(parts)):
            fused, made[name] = block(student[source], fused, teacher[target].shape[2:])
        return made


class Fuse(nn.Module):
    """One layer's map and the deeper fused one, weighed against each other at each position."""

    def __init__(self, inputs: int, middle: int, outputs: int, *, deepest: bool) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.share = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        self.widen = nn.Sequential(nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """What goes on to the next shallower layer, and the map in the teacher's shape."""
        x = self.narrow(x)
        if self.share is not None and deeper is not None:
            deeper = _nearest(deeper, x.shape[2:])
            share = self.share(torch.cat([x, deeper], 1))
            x = x * share[:, :1] + deeper * share[:, 1:]
        x = _nearest(x, size)
        return x, self.widen(x)


def _nearest(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="nearest")


@setting
class Generating:
    """Asks for the teacher's `target` made from the student's `source` with a share `ratio` of it masked."""

    name: str
    source: str
    target: str
    ratio: float
    mask: Literal["positions", "channels"]

    def __call__(self, student: Named, teacher: Named) -> nn.Module:
        """The module.

        Raises:
            ShapeError: a layer is no map.
        """
        source, target = student[self.source], teacher[self.target]
        only_maps("masked_generative", "student", self.source, source)
        only_maps("masked_generative", "teacher", self.target, target)
        align = make_head("auto", tuple(source.shape), tuple(target.shape), self.name)
        return Generator(self, align, target.shape[1])


class Generator(Projected):
    """A 1x1 convolution where shapes differ, a random mask in training, then two 3x3 convolutions."""

    def __init__(self, request: Generating, align: nn.Module, width: int) -> None:
        generate = [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        super().__init__(request.name, request.source, nn.Sequential(align, Masked(request), *generate))


class Masked(nn.Module):
    """Zeros at random whole positions or whole channels in training, by torch's own random numbers."""

    def __init__(self, request: Generating) -> None:
        super().__init__()
        self.ratio, self.mask = request.ratio, request.mask

    def forward(self, x: Tensor) -> Tensor:
        """The map with its gaps; in evaluation as it is."""
        if not self.training:
            return x
        shape = (len(x), 1, *x.shape[2:]) if self.mask == "positions" else (*x.shape[:2], 1, 1)
        return x.masked_fill(torch.rand(shape, device=x.device) < self.ratio, 0.0)


def only_maps(where: str, side: str, name: str, layer: Tensor) -> None:
    """Refuse what is no map."""
    if layer.dim() != 4:
        wrong = f"the {side}'s layer {name!r} is {tuple(layer.shape)}"
        raise ShapeError(problem(where, wrong, "tap layers with maps [B, C, H, W]"))
