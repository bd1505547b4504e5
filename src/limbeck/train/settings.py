"""How a student is trained: everything but the data, the models and what is matched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from limbeck.core.check import not_negative, one_of, positive, whole
from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.core.schedules import SCHEDULES, OneCycle
from limbeck.core.setting import setting, tagged
from limbeck.train.tuning import UNTUNED, Tuner, Tuning

if TYPE_CHECKING:
    from limbeck.core.schedules import Schedule as AnySchedule
else:
    AnySchedule = tagged(SCHEDULES)

__all__ = ["TRACKERS", "Optimizer", "Training"]

TRACKERS = ("tensorboard", "wandb", "mlflow")


@setting
class Optimizer:
    """Any optimizer of `torch.optim`, by name. The default is SGD with Nesterov momentum 0.9.

    `rate` is the base learning rate, which the schedule multiplies. Weight decay is kept off biases and
    normalisation (parameters of one axis), where it only costs accuracy (He et al. 2019, "Bag of tricks", section 3.1).
    """

    name: str = "SGD"
    rate: float = 0.1
    weight_decay: float = 5e-4
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown optimizer and impossible numbers."""
        positive("optimizer.rate", self.rate)
        not_negative("optimizer.weight_decay", self.weight_decay)
        known = _optimizers()
        if self.name.lower() not in known:
            names = (cls.__name__ for cls in known.values())
            raise ConfigError(problem("optimizer.name", f"nothing is called {self.name!r}", nearest(self.name, names)))

    def build(self, model: nn.Module, tuner: Tuner = UNTUNED) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters of `model`, in groups of one rate and one decay, fastest first.

        A model whose `apart` lists modules that learn each for itself has groups for each, with its number as `part`.

        Raises:
            ConfigError: the optimizer does not take one of the options.
        """
        apart = getattr(getattr(model, "model", model), "apart", ())
        part_of = {id(p): number for number, module in enumerate(apart, 1) for p in module.parameters()}
        parted: dict[tuple[float, bool, int], list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.requires_grad:
                decays = parameter.dim() > 1 and not tuner.anchored(parameter)
                key = (tuner.factor(parameter), decays, part_of.get(id(parameter), 0))
                parted.setdefault(key, []).append(parameter)
        groups = [
            {"params": parted[key], "weight_decay": key[1] * self.weight_decay, "lr": key[0] * self.rate}
            | ({"part": key[2]} if apart else {})
            for key in sorted(parted, reverse=True)
        ]
        cls = _optimizers()[self.name.lower()]
        options = dict(self.options or {})
        if cls is torch.optim.SGD:
            options = {"momentum": 0.9, "nesterov": True, **options}
            options["nesterov"] = options["nesterov"] and options["momentum"] > 0
        try:
            built: torch.optim.Optimizer = cls(groups, lr=self.rate, **options)
        except (TypeError, ValueError) as error:
            mend = f"see the options of torch.optim.{cls.__name__}"
            raise ConfigError(problem("optimizer.options", str(error), mend)) from None
        return built


def _optimizers() -> dict[str, Any]:
    every: Iterable[Any] = (getattr(torch.optim, name) for name in torch.optim.__all__)
    kinds = (cls for cls in every if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer))
    return {cls.__name__.lower(): cls for cls in kinds if cls is not torch.optim.LBFGS}


@setting
class Training:
    """How a student is trained.

    Args:
        epochs: passes over the training data.
        batch_size: samples an optimizer step, over all processes; `accumulate` cuts it into that many micro-batches to
            save memory and changes nothing else. With "auto" they are halved as often as memory runs out.
        optimizer: by name, with its base rate.
        schedule: the factor on the rate over the run.
        clip: the largest gradient norm, over all trained parameters, heads included; None leaves gradients alone.
        precision: "bfloat16" or "float16" runs the forward passes under autocast, weights stay float32; the latter
            scales the loss, and leaves out steps until the scale suits. "auto" is bfloat16 where the device multiplies
            it itself, else float32; which it was is on record.
        channels_last: lay convolutions out for it.
        patience: stop after this many epochs in which `monitor` on the validation split did not improve.
        monitor: "accuracy" (higher is better) or "nll" (lower is).
        keep: which weights the run ends with: of the "last" epoch or of the "best" one on validation.
        ema: decay of a moving average of the weights, such as 0.999; the run is scored with the average and ends with
            it. None leaves it out.
        max_seconds: stop after the step that passes this time.
        checkpoint_seconds: save at the first log step after so many seconds; 0 saves at each. The end is always saved.
        checkpoints: how many of the last ones are kept while the run goes on; the best weights are kept beside them.
        non_finite: what follows a step whose loss or gradient is NaN or infinite: "stop" the run, or "skip" the step.
            Either way the terms and samples are on record.
        device: "auto", or a torch device.
        parallel: how several processes share the student: "replicate" it (DDP), "shard" it (FSDP2), or do as the
            launcher asks ("auto"). One process does not care.
        gather: terms that relate samples to each other see those of all processes, not only each its own.
        compile: put the student through `torch.compile` for training.
        trackers: where else numbers go: "tensorboard", "wandb" (offline unless WANDB_MODE says otherwise), "mlflow".
        log_steps: how often numbers are read out and written down.
        tuning: which parts learn, from when, and how fast; None trains all alike.
        target: stop at the end of the epoch in which `monitor` on the validation split has reached this.
    """

    epochs: int = 10
    batch_size: int = 128
    accumulate: int | Literal["auto"] = 1
    optimizer: Optimizer = Optimizer()
    schedule: AnySchedule = OneCycle()
    clip: float | None = 1.0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    patience: int | None = None
    monitor: Literal["accuracy", "nll"] = "accuracy"
    keep: Literal["last", "best"] = "last"
    ema: float | None = None
    max_seconds: float | None = None
    checkpoint_seconds: float = 30.0
    checkpoints: int = 2
    non_finite: Literal["stop", "skip"] = "stop"
    device: str = "auto"
    parallel: Literal["auto", "replicate", "shard"] = "auto"
    gather: bool = False
    compile: bool = False
    trackers: tuple[str, ...] = ()
    log_steps: int = 50
    tuning: Tuning | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        """Refuse impossible settings, by name."""
        whole("epochs", self.epochs)
        whole("batch_size", self.batch_size)
        if self.accumulate != "auto":
            whole("accumulate", self.accumulate)
        whole("log_steps", self.log_steps)
        whole("checkpoints", self.checkpoints)
        if self.accumulate != "auto" and self.accumulate > self.batch_size:
            wrong = f"{self.accumulate} micro-batches cannot be cut from a batch of {self.batch_size}"
            raise ConfigError(problem("accumulate", wrong, "give at most the batch size"))
        for name in ("clip", "max_seconds"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        if self.patience is not None:
            whole("patience", self.patience)
        not_negative("checkpoint_seconds", self.checkpoint_seconds)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(problem("ema", f"{self.ema} is no decay", "give a number between 0 and 1, such as 0.999"))
        for name in self.trackers:
            one_of("trackers", name, TRACKERS)
        one_of("precision", self.precision, ("auto", "float32", "bfloat16", "float16"))
        one_of("non_finite", self.non_finite, ("stop", "skip"))
        one_of("parallel", self.parallel, ("auto", "replicate", "shard"))
        one_of("monitor", self.monitor, ("accuracy", "nll"))
        one_of("keep", self.keep, ("last", "best"))
        if not callable(self.schedule):
            mend = "give one such as limbeck.schedules.OneCycle()"
            raise ConfigError(problem("schedule", f"{self.schedule!r} is no schedule", mend))
        if self.tuning is not None:
            self.tuning.check_epochs(self.epochs)
        if not isinstance(self.optimizer, Optimizer):
            mend = 'give one such as limbeck.Optimizer(name="AdamW", rate=1e-3)'
            raise ConfigError(problem("optimizer", f"{self.optimizer!r} is no optimizer setting", mend))
        if self.device != "auto":
            try:
                torch.device(self.device)
            except RuntimeError:
                wrong = f"{self.device!r} is no device"
                raise ConfigError(problem("device", wrong, 'give "auto", "cpu" or "cuda"')) from None

    @property
    def pieces(self) -> int:
        """Micro-batches a step; where memory decides, one to begin with."""
        return 1 if self.accumulate == "auto" else self.accumulate

    @property
    def micro_batch(self) -> int:
        """Samples in one forward pass, over all processes."""
        return -(-self.batch_size // self.pieces)
