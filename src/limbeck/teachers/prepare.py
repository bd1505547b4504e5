"""The fastest form of a teacher whose answers are still its own: what forms there are (`core.parity` has the bound).

The choice follows from the teacher, the chip and the samples, and never from a clock, so that a resumed run and
another process choose the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from limbeck.core import chip

__all__ = ["SMALL_MACS", "Compile", "Form", "Precision", "Prepare", "forms"]


Precision = Literal["auto", "float32", "bfloat16"]
Prepare = Literal["auto", "none"]
Compile = Literal["none", "default"]

SMALL_MACS = 4_000_000
"""Multiply-accumulates a sample below which a teacher is left exactly as it is."""


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
