"""What was made of a teacher: how many units, heads and blocks a student has of it, and what stayed whole."""

from __future__ import annotations

from torch import nn

from limbeck.compress.base import Left, Plan
from limbeck.core.errors import ModelError, problem
from limbeck.core.setting import setting

__all__ = ["Cut", "Outline", "Shorter", "attach", "outline"]

_KEPT_AS = "_limbeck_outline"


@setting
class Cut:
    """A group of units that were cut together: `kept` of `total` units at the layers that make them."""

    group: str
    makers: tuple[str, ...]
    of: str
    """"units" or "heads"."""
    kept: int
    total: int


@setting
class Shorter:
    """A stack of alike blocks: which of the teacher's `total` stayed, by their number in the stack."""

    path: str
    kept: tuple[int, ...]
    total: int


@setting
class Outline:
    """How a student was made from its teacher's structure.

    Attributes:
        width: the share of units that was asked for, or found for a budget.
        heads: the share of attention heads.
        depth: the share of blocks.
        cuts: each group of units.
        stacks: each stack of blocks.
        plan: the changes, which `limbeck.compress.replay` makes on a fresh model of the teacher's architecture; with
            the parameters and multiply-accumulates before and after.
    """

    width: float
    heads: float
    depth: float
    cuts: tuple[Cut, ...]
    stacks: tuple[Shorter, ...]
    plan: Plan

    @property
    def left(self) -> tuple[Left, ...]:
        """What stayed whole, and why."""
        return self.plan.left

    def __str__(self) -> str:
        """A table for people."""
        before, after = self.plan.before, self.plan.after
        lines = [f"parameters {before.parameters:,} -> {after.parameters:,}, MACs {before.macs:,} -> {after.macs:,}"]
        lines += [f"  {stack.path}: {len(stack.kept)} of {stack.total} blocks" for stack in self.stacks]
        lines += [f"  {', '.join(cut.makers)}: {cut.kept} of {cut.total} {cut.of}" for cut in self.cuts]
        lines += [f"  whole: {left.at}: {left.why}" for left in self.left]
        return "\n".join(lines)


def attach(model: nn.Module, made: Outline) -> None:
    """Keep an outline with its model."""
    setattr(model, _KEPT_AS, made)


def outline(model: nn.Module) -> Outline:
    """How `shrink` made a model.

    Raises:
        ModelError: it was not made by `shrink`.
    """
    made = getattr(model, _KEPT_AS, None)
    if not isinstance(made, Outline):
        wrong = f"this {type(model).__name__} was not made by `shrink`"
        raise ModelError(problem("outline", wrong, "give what `limbeck.transfer.shrink` returned"))
    return made
