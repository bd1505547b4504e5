"""CIFAR-10: two plain convolutional networks, the same trained steadily, and a ResNet-56 poured into a ResNet-20."""

from __future__ import annotations

from dataclasses import replace

from limbeck.core.normalize import Normalize
from limbeck.core.schedules import OneCycle
from limbeck.data import Augment, Npz
from limbeck.models import CifarResNet, Conv
from limbeck.objectives import KL, Hint, Label
from limbeck.recipes.base import Arm, Master, Recipe
from limbeck.train import Optimizer, Training

__all__ = ["CIFAR10", "cifar10_conv", "cifar10_resnet", "cifar10_steady"]

CIFAR10 = Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
"""Channel statistics of the training images."""

_IMAGENET = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def cifar10_conv() -> Recipe:
    """Two 3x3 convolutions of 32 and 64 channels teach two of 16 and 32, in both forms of distillation."""
    training = Training(
        epochs=10,
        batch_size=100,
        optimizer=Optimizer(rate=0.1),
        schedule=OneCycle(),
        clip=1.0,
        precision="auto",
        channels_last=True,
    )
    return Recipe(
        title="cifar10-conv",
        story=(
            "CIFAR-10. A network of two convolutions (32 and 64 channels) teaches one of half the width. Plain: labels "
            "alone. Model: labels and the teacher's soft answers. Knowledge: these and its second layer. Every student "
            "starts from the same weights, sees the same images in the same order, and is scored after its last epoch."
        ),
        data=Npz(torchvision="CIFAR10", normalize=CIFAR10),
        teacher=Master(model=Conv(channels=(32, 64)), training=training, augment=Augment(crop=4, flip=True)),
        student=Conv(channels=(16, 32)),
        arms={
            "plain": Arm(label="Plain student", objective=(Label(),)),
            "model": Arm(label="Model distillation", objective=(KL(temperature=2.0, weight=0.5), Label(weight=0.5))),
            "knowledge": Arm(
                label="Knowledge distillation",
                objective=(
                    KL(temperature=2.0, weight=0.5),
                    Label(weight=0.5),
                    Hint(student="pool2", teacher="pool2", weight=6.0),
                ),
            ),
        },
        training=training,
        augment=Augment(flip=True),
        seeds=3,
    )


def cifar10_steady() -> Recipe:
    """The steadiest of the settings that were tried: hot soft answers and clipped gradients. For `limbeck study`."""
    base = cifar10_conv()
    # Without the clip the large gradients of a high temperature break training sooner than labels do; with it, three
    # times the rate costs half a point, where labels alone lose eleven (docs/distil.md, "Is it steadier?").
    training = replace(base.training, epochs=5, clip=1.0, precision="float32")
    return replace(
        base,
        title="cifar10-steady",
        story=(
            "CIFAR-10, 20,000 images. Does a teacher make training steadier? The same student on labels alone, and on "
            "labels and soft answers at T = 8, both with gradients clipped at 1, over seeds and at rates from a third "
            "of the usual to three times as much: how far results spread, how many answers change from seed to seed, "
            "and where training breaks."
        ),
        data=replace(base.data, limit=20_000, val=2_000),
        teacher=replace(base.teacher, training=training),
        arms={
            "plain": Arm(label="Plain student", objective=(Label(),)),
            "steady": Arm(label="Distilled, T = 8", objective=(KL(temperature=8.0, weight=0.5), Label(weight=0.5))),
        },
        training=training,
        seeds=5,
        rates=(0.3, 3.0),
    )


def cifar10_resnet() -> Recipe:
    """The pretrained ResNet-56 teaches a ResNet-20. Set `teacher.weights` to its file."""
    training = Training(
        epochs=15,
        batch_size=128,
        optimizer=Optimizer(rate=0.2),
        schedule=OneCycle(),
        precision="auto",
        channels_last=True,
        clip=5.0,
    )
    # Standardised logits say nothing of how sure the teacher is, so that the student does not copy that: it is the
    # better calibrated, and the better (dev/LOG.md, 2026-11-26).
    matched = (KL(temperature=2.0, weight=9.0, standardize=True), Label(weight=0.1))
    return Recipe(
        title="cifar10-resnet",
        story=(
            "CIFAR-10. A ResNet-56 teaches a ResNet-20 through its soft answers; beside it the same student under the "
            "same budget on labels alone. With teacher.weights the teacher is loaded, otherwise it is trained first."
        ),
        data=Npz(torchvision="CIFAR10", normalize=CIFAR10),
        teacher=Master(
            model=CifarResNet(depth=56), training=training, augment=Augment(crop=4, flip=True), normalize=_IMAGENET
        ),
        student=CifarResNet(depth=20),
        arms={
            "plain": Arm(label="Plain student", objective=(Label(),)),
            "model": Arm(label="Model distillation", objective=matched),
        },
        training=training,
        augment=Augment(crop=4, flip=True),
        seeds=3,
    )
