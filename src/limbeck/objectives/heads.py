"""Heads: what is trained beside the student for a term; sized by one dry run, saved and clipped, dropped at export.

A head is a module from (student signal, teacher signal, batch) to named tensors, which join the student's signal. So a
projection, a learned temperature and a memory of earlier batches are one mechanism: their numbers are parameters and
buffers of the trained module, and terms stay frozen settings.

Shapes: [B, C] vectors, [B, N, C] tokens, [B, C, H, W] maps; B = batch, N = tokens, C = channels or width.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import ShapeError, problem
from limbeck.core.setting import setting
from limbeck.core.types import Named

__all__ = ["HEAD_FORMS", "AttentionPool", "Head", "Projected", "Projecting", "Projection", "make_head", "resize_map"]

HEAD_FORMS = ("auto", "linear", "mlp", "attention", "none")
Shape = tuple[int, ...]


class Head(Protocol):
    """What a term asks for: a name, and how the module is made from one example of both signals."""

    @property
    def name(self) -> str:
        """The name under which it is known; two equal requests share one module."""
        ...

    def __call__(self, student: Named, teacher: Named) -> nn.Module:
        """The module, whose forward takes (student signal, teacher signal, batch) and gives named tensors."""
        ...


@setting
class Projecting:
    """Asks for the student's layer `source` in the shape of the teacher's `target`, under `name`."""

    name: str
    source: str
    target: str
    form: str = "auto"

    def __call__(self, student: Named, teacher: Named) -> nn.Module:
        """The module.

        Raises:
            ShapeError: no projection leads from one shape to the other.
        """
        shapes = tuple(student[self.source].shape), tuple(teacher[self.target].shape)
        return Projected(self.name, self.source, make_head(self.form, *shapes, self.name))


class Projected(nn.Module):
    """A module on one layer of the student's signal, its result under a name of its own."""

    def __init__(self, name: str, source: str, layers: nn.Module) -> None:
        super().__init__()
        self.name, self.source, self.layers = name, source, layers

    def forward(self, student: Named, teacher: Named, batch: Named) -> dict[str, Tensor]:  # noqa: ARG002
        """The projected layer."""
        return {self.name: self.layers(student[self.source])}


def make_head(form: str, student: Shape, teacher: Shape, where: str) -> nn.Module:
    """A module from the student's shape to the teacher's (shapes include the batch axis).

    "auto" is the identity where the shapes agree, "attention" between tokens and maps, and "linear" elsewhere; "linear"
    is one linear map of the channels (a 1x1 convolution on maps), "mlp" two with a ReLU between, "attention" learned
    queries that pool tokens or positions into the teacher's; "none" never projects. "channels" is for terms that can do
    with other positions: linear where the channels differ, and nothing else.

    Raises:
        ShapeError: no projection leads from one shape to the other.
    """
    if form == "none" or (form == "auto" and student[1:] == teacher[1:]):
        if student[1:] != teacher[1:]:
            raise _no_road(where, student, teacher, 'let `head="auto"` size a projection')
        return nn.Identity()
    kinds = len(student), len(teacher)
    if form == "channels" and kinds in ((3, 3), (4, 4)):
        widths = width_of(student), width_of(teacher)
        linear = nn.Conv2d(*widths, 1) if kinds == (4, 4) else nn.Linear(*widths)
        return nn.Identity() if widths[0] == widths[1] else linear
    if form == "channels" or not all(2 <= kind <= 4 for kind in kinds) or (kinds[0] == 2 and kinds[1] > 2):
        raise _no_road(where, student, teacher, "tap layers of one kind on both sides (two maps, two token layers, …)")
    if form == "attention" and kinds[0] > 2:
        return AttentionPool(student, teacher)
    if kinds[0] == kinds[1]:
        return Projection(student, teacher, depth=2 if form == "mlp" else 1)
    if kinds == (4, 2):
        pooled = Projection(student[:2], teacher, depth=2 if form == "mlp" else 1)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), pooled)
    return AttentionPool(student, teacher)


def _no_road(where: str, student: Shape, teacher: Shape, mend: str) -> ShapeError:
    wrong = f"no projection leads from the student's {student[1:]} to the teacher's {teacher[1:]} (without the batch)"
    return ShapeError(problem(where, wrong, mend))


def width_of(shape: Shape) -> int:
    """Channels of a map, width of tokens or vectors."""
    return shape[1] if len(shape) == 4 else shape[-1]


class Projection(nn.Module):
    """A linear map of channels, after resizing positions or tokens to the teacher's number."""

    def __init__(self, student: Shape, teacher: Shape, *, depth: int) -> None:
        super().__init__()
        is_map = len(student) == 4
        self.positions = teacher[2:] if is_map else teacher[1:-1]
        source, target = width_of(student), width_of(teacher)
        widths = [source] + [target] * depth
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [nn.ReLU()] if i else []
            layers.append(nn.Conv2d(a, b, 1) if is_map else nn.Linear(a, b))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The student's layer in the teacher's shape."""
        if x.dim() == 4 and x.shape[2:] != self.positions:
            x = resize_map(x, self.positions)
        if x.dim() == 3 and x.shape[1:2] != self.positions:
            x = _resize_tokens(x.transpose(1, 2), self.positions).transpose(1, 2)
        out: Tensor = self.layers(x)
        return out


class AttentionPool(nn.Module):
    """Learned queries, one for each of the teacher's positions, that gather the student's tokens or positions.

    Keys see the place of what they stand for; places are stretched where the number of tokens differs from the dry run.
    """

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        source, target = width_of(student), width_of(teacher)
        self.places = teacher[2:] if len(teacher) == 4 else teacher[1:-1]
        number = prod(student[2:]) if len(student) == 4 else student[1]
        self.query = nn.Parameter(torch.randn(prod(self.places), source) * source**-0.5)
        self.place = nn.Parameter(torch.randn(number, source) * source**-0.5)
        self.value = nn.Linear(source, target)

    def forward(self, x: Tensor) -> Tensor:
        """The student's layer in the teacher's shape."""
        tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
        place: Tensor = self.place
        if tokens.shape[1] != len(place):
            place = F.interpolate(place.t().unsqueeze(0), size=tokens.shape[1], mode="linear").squeeze(0).t()
        share = ((tokens + place) @ self.query.t() * tokens.shape[-1] ** -0.5).softmax(1)  # [B, N, Q]
        out: Tensor = self.value(share.transpose(1, 2) @ tokens)
        if len(self.places) == 2:
            return out.transpose(1, 2).reshape(len(out), -1, *self.places)
        return out if self.places else out.squeeze(1)


def resize_map(x: Tensor, positions: Shape) -> Tensor:
    """Average where the target is smaller on both sides, interpolate elsewhere."""
    if all(now >= then for now, then in zip(x.shape[2:], positions, strict=True)):
        return F.adaptive_avg_pool2d(x, (positions[0], positions[1]))
    return F.interpolate(x, size=positions, mode="bilinear", align_corners=False)


def _resize_tokens(x: Tensor, positions: Shape) -> Tensor:
    if x.shape[2] >= positions[0]:
        return F.adaptive_avg_pool1d(x, positions[0])
    return F.interpolate(x, size=positions, mode="linear", align_corners=False)
