"""Making a model smaller: operations that plan by reading, and one function that writes."""

from limbeck.compress.base import EDITS, Change, Evidence, Left, Op, Plan, Size, apply, lean, plan, read_plan, replay
from limbeck.compress.cluster import Cluster
from limbeck.compress.factorize import Factorize
from limbeck.compress.features import Features, kept_columns
from limbeck.compress.mask import Mask
from limbeck.compress.merge import Merge, average
from limbeck.compress.stored import Bake, bake, stored_bytes
from limbeck.compress.vocabulary import Vocabulary, id_map, remap

OPS: dict[str, type] = {
    "bake": Bake,
    "cluster": Cluster,
    "factorize": Factorize,
    "features": Features,
    "mask": Mask,
    "merge": Merge,
    "vocabulary": Vocabulary,
}
"""Every operation by its kind."""

__all__ = [
    "EDITS",
    "OPS",
    "Bake",
    "Change",
    "Cluster",
    "Evidence",
    "Factorize",
    "Features",
    "Left",
    "Mask",
    "Merge",
    "Op",
    "Plan",
    "Size",
    "Vocabulary",
    "apply",
    "average",
    "bake",
    "id_map",
    "kept_columns",
    "lean",
    "plan",
    "read_plan",
    "remap",
    "replay",
    "stored_bytes",
]
