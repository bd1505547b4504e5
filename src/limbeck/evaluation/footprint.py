"""What a model weighs, computes and takes: parameters, bytes, multiply-accumulates, latency."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.core.errors import ConfigError, ModelError, problem
from limbeck.core.setting import setting
from limbeck.core.still import undisturbed
from limbeck.evaluation.macs import Example, batch_size, call, count_macs

__all__ = ["Footprint", "Latency", "compare_latency", "count_macs", "footprint"]


@setting
class Latency:
    """Seconds for one call on a batch: the median and the 10th and 90th percentile of `repeats` calls."""

    p50: float
    p10: float
    p90: float
    batch: int | None
    threads: int
    repeats: int


@setting
class Footprint:
    """What a model weighs (`parameters`, `bytes`), computes per example (`macs`) and takes (`latency`).

    `parameters` are numbers, tied ones counted once; `trainable` those that require a gradient; `bytes` what
    parameters and persistent buffers take as they are stored.
    """

    parameters: int
    trainable: int
    bytes: int
    macs: int
    latency: Latency | None


def footprint(
    model: nn.Module, example: Example, *, repeats: int = 30, warmup: int = 5, latency: bool = True
) -> Footprint:
    """Measure a model on an example batch, in evaluation mode, and leave it as it was.

    `example` is a tensor, a tuple of tensors, or tensors by keyword, on the model's device, samples on the first
    axis. Packed weights of torch's quantised layers count as parameters and bytes, at their stored width.

    Raises:
        ConfigError: repeats or warm-up cannot be done.
        DataError: the example holds no sample.
        ModelError: the model has no sizes yet, or cannot be called on the example.
    """
    _check_repeats(repeats, warmup)
    batch = batch_size(example)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ModelError(problem("footprint", f"{name} has no size yet", "call the model once on a batch first"))
    parameters = list(model.parameters())
    kept, packed = _stored(model)
    macs = count_macs(model, example)
    timed = None
    if latency:
        with undisturbed(model):
            calls = {"model": lambda: call(model, example)}
            timed = compare_latency(calls, repeats, warmup=warmup, batch=batch)["model"]
    return Footprint(
        parameters=sum(p.numel() for p in (*parameters, *packed)),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        bytes=sum(t.numel() * t.element_size() for t in (*kept, *packed)),
        macs=macs,
        latency=timed,
    )


def compare_latency(
    models: Mapping[str, Callable[[], object]], repeats: int = 30, *, warmup: int = 5, batch: int | None = None
) -> dict[str, Latency]:
    """Seconds a call, by name, measured in turns so that the machine's noise hits all alike.

    After `warmup` rounds, each of `repeats` rounds calls every one once, in an order that turns round each time, with
    the garbage collector off; pending work of a GPU is waited for. `batch` is only noted.

    Raises:
        ConfigError: repeats or warm-up cannot be done.
    """
    _check_repeats(repeats, warmup)
    names = list(models)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.no_grad():
            for index in range(-warmup, repeats):
                for name in names if index % 2 else names[::-1]:
                    taken = _time(models[name])
                    if index >= 0:
                        seconds[name].append(taken)
    finally:
        if collecting:
            gc.enable()
    return {name: _latency(taken, batch, repeats) for name, taken in seconds.items()}


def _latency(seconds: list[float], batch: int | None, repeats: int) -> Latency:
    p10, p50, p90 = (float(value) for value in np.percentile(seconds, (10, 50, 90)))
    return Latency(p50=p50, p10=p10, p90=p90, batch=batch, threads=torch.get_num_threads(), repeats=repeats)


def _time(run: Callable[[], object]) -> float:
    _wait()
    start = perf_counter()
    run()
    _wait()
    return perf_counter() - start


def _wait() -> None:
    # A GPU answers before it is done. One that nobody has used yet is left asleep.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own gap
        torch.cuda.synchronize()


def _check_repeats(repeats: int, warmup: int) -> None:
    if repeats < 1 or warmup < 0:
        raise ConfigError(
            problem(
                "latency",
                f"repeats is {repeats}, warmup is {warmup}",
                "give repeats of 1 or more and a warm-up of 0 or more",
            )
        )


def _stored(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The distinct tensors of the state dict, and those packed inside quantised layers' entries."""
    kept: dict[int, Tensor] = {}
    packed: dict[int, Tensor] = {}
    # With `keep_vars` the entries are the tensors themselves, so that tied ones are one by identity.
    for value in model.state_dict(keep_vars=True).values():
        if isinstance(value, Tensor):
            kept[id(value)] = value
        else:
            packed |= {id(tensor): tensor for tensor in _unpack(value)}
    return list(kept.values()), list(packed.values())


def _unpack(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, torch.ScriptObject):
        return _unpack(value.__getstate__())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _unpack(part)]
    return []
