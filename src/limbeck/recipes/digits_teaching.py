"""Strategies of teaching on handwritten digits, seconds long: in stages, through others, from where another ended.

Each docstring is also the strategy's card in docs/methods.
"""

from __future__ import annotations

from typing import Any

from limbeck.core.schedules import OneCycle
from limbeck.data import Augment, Digits
from limbeck.examining import Evidence
from limbeck.models import MLP
from limbeck.objectives import KL, Hint, Label
from limbeck.recipes.base import Arm, Master, Recipe
from limbeck.train import Optimizer, Stage, Training, Tuning

__all__ = [
    "digits_assistant",
    "digits_born_again",
    "digits_early_teacher",
    "digits_ensemble",
    "digits_finetune",
    "digits_stages",
]

_BOTH = (KL(temperature=2.0, weight=0.5), Label(weight=0.5))
_LABELS = (Label(),)
_SHORT = Training(epochs=15, batch_size=100, optimizer=Optimizer(rate=0.1), schedule=OneCycle(), log_steps=20)
_BIG = MLP(hidden=(256, 256))


def _recipe(**given: Any) -> Recipe:
    """What these recipes share."""
    shared = {"data": Digits(), "training": _SHORT, "seeds": 3, "evidence": Evidence(measures=())}
    return Recipe(**{**shared, **given})


def digits_stages() -> Recipe:
    """Teach in stages: inner layers first, then outputs; all arms have the same number of epochs.

    Matches: what each stage says; here layers, then answers (FitNets); one layer after the other, each alone
        (progressive blocks); soft answers, then labels alone (annealing).
    Formula: stages run in order on one student; each begins with the weights that the one before ended with.
    Source: Romero et al. 2015 (FitNets), section 2.3; Yim et al. 2017; Jafari et al. 2021 (Annealing-KD).
    Defaults: a third of the epochs for hints; an optimizer and a schedule of its own for each stage.
    Helps: deep and thin students, which hints give a start, and where hint and answer pull against each other.
    Cost: none beside the same epochs in one stage.
    Limits: epochs that go into hints are missing at the end; judge it at an equal budget, as here.
    """
    hints = tuple(Hint(student=layer, teacher=layer) for layer in ("hidden1", "hidden2"))
    blocks = tuple(
        Stage(name=f"block{i}", epochs=3, objective=(hint,), rate=0.02, tuning=Tuning(learn=(f"hidden{i}",)))
        for i, hint in enumerate(hints, 1)
    )
    return _recipe(
        title="digits-stages",
        story=(
            "Handwritten digits. A thin student of two layers learns from labels alone; from labels and the teacher's "
            "answers in one stage; and in stages: inner layers and then answers, one layer after the other and then "
            "answers, or answers and then labels. All have the same epochs and initial weights."
        ),
        teacher=Master(model=_BIG, training=_SHORT),
        student=MLP(hidden=(16, 16)),
        arms={
            "plain": Arm(label="Plain student", objective=_LABELS),
            "hints": Arm(
                label="Hints, then answers",
                objective=_BOTH,
                stages=(Stage(name="hints", epochs=5, objective=hints, rate=0.02), Stage(name="answers", epochs=10)),
            ),
            "blocks": Arm(label="Block by block", objective=_BOTH, stages=(*blocks, Stage(name="answers", epochs=9))),
            "annealed": Arm(
                label="Answers, then labels",
                objective=(KL(temperature=4.0),),
                stages=(Stage(name="answers", epochs=10), Stage(name="labels", epochs=5, objective=_LABELS, rate=0.03)),
            ),
            "distilled": Arm(label="One stage", objective=_BOTH),
        },
    )


def digits_assistant() -> Recipe:
    """Put a network of middle size between a large teacher and a small student.

    Matches: the answers of an assistant, which has learned to give those of the teacher.
    Formula: an arm whose teacher is another arm's student, of the same seed.
    Source: Mirzadeh et al. 2020 (teacher assistants).
    Defaults: an assistant between the two in size and accuracy.
    Helps: where the teacher is so much larger that the student cannot follow it.
    Cost: one more training; the assistant is thrown away.
    Limits: faults are handed on; where the gap is small the way round costs accuracy.
    """
    return _recipe(
        title="digits-assistant",
        story=(
            "Handwritten digits. A student of eight units learns from labels, from a teacher of two wide layers, and "
            "from an assistant of middle size that the teacher taught before."
        ),
        teacher=Master(model=_BIG, training=_SHORT),
        student=MLP(hidden=(8,)),
        arms={
            "plain": Arm(label="Plain student", objective=_LABELS),
            "assisted": Arm(label="Through an assistant", objective=_BOTH, teacher="assistant"),
            "distilled": Arm(label="Straight from the teacher", objective=_BOTH),
            "assistant": Arm(label="Assistant", objective=_BOTH, student=MLP(hidden=(32,))),
        },
    )


def digits_born_again() -> Recipe:
    """Teach a network by one of its own kind, generation after generation.

    Matches: the answers of the generation before, from weights that are drawn afresh.
    Formula: a chain of arms, each the teacher of the next; the first learns from the recipe's teacher.
    Source: Furlanello et al. 2018 (born-again networks), section 3.
    Defaults: three generations; labels beside the answers.
    Helps: steadier and better calibrated students at no cost in size.
    Cost: a training a generation.
    Limits: gains fade after a generation or two; it is no compression by itself.
    """
    generations = {"first": "teacher", "second": "first", "third": "second"}
    return _recipe(
        title="digits-born-again",
        story=(
            "Handwritten digits. A network teaches one of its own kind, which teaches the "
            "next, over three generations; the plain one learns from labels alone for as many epochs as each."
        ),
        teacher=Master(model=MLP(hidden=(32,)), training=_SHORT),
        student=MLP(hidden=(32,)),
        arms={
            "plain": Arm(label="Plain student", objective=_LABELS),
            **{
                name: Arm(label=f"{name.title()} generation", objective=_BOTH, teacher=elder, start="fresh")
                for name, elder in generations.items()
            },
        },
    )


