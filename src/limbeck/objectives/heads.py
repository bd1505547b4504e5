"""Projections on the student's side: an inner layer brought to the teacher's shape, sized from two shapes.

Shapes: [B, C] vectors, [B, N, C] tokens, [B, C, H, W] maps. Heads are trained, saved and clipped with the student,
and fall away when it is exported.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import ShapeError, problem

__all__ = ["HEAD_FORMS", "Projection", "make_head"]

HEAD_FORMS = ("auto", "linear", "mlp", "none")
Shape = tuple[int, ...]


def make_head(form: str, student: Shape, teacher: Shape, where: str) -> nn.Module:
    """A module from the student's shape to the teacher's (shapes include the batch axis).

    "auto" is the identity where the shapes agree and "linear" where they don't; "linear" is one linear map of the
    channels (a 1x1 convolution on maps), "mlp" two with a ReLU between; "none" never projects.

    Raises:
        ShapeError: no projection leads from one shape to the other.
    """
    if form == "none" or (form == "auto" and student[1:] == teacher[1:]):
        if student[1:] != teacher[1:]:
            raise _no_road(where, student, teacher, 'let `head="auto"` size a projection')
        return nn.Identity()
    if len(student) == len(teacher) and len(student) in (2, 3, 4):
        return Projection(student, teacher, depth=2 if form == "mlp" else 1)
    if len(student) == 4 and len(teacher) == 2:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Projection(student[:2], teacher, depth=1))
    raise _no_road(where, student, teacher, "tap layers of one kind on both sides (two maps, two token layers, …)")


def _no_road(where: str, student: Shape, teacher: Shape, mend: str) -> ShapeError:
    wrong = f"no projection leads from the student's {student[1:]} to the teacher's {teacher[1:]} (without the batch)"
    return ShapeError(problem(where, wrong, mend))


class Projection(nn.Module):
    """A linear map of channels, after resizing positions or tokens to the teacher's number."""

    def __init__(self, student: Shape, teacher: Shape, *, depth: int) -> None:
        super().__init__()
        is_map = len(student) == 4
        self.positions = teacher[2:] if is_map else teacher[1:-1]
        source, target = (student[1], teacher[1]) if is_map else (student[-1], teacher[-1])
        widths = [source] + [target] * depth
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [nn.ReLU()] if i else []
            layers.append(nn.Conv2d(a, b, 1) if is_map else nn.Linear(a, b))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The student's layer in the teacher's shape."""
        if x.dim() == 4 and x.shape[2:] != self.positions:
            x = _resize(x, self.positions, "bilinear")
        if x.dim() == 3 and x.shape[1:2] != self.positions:
            x = _resize(x.transpose(1, 2), self.positions, "linear").transpose(1, 2)
        out: Tensor = self.layers(x)
        return out


def _resize(x: Tensor, positions: Shape, mode: str) -> Tensor:
    """Average where the target is smaller, interpolate where it is larger."""
    if all(now >= then for now, then in zip(x.shape[2:], positions, strict=True)):
        return (
            F.adaptive_avg_pool2d(x, (positions[0], positions[1]))
            if x.dim() == 4
            else F.adaptive_avg_pool1d(x, positions[0])
        )
    return F.interpolate(x, size=positions, mode=mode, align_corners=False)
