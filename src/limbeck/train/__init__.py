"""Training: one loop, its settings, and what keeps its work."""

from limbeck.train.engine import Engine
from limbeck.train.loop import State, combine, counted, fit
from limbeck.train.settings import Optimizer, Training
from limbeck.train.student import Student

__all__ = ["Engine", "Optimizer", "State", "Student", "Training", "combine", "counted", "fit"]
