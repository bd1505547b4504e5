"""The fastest form of a teacher whose answers are still its own: what forms there are, and what bound they must keep.

The choice follows from the teacher, the chip and the samples, and never from a clock, so that a resumed run and
another process choose the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core import chip
from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting
from limbeck.core.types import Named

__all__ = ["SMALL_MACS", "Compile", "Form", "Measured", "Parity", "Precision", "Prepare", "forms", "measure"]

Precision = Literal["auto", "float32", "bfloat16"]
Prepare = Literal["auto", "none"]
Compile = Literal["none", "default"]

SMALL_MACS = 4_000_000
"""Multiply-accumulates a sample below which a teacher is left exactly as it is."""

_CHUNK = 64


@setting
class Parity:
    """How far a prepared teacher's answers may be from those of the model as it was handed over, on real samples.

    Attributes:
        agreement: the least share of samples (or positions) whose top class is the same.
        difference: the largest difference of any output value, in standard deviations of the original's output.
        layers: the same for tapped layers, of which it is the largest root mean square over the values of a sample:
            the largest of millions of values says little.
    """

    agreement: float = 0.98
    difference: float = 0.15
    layers: float = 0.1

    def __post_init__(self) -> None:
        """Refuse bounds that mean nothing."""
        if not 0 <= self.agreement <= 1 or not (self.difference >= 0 and self.layers >= 0):
            wrong = f"agreement {self.agreement}, difference {self.difference}, layers {self.layers} are no bounds"
            raise ConfigError(problem("parity", wrong, "give an agreement of 0 to 1, and differences from 0 on"))


@dataclass(frozen=True)
class Form:
    """One way of running a teacher. All off, it is the model as it was handed over."""

    precision: Literal["own", "float32", "bfloat16"] = "own"
    folded: int = 0
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        """In words, for messages and logs."""
        if self.precision == "own":
            return "as handed over"
        words = [self.precision, f"{self.folded} norms folded" if self.folded else ""]
        words += ["channels-last" if self.channels_last else "", "compiled" if self.compiled else ""]
        return ", ".join(word for word in words if word)


@dataclass(frozen=True)
class Measured:
    """How far a form's answers are from the original's."""

    samples: int
    agreement: float
    difference: float
    layers: float

    def within(self, bound: Parity) -> bool:
        """Whether all of it is within the bound; what is not a number is not."""
        close = self.difference <= bound.difference and self.layers <= bound.layers
        return close and self.agreement >= bound.agreement

    def plain(self) -> dict[str, Any]:
        """For logs and manifests."""
        figures = {"agreement": self.agreement, "difference": self.difference, "layers": self.layers}
        return {"samples": self.samples, **{name: float(f"{value:.4g}") for name, value in figures.items()}}

    def __str__(self) -> str:
        """In words, for messages and logs."""
        return (
            f"on {self.samples} samples {self.agreement:.4f} of the top classes agree, the largest difference is"
            f" {self.difference:.3g} standard deviations, of a tapped layer {self.layers:.3g}"
        )


def forms(
    precision: Precision,
    compile: Compile,  # noqa: A002 - what torch calls it
    *,
    folded: int,
    images: bool,
    device: torch.device,
) -> list[Form]:
    """The forms to try, fastest first; the model as handed over is tried after all of them, where that is allowed.

    Args:
        precision: what the user asks for.
        compile: what the user asks for.
        folded: how many norms can be folded.
        images: whether there are 2-d convolutions to lay out anew.
        device: where the teacher answers.
    """
    compiled = compile == "default"
    ladder = []
    if precision == "bfloat16" or (precision == "auto" and chip.multiplies_bfloat16(device)):
        ladder.append(Form("bfloat16", folded, images, compiled))
    if precision != "bfloat16":
        # Channels-last pays in float32 on a CPU (measured); elsewhere it is for the half types' kernels.
        single = Form("float32", folded, images and device.type == "cpu", compiled)
        if single != Form("float32"):
            ladder.append(single)
    return ladder


def measure(
    original: Callable[[Named], Named],
    form: Callable[[Named], Named],
    batch: Named,
    *,
    outputs: Iterable[str],
    layers: Iterable[str],
) -> Measured:
    """Hold two forms of a teacher against each other on a batch, some samples at a time.

    Args:
        original: the answers to reproduce.
        form: the answers to judge.
        batch: real samples.
        outputs: names of outputs to compare; those that the original does not answer with are passed over.
        layers: names of tapped layers to compare.
    """
    sums = {name: _Sums(layer=False) for name in outputs} | {name: _Sums(layer=True) for name in layers}
    size = _size(batch)
    for start in range(0, size or 1, _CHUNK):
        part = {k: v[start : start + _CHUNK] for k, v in batch.items()} if size else batch
        theirs, ours = original(part), form(part)
        for name in sums.keys() & theirs.keys():
            sums[name].add(theirs[name], ours[name])
    return Measured(
        samples=size,
        agreement=min((s.agreement for s in sums.values()), default=1.0),
        difference=max((s.relative for s in sums.values() if not s.layer), default=0.0),
        layers=max((s.relative for s in sums.values() if s.layer), default=0.0),
    )


def _size(batch: Mapping[str, Tensor]) -> int:
    """How many samples there are, or 0 where the columns differ in length and can't be cut together."""
    sizes = {len(value) if value.dim() else 0 for value in batch.values()}
    return sizes.pop() if len(sizes) == 1 else 0


@dataclass
class _Sums:
    """Running figures of one name over the parts of a batch, in float64."""

    layer: bool
    same: int = 0
    compared: int = 0
    worst: float = 0.0
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, expected: Tensor, got: Tensor) -> None:
        if expected.shape != got.shape:
            self.worst = float("inf")
            return
        if not expected.is_floating_point():
            self._agree(expected == got)
            return
        expected, got = expected.double(), got.double()
        if expected.dim() > 1 and expected.shape[-1] > 1 and not self.layer:
            self._agree(expected.argmax(-1) == got.argmax(-1))
        # Equal infinities (a mask) are no difference; any other is an infinite one, and so is a NaN.
        apart = torch.where(expected == got, 0.0, (expected - got).abs()).nan_to_num(nan=torch.inf)
        if self.layer and apart.dim() > 1:
            apart = apart.square().flatten(1).mean(1).sqrt()
        self.worst = max(self.worst, float(apart.max()) if apart.numel() else 0.0)
        finite = expected[expected.isfinite()]
        self.count += finite.numel()
        self.total += float(finite.sum())
        self.squares += float(finite.square().sum())

    def _agree(self, same: Tensor) -> None:
        self.same += int(same.sum())
        self.compared += same.numel()

    @property
    def agreement(self) -> float:
        return self.same / self.compared if self.compared else 1.0

    @property
    def relative(self) -> float:
        if not self.worst:
            return 0.0
        size = self.squares / max(self.count, 1)
        variance = size - (self.total / max(self.count, 1)) ** 2
        # A constant answer has no spread; its size is the measure then.
        scale = (variance if variance > 1e-12 * size else size) ** 0.5
        return self.worst / scale if scale else float("inf")
