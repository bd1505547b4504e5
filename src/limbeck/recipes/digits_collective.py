"""Students that teach each other, or themselves, on handwritten digits, seconds long.

Each docstring is also the strategy's card in docs/methods.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from limbeck.core.schedules import Linear, OneCycle
from limbeck.data import Augment, Digits
from limbeck.examining import Evidence
from limbeck.models import MLP, PeersOf
from limbeck.objectives import KL, Each, Exits, Label, Mutual, TeacherFree
from limbeck.recipes.base import Arm, Master, Recipe
from limbeck.teachers.own import SelfTeaching
from limbeck.train import Optimizer, Training

__all__ = ["digits_defensive", "digits_mutual", "digits_noisy_student", "digits_self"]

_LABELS = (Label(),)
_TAUGHT = (KL(temperature=2.0, weight=0.5), Label(weight=0.5))
_SHORT = Training(epochs=20, batch_size=100, optimizer=Optimizer(rate=0.1), schedule=OneCycle(), log_steps=20)
_BIG = Master(model=MLP(hidden=(256, 256)), training=_SHORT)


def _recipe(**given: Any) -> Recipe:
    """What these recipes share."""
    shared = {
        "data": Digits(),
        "training": _SHORT,
        "teacher": _BIG,
        "seeds": 3,
        "evidence": Evidence(measures=()),
    }
    return Recipe(**{**shared, **given})


def digits_mutual() -> Recipe:
    """Train several students side by side, each learning from labels and from all the others.

    Matches: for each peer, the labels and the answers of every other peer at that step, held still.
    Formula: Σᵢ [CE(pᵢ, y) + 1/(P−1) Σ_{j≠i} KL(pⱼ ‖ pᵢ)].
    Source: Zhang et al. 2018 (Deep mutual learning), eqs. 5 to 8.
    Defaults: two or four peers of one form from different initial weights, T = 1, weight 1.
    Helps: where there is no teacher, or none worth its cost; unlabelled samples teach too.
    Cost: that of as many trainings as there are peers, at once; one network is left.
    Limits: the first peer is the student, chosen before training; the best of the peers on test would flatter.
    """
    student, together = MLP(hidden=(32,)), (Mutual(), Each(term=Label()))
    return _recipe(
        title="digits-mutual",
        story=(
            "Handwritten digits. A student alone; the first of two and the first of four that learn from each other "
            "beside the labels; and, to compare, one that a larger teacher taught. All have the same initial weights "
            "and steps. The first peer is the student, whatever the others became."
        ),
        student=student,
        # Networks of 32 units on digits need no clipping: without it every arm takes its steps whole.
        training=dataclasses.replace(_SHORT, clip=None),
        arms={
            "plain": Arm(label="Plain student", objective=_LABELS),
            "two": Arm(label="Two peers", objective=together, student=PeersOf(student=student, count=2)),
            "four": Arm(label="Four peers", objective=together, student=PeersOf(student=student, count=4)),
            "distilled": Arm(label="One larger teacher", objective=_TAUGHT),
        },
    )


def digits_self() -> Recipe:
    """Let a student be its own teacher: its moving average, itself an epoch ago, or its end for its earlier layers.

    Matches: the answers of the student's own earlier or deeper self, beside labels.
    Formula: KL to t ← d·t + (1 − d)·s; or KL, with a weight that rises from 0, to the student as the last epoch ended;
        or labels and the deepest answer at classifiers on earlier layers.
    Source: Tarvainen & Valpola 2017; Kim et al. 2021 (PS-KD); Zhang et al. 2019 (Be your own teacher).
    Defaults: a decay of 0.97, for runs of some hundred steps; weights that rise to 0.8, as in PS-KD.
    Helps: where there is no teacher, and with unlabelled samples, whose answers are kept steady.
    Cost: one more forward pass a step for an earlier self, small classifiers for exits.
    Limits: label smoothing and a virtual teacher, which know nothing, stand beside it: what they gain is no merit of
        teaching. An earlier self confirms what the student believes, faults included.
    """
    rising = (KL(temperature=1.0, weight=Linear(start=0.0, end=0.8)), Label(weight=Linear(start=1.0, end=0.2)))
    return _recipe(
        title="digits-self",
        story=(
            "Handwritten digits. A student alone; with smoothed labels and with a virtual teacher made of "
            "labels, as controls; taught by its own moving average, by itself an epoch before, and by its own end at "
            "earlier layers; and, to compare, by a larger teacher. Same initial weights, same steps."
        ),
        student=MLP(hidden=(32, 32, 32)),
        arms={
            "plain": Arm(label="Plain student", objective=_LABELS),
            "average": Arm(
                label="Its own moving average",
                objective=(KL(temperature=1.0, weight=Linear(start=0.0, end=1.0)), Label()),
                own=SelfTeaching(decay=0.97),
            ),
            "before": Arm(label="Itself, an epoch before", objective=rising, own=SelfTeaching(epochs=1)),
            "exits": Arm(label="Its own end", objective=(Label(), Exits(taps=("hidden1", "hidden2")))),
            "smoothed": Arm(label="Smoothed labels", objective=(Label(smoothing=0.1),)),
            "virtual": Arm(label="Virtual teacher", objective=(Label(weight=0.5), TeacherFree(weight=0.5))),
            "distilled": Arm(label="One larger teacher", objective=_TAUGHT),
        },
    )


def digits_noisy_student() -> Recipe:
    """Let a teacher that had few labels answer for many samples without, to a student that has it harder.

    Matches: the teacher's soft answers on all samples, labelled or not, under strong augmentation and dropout.
    Formula: KL to the teacher's answers, beside labels where there are some; the student is no smaller than its
        teacher, and becomes the teacher of the next.
    Source: Xie et al. 2020 (Noisy student), section 2.
    Defaults: soft answers; crops, rotation, erasing, three units of ten dropped; two rounds.
    Helps: few labels and many samples of the same kind without.
    Cost: a training a round.
    Limits: the teacher answers to the augmented sample that the student sees, without dropout, where the paper asks it
        about the clean one. A teacher that is often wrong is copied in that, too.
    """
    calm, noisy = MLP(hidden=(128, 128)), MLP(hidden=(128, 128), dropout=0.3)
    told = (KL(temperature=1.0), Label(weight=0.5))
    return _recipe(
        title="digits-noisy-student",
        story=(
            "Handwritten digits, 60 labels. The plain student learns from these, and is the teacher: of a student of "
            "its size that sees all samples, labelled or not, through augmentation and dropout, and which then "
            "teaches one more; and of one without dropout. Same steps. The network that knew all labels is a bound."
        ),
        data=Digits(labelled=60),
        teacher=Master(model=calm, training=_SHORT, data=Digits()),
        student=calm,
        training=dataclasses.replace(_SHORT, batch_size=60),
        augment=Augment(crop=1, rotate=10.0, erase=0.2),
        arms={
            "plain": Arm(label="Labels alone", objective=_LABELS, epochs=380, labelled_only=True),
            "second": Arm(label="Noisy student, second round", objective=told, teacher="first", student=noisy),
            "first": Arm(label="Noisy student, first round", objective=told, teacher="plain", student=noisy),
            "calm": Arm(label="Without dropout", objective=told, teacher="plain", start="fresh"),
        },
    )


def digits_defensive() -> Recipe:
    """Distil at a high temperature and answer without it: harder to attack in looks, as its own measure shows.

    Matches: the soft answers, at T = 100, of a network of the same form that learned its labels at T = 100.
    Formula: CE(softmax(z / T), y) for the first, T² KL at T for the second; both answer with softmax(z).
    Source: Papernot et al. 2016 (Defensive distillation), section IV; Carlini & Wagner 2017, sections V and VIII.
    Defaults: T = 100, the highest of the first paper.
    Helps: nobody, as a defence. It is here to be measured: logits grow T-fold, so that the loss an attack climbs has a
        gradient of zero. An attack on the margin, which is blind to scale, finds its way.
    Cost: two trainings.
    Limits: read the attack on the margin, not PGD on the loss; where the two differ, gradients are masked.
    """
    return _recipe(
        title="digits-defensive",
        story=(
            "Handwritten digits. Plain, at a high temperature, and distilled from that at the same temperature, each "
            "attacked twice: on its loss, which a sharp softmax hides, and on the margin between logits, which nothing "
            "hides. What withstands the first and not the second is not robust."
        ),
        data=Digits(),
        student=MLP(hidden=(64, 64)),
        evidence=Evidence(measures=("robustness",)),
        arms={
            "plain": Arm(label="Plain student", objective=_LABELS),
            "defensive": Arm(
                label="Defensive distillation",
                objective=(KL(temperature=100.0, weight=0.01),),
                teacher="hot",
                epochs=60,
            ),
            "hot": Arm(label="Labels at T = 100", objective=(Label(temperature=100.0, weight=100.0),), epochs=60),
        },
    )
