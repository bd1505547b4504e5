"""One pass over data to scores; what a model weighs, computes and takes; several runs beside each other."""

from limbeck.evaluation.footprint import Footprint, footprint
from limbeck.evaluation.latency import Latency, Timing, compare_latency
from limbeck.evaluation.macs import count_macs
from limbeck.evaluation.scores import Scores, score

__all__ = ["Footprint", "Latency", "Scores", "Timing", "compare_latency", "count_macs", "footprint", "score"]
