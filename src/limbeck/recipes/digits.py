"""Handwritten digits with few labels: the embedded default, seconds long."""

from __future__ import annotations

import dataclasses

from limbeck.auto import Auto
from limbeck.core.schedules import OneCycle
from limbeck.data import Digits
from limbeck.models import MLP
from limbeck.objectives import KL, Label
from limbeck.recipes.base import Arm, Master, Recipe
from limbeck.train import Optimizer, Training

__all__ = ["digits", "digits_auto"]


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


def digits_auto() -> Recipe:
    """A small, briefly trained student: beside hand-picked objectives, one of which hurts it, an arm that chooses."""
    training = Training(epochs=10, batch_size=60, optimizer=Optimizer(rate=0.1), schedule=OneCycle(), log_steps=20)
    return Recipe(
        title="digits-auto",
        story=(
            "1,797 real 8x8 digits, all labels, and a student of four units that is trained for ten epochs only. Two "
            "arms have objectives picked by hand: an often-quoted one (temperature 4, weight 0.9) and a mild one. The "
            "third tries six of them for a short while beside plain training, and trains with what was best on "
            "validation: in all at most twice the steps of one run."
        ),
        data=Digits(val_share=0.2),
        teacher=Master(model=MLP(hidden=(256, 256)), training=dataclasses.replace(training, epochs=30)),
        student=MLP(hidden=(4,)),
        arms={
            "plain": Arm(label="Plain student", objective=(Label(),)),
            "quoted": Arm(label="T = 4, weight 0.9", objective=(KL(temperature=4.0, weight=0.9), Label(weight=0.1))),
            "mild": Arm(label="T = 2, weight 0.5", objective=(KL(temperature=2.0, weight=0.5), Label(weight=0.5))),
            "auto": Arm(label="Chosen on validation", auto=Auto()),
        },
        training=training,
        seeds=5,
    )
