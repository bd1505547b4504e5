"""Batch-norm statistics measured anew, which a cut or a merge has made stale."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from limbeck.core.errors import DataError, problem
from limbeck.core.types import Named

__all__ = ["reestimate"]

_Norm = nn.modules.batchnorm._BatchNorm


def reestimate(model: nn.Module, batches: Iterable[Named], *, forward: Callable[[nn.Module, Named], Any]) -> nn.Module:
    """A copy of `model` whose batch norms hold the mean and variance of what now reaches them. No weight is trained.

    Every batch counts alike: kept are the averages over batches of mean and unbiased variance, as
    `nn.BatchNorm` with `momentum=None` keeps them. Layers are measured one behind the other's *batch* statistics, in
    one pass, and everything else (dropout) is in evaluation mode.

    Args:
        model: stays as it is.
        batches: unlabelled data is enough; batches of equal size, at least one.
        forward: calls a model with a batch.

    Raises:
        DataError: there are no batches.
    """
    fresh = copy.deepcopy(model)
    norms = [module for module in fresh.modules() if isinstance(module, _Norm) and module.running_mean is not None]
    if not norms:
        return fresh
    flags = [(module, module.training) for module in fresh.modules()]
    momenta = [norm.momentum for norm in norms]
    fresh.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    seen = 0
    with torch.no_grad():
        for batch in batches:
            seen += 1
            forward(fresh, batch)
    if not seen:
        raise DataError(problem("reestimate", "there are no batches", "give at least one"))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, flag in flags:
        module.training = flag
    return fresh
