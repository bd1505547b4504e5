"""Searches that come along: half the units of a dense network on digits, and a ResNet-56 on CIFAR-10."""

from __future__ import annotations

from limbeck.compress import Depth, MergeUnits, Prune
from limbeck.core.normalize import Normalize
from limbeck.core.schedules import OneCycle
from limbeck.data import Augment, Digits, Npz
from limbeck.export.integers import Quantize
from limbeck.models import MLP, CifarResNet
from limbeck.objectives import KL, Label
from limbeck.recipes.base import Master
from limbeck.recipes.squeeze import Squeeze
from limbeck.search import Budget
from limbeck.train import Optimizer, Training

__all__ = ["cifar10_squeeze", "digits_squeeze"]


def digits_squeeze() -> Squeeze:
    """Half of a dense network's units removed, or joined; as many come back as accuracy needs. Seconds long."""
    training = Training(epochs=30, batch_size=60, optimizer=Optimizer(rate=0.1), schedule=OneCycle(), log_steps=20)
    return Squeeze(
        title="digits-squeeze",
        story=(
            "1,797 real 8x8 digits. Of a dense network with 128 hidden units half are taken away, and once more half "
            "are joined with units like them. Each is scored beside the original on accuracy, recall and F1, and the "
            "share is halved towards none until less than a point of accuracy is lost."
        ),
        data=Digits(),
        model=Master(model=MLP(hidden=(128,)), training=training),
        budget=Budget(parameters=0.51, drop=0.01),
        chains={"removed": (Prune(ratio=0.5),), "merged": (MergeUnits(ratio=0.5),)},
        training=Training(epochs=5, batch_size=60, optimizer=Optimizer(rate=0.02), log_steps=20),
        tries=4,
    )


def cifar10_squeeze() -> Squeeze:
    """The pretrained ResNet-56 in a quarter of its time: fewer blocks, fewer channels, 8 bits. Set `model.weights`."""
    training = Training(
        epochs=40,
        batch_size=256,
        optimizer=Optimizer(rate=0.05),
        schedule=OneCycle(),
        precision="auto",
        channels_last=True,
        clip=5.0,
    )
    return Squeeze(
        title="cifar10-squeeze",
        story=(
            "CIFAR-10. A pretrained ResNet-56 loses more than half of its blocks, then "
            "channels of its last and heaviest stage, learns each time from its own former answers, and is written as "
            "a file of 8-bit numbers: a quarter of the time that the original's file takes on two threads, and a tenth "
            "of the bytes, at less than a point of accuracy."
        ),
        # The published weights were trained on all 50,000 training images: on any of those the original is right, and
        # nothing lost would show. Attempts are scored on half of the test images, and the result on the other half.
        data=Npz(
            torchvision="CIFAR10",
            val=5000,
            val_from="test",
            normalize=Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ),
        model=Master(model=CifarResNet(depth=56), training=training, augment=Augment(crop=4, flip=True)),
        budget=Budget(latency=0.25, bytes=0.1, drop=0.01),
        # ONNX Runtime computes channels in blocks of 8 or 16, so that 12 of 16 take the time of 16: blocks of layers
        # give time, and channels are taken by sixteens, where they give bytes.
        chains={
            "search": (
                Depth(ratio=1.0, include=("layer1.[4-8]", "layer2.[4-8]", "layer3.[3-8]")),
                Prune(ratio=0.25, scope="layer", round_to=16, include=("layer3.*.conv1",)),
                Quantize(),
            )
        },
        objective=(KL(temperature=2.0, weight=9.0, standardize=True), Label(weight=0.1)),
        training=training,
        augment=Augment(crop=4, flip=True),
        views=16,
        tries=2,
        latency_batch=32,
        latency_threads=2,
    )
