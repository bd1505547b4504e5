"""Making a model smaller: operations that plan by reading, and one function that writes."""

from limbeck.compress.base import EDITS, Change, Evidence, Left, Op, Plan, Size, apply, plan, read_plan, replay
from limbeck.compress.depth import Depth
from limbeck.compress.merge_units import MergeUnits
from limbeck.compress.prune import Prune
from limbeck.compress.statistics import reestimate

__all__ = [
    "EDITS", "OPS", "Change", "Depth", "Evidence", "Left", "MergeUnits", "Op", "Plan", "Prune", "Size", "apply", "plan",
    "read_plan", "reestimate", "replay",
]  # fmt: skip

OPS: dict[str, type] = {"prune": Prune, "depth": Depth, "merge_units": MergeUnits}
"""Every operation by its kind."""