def digits_ensemble() -> Recipe:
    """Teach by several networks at once, whose logits are averaged.

    Matches: the mean answer of networks that began with different weights.
    Formula: an arm with several teachers, each another arm's student of the same seed.
    Source: Hinton et al. 2015; You et al. 2017.
    Defaults: three teachers, equal weights; weights and choices by sample through `limbeck.teacher([...])`.
    Helps: an ensemble is better and better calibrated than its members, and the student pays for one network only.
    Cost: a training and a pass for each teacher.
    Limits: its gain over one teacher is small where the student is the bottleneck.
    """
    member = Arm(label="Member", objective=_LABELS, student=_BIG, start="fresh")
    return _recipe(
        title="digits-ensemble",
        story=(
            "Handwritten digits. The same small student learns from labels, from one teacher, and from three networks "
            "of the teacher's kind that began with different weights."
        ),
        teacher=Master(model=_BIG, training=_SHORT),
        student=MLP(hidden=(8,)),
        arms={
            "plain": Arm(label="Plain student", objective=_LABELS),
            "ensemble": Arm(label="Three teachers", objective=_BOTH, teacher=("one", "two", "three")),
            "distilled": Arm(label="One teacher", objective=_BOTH),
            "one": member,
            "two": member,
            "three": member,
        },
    )


def digits_early_teacher() -> Recipe:
    """Learn from a teacher that was stopped early, beside the same one trained to the end.

    Matches: the softer answers of a network that has not yet become sure of itself.
    Formula: a teacher with few epochs (`teacher.training.epochs`), or an arm that teaches and has its own.
    Source: Cho & Hariharan 2019 (early-stopped teachers).
    Defaults: a third of the epochs.
    Helps: where a small student does worse with a better teacher.
    Cost: less than a full teacher.
    Limits: stopped too early it teaches its own faults.
    """
    early = Training(epochs=5, batch_size=100, optimizer=Optimizer(rate=0.1), schedule=OneCycle(), log_steps=20)
    return _recipe(
        title="digits-early-teacher",
        story=(
            "Handwritten digits. The same network teaches twice: stopped after five epochs, and after forty. The "
            "student has eight units and the same epochs either way."
        ),
        teacher=Master(model=_BIG, training=early),
        student=MLP(hidden=(8,)),
        arms={
            "plain": Arm(label="Plain student", objective=_LABELS),
            "early": Arm(label="From the early teacher", objective=_BOTH),
            "late": Arm(label="From the late teacher", objective=_BOTH, teacher="long"),
            "long": Arm(label="Late teacher", objective=_LABELS, student=_BIG, epochs=40),
        },
    )


def digits_finetune() -> Recipe:
    """Fine-tune a trained network on few labels: all of it, its end, by degrees, or held near its start.

    Matches: labels, from weights that another task left.
    Formula: an arm that begins where another ended (`start`), with a `Tuning`: parts that learn, layer-wise rates,
        gradual unfreezing, a/2·|w - w0|² in place of weight decay.
    Source: Howard & Ruder 2018 (ULMFiT), section 3; Li et al. 2018 (L2-SP); Kumar et al. 2022 (probe, then all).
    Defaults: everything learns alike.
    Helps: few labels, and a source task that is near.
    Cost: frozen parts cost no gradient.
    Limits: the architecture must be that of the source.
    """
    training = Training(epochs=60, batch_size=30, optimizer=Optimizer(rate=0.03), schedule=OneCycle(), log_steps=20)
    begun: dict[str, Any] = {"objective": _LABELS, "labelled_only": True, "start": "teacher"}
    probe = Tuning(learn=("linear",))
    return _recipe(
        title="digits-finetune",
        story=(
            "A network has learned handwritten digits that were turned by up to 45 degrees and shifted. It goes on "
            "with 60 upright ones: all of it, its last layer, the last layer first, slower below, layer by layer, or "
            "held near its start. Plain: the same 60 digits from random weights."
        ),
        data=Digits(labelled=60),
        teacher=Master(
            model=MLP(hidden=(64, 64)), training=_SHORT, data=Digits(), augment=Augment(rotate=45.0, crop=1)
        ),
        student=MLP(hidden=(64, 64)),
        training=training,
        arms={
            "plain": Arm(label="Random start", objective=_LABELS, labelled_only=True),
            "full": Arm(label="All of it", **begun),
            "probe": Arm(label="The last layer", tuning=probe, **begun),
            "probe-then-full": Arm(
                label="Last layer, then all",
                stages=(Stage(name="probe", epochs=20, tuning=probe), Stage(name="full", epochs=40)),
                **begun,
            ),
            "layerwise": Arm(label="Slower below", tuning=Tuning(decay=1 / 2.6), **begun),
            "gradual": Arm(label="Thawed by degrees", tuning=Tuning(thaw={"hidden2": 15, "hidden1": 30}), **begun),
            "anchored": Arm(label="Near its start", tuning=Tuning(anchor=0.1), **begun),
        },
    )
