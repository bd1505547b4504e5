"""How the teacher was trained, taken over for its student: settings from its record, scaled by stated rules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.check import one_of, whole
from limbeck.core.errors import CheckpointError, ConfigError, DataError, problem
from limbeck.core.setting import build, setting
from limbeck.core.still import device_of, undisturbed
from limbeck.core.taps import Inputs, Outputs, Reader
from limbeck.core.tracing import named_tensors
from limbeck.data import Augment, Batches, as_source
from limbeck.train import Training

__all__ = ["Strategy", "curriculum", "sample_losses", "strategy"]

_ADAMS = ("adam", "adamw", "nadam", "radam", "adamax")


@setting
class Strategy:
    """How a student is to be trained, after its teacher.

    Attributes:
        training: settings for `distill`, as `**dataclasses.asdict` would be: optimizer, rate, batch size, schedule, …
        augment: what was done to the teacher's images.
        told: each rule that was applied, and what could not be taken over, in words.
    """

    training: Training
    augment: Augment | None = None
    told: tuple[str, ...] = ()

    @property
    def settings(self) -> Mapping[str, Any]:
        """The training as keyword arguments of `limbeck.distill`, the augmentation among them."""
        fields = {f.name: getattr(self.training, f.name) for f in dataclasses.fields(self.training)}
        return fields | {"augment": self.augment}

    def __str__(self) -> str:
        """The rules, for people."""
        optimizer = self.training.optimizer
        first = f"{optimizer.name}, rate {optimizer.rate:.4g}, batches of {self.training.batch_size}"
        return "\n".join([f"{first}, {self.training.epochs} epochs", *(f"  {line}" for line in self.told)])


def strategy(
    run: str | Path | Training,
    student: nn.Module,
    teacher: nn.Module,
    *,
    batch_size: int | None = None,
    epochs: int | None = None,
    width: Literal["auto", "mup", "none"] = "auto",
    device: str = "auto",
) -> Strategy:
    """The teacher's training, scaled for a student.

    The rate follows the batch size and the width. Optimizer, schedule (a function of the share of the run that is
    done), clipping, decay and augmentation are taken over as they are.

    - Batch, SGD: rate x batch / batch (Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.1).
    - Batch, Adam and its kin: rate x root(k) for k times the batch, and with it 1 - beta x k and eps / root(k) (Malladi
      et al. 2022, "On the SDEs and scaling rules for adaptive gradient algorithms", definition 4.1).
    - Width, Adam and its kin: rate x the teacher's width by the student's, for 1 / width (Yang et al. 2022, "Tensor
      programs V", table 3). That holds for hidden matrices; here one rate is for all.
    - Width, SGD, and any other optimizer: none.

    Args:
        run: the folder of the run that trained the teacher, or its settings. In the folder of a recipe's run the
            settings of the recipe's teacher count, unless it was loaded: then those of its students.
        student: whose width counts, where it has matrices of the same names as the teacher.
        teacher: as it was trained.
        batch_size: the student's; the teacher's when None.
        epochs: the student's; the teacher's when None.
        width: "auto" and "mup" apply the rule for width; "none" leaves it out.
        device: where the student is trained.

    Raises:
        CheckpointError: the folder holds no recipe, or it cannot be read.
        ConfigError: a number is out of range.
    """
    one_of("strategy.width", width, ("auto", "mup", "none"))
    for name, number in (("batch_size", batch_size), ("epochs", epochs)):
        if number is not None:
            whole(f"strategy.{name}", number)
    training, augment, told = (run, None, []) if isinstance(run, Training) else _recorded(Path(run))
    size = training.batch_size if batch_size is None else batch_size
    optimizer = training.optimizer
    adam = optimizer.name.lower() in _ADAMS
    rate, options = optimizer.rate, dict(optimizer.options or {})
    if size != training.batch_size:
        factor, options, said = _for_batch(optimizer.name, size / training.batch_size, options)
        rate *= factor
        told.append(f"batches of {size} instead of {training.batch_size}: {said}")
    if adam and width != "none":
        ratio = _narrower(student, teacher)
        rate *= ratio
        said = f"rate x {ratio:.4g}, by how much less hidden matrices read (1 / width, Yang et al. 2022)"
        told.append(said if ratio != 1 else "no hidden matrix of a teacher's name is narrower: no rule for width")
    elif width != "none":
        told.append(f"{optimizer.name}: no rule for width is applied")
    changed = dataclasses.replace(optimizer, rate=rate, options=options or None)
    pieces = 1 if training.accumulate != "auto" and training.accumulate > size else training.accumulate
    training = dataclasses.replace(
        training, batch_size=size, epochs=epochs or training.epochs, optimizer=changed, device=device, accumulate=pieces
    )
    return Strategy(training=training, augment=augment, told=tuple(told))


def _for_batch(name: str, times: float, options: dict[str, Any]) -> tuple[float, dict[str, Any], str]:
    """The factor on the rate, the optimizer's options, and both in words."""
    if name.lower() == "sgd":
        return times, options, f"rate x {times:.4g}, in line with the batch (Goyal et al. 2017)"
    if name.lower() not in _ADAMS:
        return 1.0, options, f"no rule is known for {name}: the rate is the teacher's"
    root = math.sqrt(times)
    betas = tuple(1 - times * (1 - beta) for beta in options.get("betas", (0.9, 0.999)))
    said = f"rate x {root:.4g}, the root of the batch's"
    if min(betas) > 0:
        options = {**options, "betas": betas, "eps": options.get("eps", 1e-8) / root}
        return root, options, f"{said}, betas {betas[0]:.4g} and {betas[1]:.4g}, eps / {root:.4g} (Malladi et al. 2022)"
    return root, options, f"{said} (Malladi et al. 2022); betas stay, for so large a batch leaves them no memory"


def _narrower(student: nn.Module, teacher: nn.Module) -> float:
    """The teacher's width by the student's: the mean ratio of what hidden matrices of the same name read."""
    theirs = named_tensors(teacher)
    ratios = []
    for name, tensor in named_tensors(student).items():
        other = theirs.get(name)
        if other is None or tensor.dim() < 2 or other.dim() != tensor.dim():
            continue
        if tensor.shape[0] != other.shape[0] and tensor.shape[1] != other.shape[1]:  # hidden: neither input nor answer
            ratios.append(other.shape[1] / tensor.shape[1])
    return geometric_mean(ratios) if ratios else 1.0


def _recorded(folder: Path) -> tuple[Training, Augment | None, list[str]]:
    """The settings in a run folder, and what of them cannot be taken over."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise CheckpointError(problem(str(folder), "it holds no recipe.yaml", "name the folder of the teacher's run"))
    try:
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(problem(str(file), f"cannot be read ({error})", "restore it")) from None
    if not isinstance(plain, Mapping) or "training" not in plain:
        raise CheckpointError(problem(str(file), "it says nothing of a training", "name the folder of a training"))
    master = plain.get("teacher")
    trained_here = isinstance(master, Mapping) and "training" in master and not master.get("weights")
    part = master if trained_here and isinstance(master, Mapping) else plain
    training: Training = build(Training, part["training"], str(file))
    augment, said = _augmentation(part.get("augment"), str(file))
    return training, augment, said


def _augmentation(plain: Any, where: str) -> tuple[Augment | None, list[str]]:
    if not isinstance(plain, Mapping) or plain.get("kind") == "none":
        return None, []
    known = {f.name for f in dataclasses.fields(Augment)}
    if {*plain} - {"kind", "rules"} <= known:
        found: Augment = build(Augment, {k: v for k, v in plain.items() if k in known}, where)
        return found, []
    return None, ["the teacher's augmentation is a function that no record holds: give it to distill as `augment`"]


def sample_losses(
    teacher: nn.Module, data: Any, *, batch_size: int = 256, inputs: Inputs = None, outputs: Outputs = None
) -> Tensor:
    """The teacher's loss on each sample, in the order of the data: float32 [N] on the CPU.

    Cross entropy of class labels, the mean squared error of numbers; 0 where a label is unknown (negative).

    Raises:
        DataError: the data has no labels.
    """
    source = as_source(data, where="sample_losses")
    device = device_of(teacher)
    found = []
    with undisturbed(teacher):
        reader = Reader(teacher, inputs=inputs, outputs=outputs)
        for batch in Batches(source, batch_size=min(batch_size, len(source)), shuffle=False).epoch(0):
            if "y" not in batch:
                raise DataError(problem("sample_losses", "the data has no labels", "give (X, y)"))
            logits = reader({name: value.to(device) for name, value in batch.items()})["logits"].float().cpu()
            found.append(_losses(logits, batch["y"]))
        reader.close()
    return torch.cat(found)


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """[B, C] or [B, T, C] and labels [B] or [B, T] to [B]."""
    if y.is_floating_point() and y.shape != logits.shape[:1]:
        return (logits.reshape(y.shape) - y).square().flatten(1).mean(1)
    if y.is_floating_point():
        return (logits.reshape(len(y), -1) - y.reshape(len(y), -1)).square().mean(1)
    each = F.cross_entropy(logits.flatten(0, -2), y.flatten().long().clamp_min(0), reduction="none")
    each = torch.where(y.flatten() >= 0, each, torch.zeros(())).view(len(y), -1)
    return each.sum(1) / (y.view(len(y), -1) >= 0).sum(1).clamp_min(1)


def curriculum(losses: Tensor, shares: Sequence[float] = (1 / 3, 2 / 3, 1.0)) -> tuple[Tensor, ...]:
    """Positions of the samples for one stage after the other: of each share the easiest, by the teacher's loss.

    Train stage by stage: `distill(student, teacher, train=source.subset(part), …)`. Within a stage the order is drawn.

    Args:
        losses: of each sample [N], as `sample_losses` gives them; of equal ones the first is easier.
        shares: how much of the data each stage sees, rising, above 0 and up to 1.

    Source: Bengio et al. 2009, "Curriculum learning", section 3; the teacher's loss as difficulty: Hacohen & Weinshall
    2019, "On the power of curriculum learning in training deep networks", section 2.1.

    Raises:
        ConfigError: the shares do not rise within (0, 1], or a loss is not a number.
    """
    if losses.dim() != 1 or not len(losses) or not bool(losses.isfinite().all()):
        wrong = f"losses are {tuple(losses.shape)}, or not all finite"
        raise ConfigError(problem("curriculum.losses", wrong, "give one finite number a sample"))
    if not shares or any(a >= b for a, b in zip((0.0, *shares), shares, strict=False)) or shares[-1] > 1:
        raise ConfigError(problem("curriculum.shares", f"{tuple(shares)} do not rise to 1", "give such as (0.5, 1.0)"))
    order = losses.cpu().argsort(stable=True)
    return tuple(order[: max(1, math.floor(share * len(order) + 0.5))].sort().values for share in shares)
