"""Making a model smaller: operations that plan by reading, and one function that writes."""

from limbeck.compress.base import EDITS, Change, Evidence, Left, Op, Plan, Size, apply, plan, read_plan, replay

__all__ = ["EDITS", "Change", "Evidence", "Left", "Op", "Plan", "Size", "apply", "plan", "read_plan", "replay"]
