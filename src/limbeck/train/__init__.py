"""Training: one loop, its settings, and what keeps its work."""

from limbeck.train.engine import Engine
from limbeck.train.loop import State, combine, counted, fit
from limbeck.train.settings import Optimizer, Training
from limbeck.train.stages import Stage
from limbeck.train.student import Student
from limbeck.train.tuning import Tuner, Tuning

__all__ = [
    "Engine",
    "Optimizer",
    "Stage",
    "State",
    "Student",
    "Training",
    "Tuner",
    "Tuning",
    "combine",
    "counted",
    "fit",
]
