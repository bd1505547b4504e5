"""One pass over data to scores; what a model weighs, computes and takes; several runs beside each other."""

from limbeck.evaluation.footprint import Footprint, Latency, compare_latency, count_macs, footprint
from limbeck.evaluation.scores import Scores, score

__all__ = ["Footprint", "Latency", "Scores", "compare_latency", "count_macs", "footprint", "score"]
