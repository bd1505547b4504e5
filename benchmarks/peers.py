"""One job that is timed in several libraries: its settings, its data and models, and how others than limbeck do it.

`peers_speed.py` measures; its text says why each side is as it is. Whatever a side minimises is held to `formula`.
"""

from __future__ import annotations

import copy
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

import limbeck as lb
from limbeck.models import CifarResNet
from limbeck.recipes.base import read_weights

BATCH, WORKERS = 128, 2
T, SOFT, HARD = 4.0, 0.9, 0.1
RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
NORMALIZE = lb.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # what the public weights expect

Steps = Iterator[Any]
"""Each `next` is one training step, data loading included."""


class Common(NamedTuple):
    """What all sides share. Each copies the models before it touches them."""

    images: np.ndarray
    labels: np.ndarray
    teacher: nn.Module
    student: nn.Module


def common(weights: Path | None, data: Path | None, images: int) -> Common:
    """The data, the teacher with its weights or random ones whose norms have seen some data, and a new student."""
    if data:
        with np.load(data) as held:
            names = ("train_images", "train_labels") if "train_images" in held else ("x_train", "y_train")
            x, y = (held[name][:images] for name in names)
    else:
        g = np.random.default_rng(0)
        x = g.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
        y = g.integers(0, 10, images)
    torch.manual_seed(0)
    teacher = CifarResNet(depth=56).build((3, 32, 32), 10)
    if weights:
        teacher.load_state_dict(read_weights(str(weights), "--weights"))
    else:
        some = NORMALIZE(torch.from_numpy(x[: 2 * BATCH]).permute(0, 3, 1, 2) / 255)
        for norm in (module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = None  # the mean of what it has seen: one pass is enough
        with torch.no_grad():
            teacher.train()(some)
    return Common(x, y.reshape(-1).astype(np.int64), teacher.eval(), CifarResNet(depth=20).build((3, 32, 32), 10))


def formula(said: Tensor, told: Tensor, y: Tensor) -> Tensor:
    """What all sides minimise, written out."""
    soft = F.kl_div((said / T).log_softmax(-1), (told / T).log_softmax(-1), reduction="batchmean", log_target=True)
    return SOFT * T**2 * soft + HARD * F.cross_entropy(said, y)


def agree(side: str, value: Any, said: Tensor, told: Tensor, y: Tensor) -> None:
    """Refuse a side that minimises something else."""
    wanted = float(formula(said, told, y))
    assert abs(float(value) - wanted) <= 1e-4 * abs(wanted), f"{side} minimises {float(value)} and not {wanted}"


_KEPT: list[torch.library.Library] = []
"""A declaration lasts as long as its object."""


class Pictures(Dataset):
    """Images in memory, handed out one by one as torchvision's CIFAR10 does."""

    def __init__(self, given: Common) -> None:
        if not _KEPT:
            _KEPT.append(torch.library.Library("torchvision", "DEF"))  # beside a CPU torch its own are not there
            for name in ("nms", "qnms"):
                _KEPT[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from PIL import Image  # noqa: PLC0415 - only where it is installed
        from torchvision import transforms as tv  # noqa: PLC0415

        self.images, self.labels, self.picture = given.images, given.labels.tolist(), Image.fromarray
        steps = [tv.RandomCrop(32, padding=4), tv.RandomHorizontalFlip(), tv.ToTensor()]
        self.transform = tv.Compose([*steps, tv.Normalize(NORMALIZE.mean, NORMALIZE.std)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.picture(self.images[index])), self.labels[index]


def endless(given: Common) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches as a good engineer loads them."""
    loader = DataLoader(Pictures(given), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    while True:
        yield from loader


def torchdistill(given: Common) -> Steps:
    """Its box from its own configuration, driven as in its image classification example."""
    pictures = Pictures(given)
    from torchdistill.core.distillation import get_distillation_box  # noqa: PLC0415 - only where it is installed
    from torchdistill.misc.log import MetricLogger, SmoothedValue  # noqa: PLC0415

    at = {f"{who}_module_path": "." for who in ("student", "teacher")}
    at |= {f"{who}_module_io": "output" for who in ("student", "teacher")}
    kd = {"key": "KDLoss", "kwargs": {**at, "temperature": T, "alpha": HARD, "beta": SOFT, "reduction": "batchmean"}}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": BATCH, "num_workers": WORKERS},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
    }
    device = torch.device("cpu")
    teacher, student = copy.deepcopy(given.teacher), copy.deepcopy(given.student)
    box = get_distillation_box(teacher, student, {"train": pictures}, config, device, None, False, 1)
    x, y = (torch.stack([torch.as_tensor(one[i]) for one in (pictures[j] for j in range(16))]) for i in (0, 1))
    with torch.no_grad():
        box.student_model.eval()
        agree("torchdistill", box.forward_process(x, y, {}), student(x), teacher(x), y)

    def steps() -> Steps:
        for epoch in itertools.count():
            box.pre_epoch_process(epoch=epoch)
            meters = MetricLogger(delimiter="  ")
            meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
            meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
            for x, y, more in meters.log_every(box.train_data_loader, 100, f"Epoch: [{epoch}]"):
                start = time.time()
                loss = box.forward_process(x.to(device), y.to(device), more)
                box.post_forward_process(loss=loss)
                meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
                meters.meters["img/s"].update(len(x) / (time.time() - start))
                yield
            box.post_epoch_process()

    return steps()


def by_hand(given: Common) -> Steps:
    Pictures(given)  # says now what cannot be imported
    teacher, student = copy.deepcopy(given.teacher).requires_grad_(False), copy.deepcopy(given.student)
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def steps() -> Steps:
        student.train()
        for x, y in endless(given):
            with torch.no_grad():
                told = teacher(x)
            loss = formula(student(x), told, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            yield

    return steps()


def keras_resnet(keras: Any, depth: int) -> Any:
    """`CifarResNet` in Keras layers, channels first."""
    L = keras.layers

    def normed(x: Any, width: int, stride: int = 1) -> Any:
        x = L.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        return L.BatchNormalization(axis=1)(x)

    x = start = keras.Input((3, 32, 32))
    x = L.ReLU()(normed(x, 16))
    for width in (16, 32, 64):
        for block in range((depth - 2) // 6):
            wider = block == 0 and width > 16
            y = L.ReLU()(normed(x, width, 2 if wider else 1))
            if wider:
                x = keras.ops.pad(x[:, :, ::2, ::2], ((0, 0), (width // 4, width // 4), (0, 0), (0, 0)))
            x = L.ReLU()(L.Add()([normed(y, width), x]))
    return keras.Model(start, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def keras_distiller(given: Common) -> Steps:
    """A model whose loss asks a frozen teacher, trained batch by batch."""
    Pictures(given)
    os.environ["KERAS_BACKEND"] = "torch"
    import keras  # noqa: PLC0415 - only where it is installed

    keras.config.set_image_data_format("channels_first")
    label = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    divergence = keras.losses.KLDivergence()

    class Distiller(keras.Model):
        def __init__(self, student: Any, teacher: Any) -> None:
            super().__init__()
            self.student, self.teacher = student, teacher

        def call(self, x: Any, training: bool | None = None) -> Any:
            return self.student(x, training=training)

        def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any) -> Any:
            told, said = (keras.ops.softmax(z / T, axis=-1) for z in (self.teacher(x, training=False), y_pred))
            return SOFT * T**2 * divergence(told, said) + HARD * label(y, y_pred)

    teacher, student = (keras_resnet(keras, depth) for depth in (56, 20))
    for mine, theirs in ((given.teacher, teacher), (given.student, student)):
        weights = sum(int(np.prod(v.shape)) for v in theirs.trainable_weights)
        assert weights == sum(p.numel() for p in mine.parameters()), "the Keras network is another one"
    teacher.trainable = False
    model = Distiller(student, teacher)
    sgd = keras.optimizers.SGD(RATE, momentum=MOMENTUM, weight_decay=DECAY)
    model.compile(optimizer=sgd, jit_compile=False)
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    told, said = teacher(x, training=False), model(x, training=False)
    assert not told.requires_grad, "a frozen teacher keeps nothing for a backward pass"
    with torch.no_grad():
        agree("keras", model.compute_loss(x=x, y=y, y_pred=said), said, told, y)
    return (model.train_on_batch(x, y) for x, y in endless(given))


PEERS = {"torchdistill": torchdistill, "by hand": by_hand, "keras": keras_distiller}
PACKAGES = ("torchdistill", "torchvision", "keras", "pillow")


def peer(make: Callable[[Common], Steps], given: Common) -> Callable[[int], None]:
    steps = make(given)

    def turn(count: int) -> None:
        for _ in range(count):
            next(steps)

    return turn
