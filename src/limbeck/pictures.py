"""Samples as pictures for the page: what the models look at, and where they disagree most."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import ExtraError
from limbeck.core.extras import need
from limbeck.core.still import undisturbed
from limbeck.data import Source
from limbeck.evaluation.attribution import gallery
from limbeck.examining import Subject, read_by, some
from limbeck.job import evaluation
from limbeck.metrics.agreement import disagreements, teacher_kl_per_sample

__all__ = ["looked_at", "worst_disagreements"]

_SHOWN = 6
_WORST = 12
_LARGEST = 96
"""Pixels a side: a page holds many."""


def looked_at(models: Mapping[str, Subject], test: Source) -> list[dict[str, Any]]:
    """A few test images, and which pixels move each model's answer; empty for anything but images."""
    chosen = some(test, _SHOWN)
    batch = next(iter(evaluation(chosen).epoch(0)))
    if not _images(batch):
        return []
    shown = picture_of(batch["x"][0], test)
    if shown is None:
        return []
    maps = gallery(models, batch)
    names = test.class_names
    return [
        {
            "id": int(batch["id"][i]),
            "label": _name(int(batch["y"][i]), names) if "y" in batch else "",
            "image": picture_of(batch["x"][i], test),
            "maps": [{"arm": name, "image": _grey(1 - values[i])} for name, values in maps.items()],
        }
        for i in range(len(batch["id"]))
    ]


def worst_disagreements(
    arm: str, student: Subject, teacher: Subject, test: Source, *, most: int = _WORST
) -> list[dict[str, Any]]:
    """The test samples on which the two differ most, with their answers."""
    told: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    labels, ids = [], []
    with read_by(student) as ours, read_by(teacher) as theirs, undisturbed(student.model, teacher.model):
        for batch in evaluation(test).epoch(0):
            told["student"].append(ours(batch)["logits"].float().cpu())
            told["teacher"].append(theirs(batch)["logits"].float().cpu())
            ids.append(batch["id"])
            labels.append(batch["y"] if "y" in batch else torch.full((len(batch["id"]),), -1))
    student_NC, teacher_NC = (torch.cat(parts) for parts in told.values())
    if student_NC.shape != teacher_NC.shape or student_NC.dim() != 2:
        return []
    order = torch.as_tensor(disagreements(student_NC, teacher_NC))[:most]
    if not len(order):
        return []
    apart = teacher_kl_per_sample(student_NC, teacher_NC)
    y, keys = torch.cat(labels), torch.cat(ids)
    batch = next(iter(evaluation(test.subset(order)).epoch(0)))
    pictures = [picture_of(x, test) for x in batch["x"]] if _images(batch) else [None] * len(order)
    return [
        {
            "arm": arm,
            "id": int(keys[i]),
            "label": _name(int(y[i]), test.class_names),
            "image": picture,
            "teacher": _answer(teacher_NC[i], test.class_names),
            "student": _answer(student_NC[i], test.class_names),
            "kl": float(apart[i]),
        }
        for i, picture in zip(order.tolist(), pictures, strict=True)
    ]


def _answer(logits_C: Tensor, names: Sequence[str] | None) -> dict[str, Any]:
    probabilities = logits_C.double().softmax(dim=0)
    top = int(probabilities.argmax())
    return {"class": _name(top, names), "confidence": float(probabilities[top])}


def _name(index: int, names: Sequence[str] | None) -> str:
    if index < 0:
        return ""
    return names[index] if names is not None and index < len(names) else f"class {index}"


def _images(batch: Mapping[str, Tensor]) -> bool:
    return "x" in batch and batch["x"].dim() == 4 and batch["x"].shape[1] in (1, 3)


def picture_of(x_CHW: Tensor, source: Source) -> str | None:
    """The sample as a PNG in a data URI; None where Pillow is not installed."""
    x = x_CHW.double()
    if source.normalize is not None:
        scale, shift = (t.double().view(-1, 1, 1) for t in source.normalize.affine())
        x = (x - shift) / scale
    return _png((255 * x.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy())


def _grey(values_HW: Any) -> str | None:
    return _png((255 * np.clip(np.asarray(values_HW, dtype=np.float64), 0, 1)).round().astype(np.uint8)[..., None])


def _png(pixels_HWC: Any) -> str | None:
    try:
        image = need("PIL.Image", extra="images", why="pictures on the page")
    except ExtraError:
        return None
    drawn = image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)
    drawn.thumbnail((_LARGEST, _LARGEST))
    held = io.BytesIO()
    drawn.save(held, format="PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
