"""Making a model smaller: operations that plan by reading, and one function that writes."""

from limbeck.compress import shorten as _shorten  # noqa: F401 - its edits enter the table
from limbeck.compress.base import EDITS, Change, Evidence, Left, Op, Plan, Size, apply, lean, plan, read_plan, replay
from limbeck.compress.cluster import Cluster
from limbeck.compress.depth import Depth
from limbeck.compress.factorize import Factorize
from limbeck.compress.features import Features, kept_columns
from limbeck.compress.mask import Mask
from limbeck.compress.merge import Merge, average
from limbeck.compress.merge_units import MergeUnits
from limbeck.compress.prune import Prune
from limbeck.compress.statistics import reestimate
from limbeck.compress.stored import Bake, bake, stored_bytes
from limbeck.compress.vocabulary import Vocabulary, id_map, remap

OPS: dict[str, type] = {
    "bake": Bake,
    "cluster": Cluster,
    "depth": Depth,
    "factorize": Factorize,
    "features": Features,
    "mask": Mask,
    "merge": Merge,
    "merge_units": MergeUnits,
    "prune": Prune,
    "vocabulary": Vocabulary,
}
"""Every operation by its kind."""

__all__ = [
    "EDITS", "OPS", "Bake", "Change", "Cluster", "Depth", "Evidence", "Factorize", "Features", "Left", "Mask", "Merge",
    "MergeUnits", "Op", "Plan", "Prune", "Size", "Vocabulary", "apply", "average", "bake", "id_map", "kept_columns",
    "lean", "plan", "read_plan", "reestimate", "remap", "replay", "stored_bytes",
]  # fmt: skip
