"""Whether a student looks at the same places as its teacher, and what that would be worth by chance.

Shapes: B = samples, C = classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from limbeck.core.check import one_of, whole
from limbeck.core.errors import DataError, ModelError, ShapeError, problem
from limbeck.core.taps import Inputs, Outputs, Reader
from limbeck.core.types import Named
from limbeck.evaluation.explain import METHODS, Method, attributions, convolution
from limbeck.metrics import saliency

__all__ = ["Subject", "attribution_agreement", "attributions", "gallery", "randomised"]


class Subject(Protocol):
    """A model and how it is called; `fit` makes of a batch what this model takes (device, normalisation)."""

    @property
    def model(self) -> nn.Module:
        """The module."""

    @property
    def inputs(self) -> Inputs:
        """Which batch columns it takes."""

    @property
    def outputs(self) -> Outputs:
        """Names for what it returns."""

    def fit(self, batch: Named) -> Named:
        """The batch as this model takes it, in a way that can be differentiated."""


def attribution_agreement(
    student: nn.Module | Subject,
    teacher: nn.Module | Subject,
    batches: Iterable[Named],
    *,
    samples: int = 200,
    methods: Sequence[Method] = METHODS,
    steps: int = 16,
    share: float = 0.1,
) -> dict[str, dict[str, float | int | None]]:
    """How alike student and teacher explain the teacher's top class, by method, as plain data.

    Each has the means of `rank`, `cosine` and `overlap` (see `limbeck.metrics.saliency`) over `samples` samples, and
    how many were `left_out` because a map of theirs is the same everywhere; None where that is all of them. A method
    that one of the models has no layer for is absent. What the numbers are worth is seen beside those of a
    `randomised` student.

    Args:
        student: a module, or a module with what it takes.
        teacher: likewise.
        batches: named tensors; of a batch with `valid`, its valid samples.
        samples: as many from the beginning, at most.
        methods: see `attributions`.
        steps: points of the path of integrated gradients.
        share: how many of the positions are the strongest.

    Raises:
        ConfigError: a setting is impossible.
        DataError: there is no sample.
        ExtraError: captum is not installed.
        ModelError: a model cannot be called, or its answer has no gradient.
        ShapeError: student and teacher have different classes.
    """
    whole("attribution.samples", samples)
    for method in methods:
        one_of("attribution.methods", method, METHODS)
    pair = (_subject(student), _subject(teacher))
    rows: dict[Method, list[Tensor]] = {}
    left = samples
    for batch in batches:
        few = _valid(batch, left)
        count = len(next(iter(few.values()), ()))
        if not count:
            continue
        if left == samples and "grad_cam" in methods and not all(_has_map(one, few) for one in pair):
            methods = [method for method in methods if method != "grad_cam"]
        left -= count
        told = [_logits(one, few) for one in pair]
        if told[0].shape != told[1].shape:
            wrong = f"student logits are {list(told[0].shape)}, teacher logits are {list(told[1].shape)}"
            raise ShapeError(problem("attribution", wrong, "give both the same samples and classes"))
        target_B = told[1].argmax(dim=1)
        for method in methods:
            ours, theirs = (_explained(one, few, method, target_B, steps) for one in pair)
            rows.setdefault(method, []).append(_compared(ours, theirs, share))
        if left <= 0:
            break
    if left == samples:
        raise DataError(problem("attribution", "the data holds no valid sample", "give at least one"))
    return {method: _means(torch.cat(parts)) for method, parts in rows.items()}


def gallery(
    models: Mapping[str, nn.Module | Subject],
    batch: Named,
    *,
    method: Method = "integrated_gradients",
    target: Tensor | int | None = None,
    steps: int = 32,
) -> dict[str, npt.NDArray[np.float32]]:
    """What each model looks at in each image, as grey values [B, H, W] from 0 (nothing) to 1 (the most in its map).

    Absolute values, divided by the largest of the map; a map that is zero throughout stays so. `target` is the class
    that is explained: None takes the first model's answers, for all models.

    Raises:
        ConfigError: a setting is impossible.
        DataError: the batch does not hold images.
        ExtraError: captum is not installed.
        ModelError: a model cannot be called, or its answer has no gradient, or lacks the layer.
    """
    if "x" not in batch or batch["x"].dim() != 4:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items()) or "nothing"
        wrong = f"the batch holds {shapes}, and no images"
        raise DataError(problem("gallery", wrong, "give a column 'x' of shape [samples, channels, height, width]"))
    maps: dict[str, npt.NDArray[np.float32]] = {}
    for name, given in models.items():
        one = _subject(given)
        if target is None:
            target = _logits(one, batch).argmax(dim=1)
        map_BHW = _explained(one, batch, method, target, steps).abs().float()
        most_B = map_BHW.amax(dim=(1, 2), keepdim=True)
        maps[name] = torch.where(most_B > 0, map_BHW / most_B, 0.0).numpy()
    return maps


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """A copy of the model with weights drawn anew, which knows nothing: what agreement is worth is seen beside it.

    Layers draw as they did when they were made (`reset_parameters`), batch statistics included. Parameters that stay
    as they were after that are drawn from a normal distribution with the mean and the standard deviation they have.
    The model itself and the global random state are left alone.

    Source: Adebayo et al. 2018, "Sanity checks for saliency maps", section 4.

    Raises:
        ModelError: the model cannot be copied, or has no weights yet.
    """
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ModelError(problem("randomised", f"{lazy[0]} has no size yet", "call the model once on a batch first"))
    try:
        drawn = copy.deepcopy(model)
    except Exception as error:
        wrong = f"the model cannot be copied ({type(error).__name__}: {error})"
        raise ModelError(problem("randomised", wrong, "let go of tensors with a graph that it keeps")) from error
    tensors = [*drawn.parameters(), *drawn.buffers()]
    homes = [tensor.device for tensor in tensors]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # Drawn on the CPU: one seed is one network, wherever the model is.
        torch.default_generator.manual_seed(seed)
        drawn.cpu()
        for module in drawn.modules():
            _draw(module)
        for tensor, home in zip([*drawn.parameters(), *drawn.buffers()], homes, strict=True):
            tensor.data = tensor.data.to(home)
    return drawn


def _draw(module: nn.Module) -> None:
    own = [p for p in module.parameters(recurse=False) if p.is_floating_point()]
    before = [p.clone() for p in own]
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        with suppress(TypeError):  # one that takes arguments: what is left as it was is drawn below
            reset()
    for parameter, was in zip(own, before, strict=True):
        if parameter.numel() > 1 and torch.equal(parameter, was):
            parameter.normal_(float(was.double().mean()), float(was.double().std()))


class _Plain(NamedTuple):
    """A module that takes batches as they come."""

    model: nn.Module
    inputs: Inputs = None
    outputs: Outputs = None

    def fit(self, batch: Named) -> Named:
        return batch


def _subject(given: nn.Module | Subject) -> Subject:
    return _Plain(given) if isinstance(given, nn.Module) else given


def _valid(batch: Named, most: int) -> dict[str, Tensor]:
    """The first valid samples of a batch."""
    if "valid" not in batch:
        return {name: value[:most] for name, value in batch.items()}
    keep = batch["valid"].bool().nonzero().flatten()[:most]
    return {name: value[keep.to(value.device)] for name, value in batch.items()}


def _logits(one: Subject, batch: Named) -> Tensor:
    """Its logits, on the CPU."""
    reader = Reader(one.model, inputs=one.inputs, outputs=one.outputs)
    try:
        return reader.probe(one.fit(batch))["logits"].float().cpu()
    finally:
        reader.close()


def _has_map(one: Subject, batch: Named) -> bool:
    return convolution(one.model, batch, inputs=one.inputs, outputs=one.outputs, fit=one.fit) is not None


def _explained(one: Subject, batch: Named, method: Method, target: Tensor | int, steps: int) -> Tensor:
    return attributions(
        one.model, batch, method=method, target=target, steps=steps,
        inputs=one.inputs, outputs=one.outputs, fit=one.fit,
    ).cpu()  # fmt: skip


def _compared(ours: Tensor, theirs: Tensor, share: float) -> Tensor:
    """Rank correlation, cosine and overlap of each sample [B, 3]; NaN where they cannot be compared."""
    values_B3 = torch.stack(
        [
            saliency.rank_correlation(ours, theirs),
            saliency.cosine(ours, theirs),
            saliency.top_overlap(ours, theirs, share=share),
        ],
        dim=1,
    )
    return torch.where(saliency.comparable(ours, theirs)[:, None], values_B3, float("nan"))


def _means(values_N3: Tensor) -> dict[str, float | int | None]:
    known_N3 = values_N3[~values_N3.isnan().any(dim=1)]
    means = known_N3.mean(dim=0).tolist() if len(known_N3) else [None] * 3
    rank, cosine, overlap = means
    left_out = len(values_N3) - len(known_N3)
    return {"rank": rank, "cosine": cosine, "overlap": overlap, "samples": len(known_N3), "left_out": left_out}
