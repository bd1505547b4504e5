"""What of a teacher is carried over to a student beside its answers: structure, parameters, training strategy."""

from limbeck.transfer.inherited import Inherited
from limbeck.transfer.outline import Cut, Outline, Shorter, outline
from limbeck.transfer.parameters import inherit
from limbeck.transfer.strategy import Strategy, curriculum, sample_losses, strategy
from limbeck.transfer.structure import shrink

__all__ = [
    "Cut",
    "Inherited",
    "Outline",
    "Shorter",
    "Strategy",
    "curriculum",
    "inherit",
    "outline",
    "sample_losses",
    "shrink",
    "strategy",
]
