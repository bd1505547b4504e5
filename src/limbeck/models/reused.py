"""A student that answers with its teacher's classifier (SimKD): only its features are trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from limbeck.core.errors import ModelError, ShapeError, nearest, problem
from limbeck.core.taps import Inputs, Reader
from limbeck.core.types import Named

__all__ = ["ReusedHead", "reuse_head"]


def reuse_head(
    student: nn.Module,
    teacher: nn.Module,
    *,
    student_layer: str,
    teacher_layer: str,
    classifier: str | Sequence[str],
    example: Tensor | Named,
    inputs: Inputs = None,
) -> ReusedHead:
    """Put the teacher's classifier on the student: a layer of the student, projected to one of the teacher's, then it.

    Train it with `Hint(student="features", teacher=teacher_layer, head="none")` alone; no label is needed. Afterwards
    it is a plain module, classifier and all.

    Args:
        student: the student itself, not a copy; what lies above `student_layer` goes unused.
        teacher: the teacher; it is not changed, and its classifier is copied.
        student_layer: a module path, or "path@in" for that module's input.
        teacher_layer: the layer that the classifier starts from, a map [B, C, H, W] or a vector [B, C] as on the
            student's side.
        classifier: the module path of what follows in the teacher, or several, applied in turn. A map that meets a
            linear layer is flattened where that takes all its numbers, and averaged over positions elsewhere.
        example: a batch, or the input of both models.
        inputs: which columns go in, as for `Reader`; the same for both models.

    Raises:
        ModelError: a model cannot be called, a layer is not there, or the layer and the classifier do not give the
            teacher's answer.
        ShapeError: the layers are neither both maps nor both vectors.

    Source: Chen et al. 2022, "Knowledge distillation with the reused teacher classifier", section 3.
    """
    batch = _batch(example)
    paths = [classifier] if isinstance(classifier, str) else list(classifier)
    taught = Reader(teacher, taps=(teacher_layer,), inputs=inputs, name="teacher")
    try:
        signal = taught.probe(batch, (teacher_layer,))
    finally:
        taught.close()
    frozen = _Frozen([_part(teacher, path) for path in paths])
    target = signal[teacher_layer]
    _check_answer(frozen, target, signal["logits"], f"{teacher_layer!r} through {' and '.join(map(repr, paths))}")
    reader = Reader(student, taps=(student_layer,), inputs=inputs, name="student")
    source = reader.probe(batch, (student_layer,))[student_layer]
    projector = _projector(source, target).to(source.device, source.dtype)
    return ReusedHead(reader, student_layer, projector, frozen)


class ReusedHead(nn.Module):
    """What `reuse_head` makes: a batch, or inputs in order, to `features` (projected) and `logits`."""

    def __init__(self, reader: Reader, layer: str, projector: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.reader, self.layer = reader, layer
        self.projector, self.classifier = projector, classifier

    def forward(self, x: Tensor | Named, *more: Tensor) -> dict[str, Tensor]:
        """The student's features in the teacher's shape, and the answer of the teacher's classifier to them."""
        features: Tensor = self.projector(self.reader(_batch(x, *more))[self.layer])
        return {"logits": self.classifier(features), "features": features}


class _Frozen(nn.Sequential):
    """A copy of the teacher's layers that stays in evaluation mode and is never trained."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(*(copy.deepcopy(layer) for layer in layers))
        for module in self.modules():
            if hasattr(module, "inplace"):
                setattr(module, "inplace", False)  # noqa: B010 - features are read after the classifier has run
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> _Frozen:  # noqa: ARG002 - torch's signature
        """Evaluation mode, whatever is asked."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The layers in turn."""
        for layer in self:
            if isinstance(layer, nn.Linear) and x.dim() == 4:
                x = x.flatten(1) if layer.in_features == x[0].numel() else x.mean((2, 3))
            x = layer(x)
        return x


def _batch(x: Tensor | Named, *more: Tensor) -> Named:
    if isinstance(x, Mapping):
        return x
    return {f"x{i}": value for i, value in enumerate((x, *more))} if more else {"x": x}


def _part(teacher: nn.Module, path: str) -> nn.Module:
    known = dict(teacher.named_modules())
    if path not in known:
        wrong = f"the teacher has no layer called {path!r}"
        raise ModelError(problem("reuse_head.classifier", wrong, nearest(path, filter(None, known))))
    part: nn.Module = known[path]
    return part


@torch.no_grad()
def _check_answer(frozen: nn.Module, features: Tensor, logits: Tensor, called: str) -> None:
    """The teacher's own features must lead to its own answer, or something between them was left out."""
    where, mend = "reuse_head", "name the layer that the classifier takes (such as 'fc@in'), and all that follows it"
    try:
        answer = frozen(features)
    except Exception as error:
        raise ModelError(problem(where, f"{called} cannot be run: {type(error).__name__}: {error}", mend)) from error
    if answer.shape != logits.shape or (answer - logits).abs().max() > 0.01 * logits.abs().max():
        raise ModelError(problem(where, f"{called} is not the teacher's answer", mend))


def _projector(source: Tensor, target: Tensor) -> nn.Sequential:
    """From the student's layer to the teacher's shape; the last ReLU only where the teacher's layer is never negative.

    On maps the bottleneck of the paper (half the teacher's channels) at the teacher's size, on vectors two linear maps.
    """
    if not source.dim() == target.dim() in (2, 4):
        wrong = f"the student's layer is {tuple(source.shape)}, the teacher's {tuple(target.shape)}"
        raise ShapeError(problem("reuse_head", wrong, "tap maps [B, C, H, W] or vectors [B, C] on both sides"))
    inputs, outputs = source.shape[1], target.shape[1]
    last = [nn.ReLU()] if bool((target >= 0).all()) else []
    if source.dim() == 2:
        first = [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        return nn.Sequential(*first, nn.Linear(outputs, outputs, bias=False), nn.BatchNorm1d(outputs), *last)
    middle = max(outputs // 2, 1)
    size = target.shape[2:]
    return nn.Sequential(
        nn.Identity() if source.shape[2:] == size else nn.AdaptiveAvgPool2d((size[0], size[1])),
        nn.Conv2d(inputs, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        *last,
    )
