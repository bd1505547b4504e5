"""Handwritten digits with few labels: the embedded default, seconds long."""

from __future__ import annotations

from limbeck.core.schedules import OneCycle
from limbeck.data import Digits
from limbeck.models import MLP
from limbeck.objectives import KL, Label
from limbeck.recipes.base import Arm, Master, Recipe
from limbeck.train import Optimizer, Training

__all__ = ["digits"]


def digits() -> Recipe:
    """A teacher that knew all labels passes them on to a student that has 60, through samples without labels."""
    training = Training(epochs=30, batch_size=60, optimizer=Optimizer(rate=0.1), schedule=OneCycle(), log_steps=20)
    return Recipe(
        title="digits",
        story=(
            "1,797 real 8x8 digits. The teacher, a dense network of two wide layers, learned from every label. The "
            "small student has 60 labels; the plain one learns from those alone, the distilled one also from the "
            "teacher's soft answers to the samples without a label. Both take the same number of steps from the same "
            "initial weights."
        ),
        data=Digits(labelled=60),
        teacher=Master(model=MLP(hidden=(256, 256)), training=training, data=Digits()),
        student=MLP(hidden=(16,)),
        arms={
            "plain": Arm(label="Plain student", objective=(Label(),), epochs=570, labelled_only=True),
            "distilled": Arm(label="Distilled student", objective=(KL(temperature=4.0, weight=0.9), Label(weight=0.1))),
        },
        training=training,
        seeds=5,
    )
