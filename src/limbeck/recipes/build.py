"""The networks of a recipe: built from their settings and a seed, and filled from files."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from limbeck.core.errors import ConfigError, DataError, problem
from limbeck.core.seeds import derive
from limbeck.data import Source
from limbeck.job import evaluation
from limbeck.recipes.base import Recipe, read_weights
from limbeck.teachers import ModuleTeacher

__all__ = ["built", "filled", "loaded_teacher", "shape_of"]


def shape_of(source: Source) -> tuple[int, ...]:
    """The shape of one sample.

    Raises:
        DataError: it is not one input.
    """
    batch = next(iter(evaluation(source).epoch(0)))
    if "x" not in batch:
        raise DataError(problem("data", f"it has the columns {', '.join(batch)}", "a recipe's data has one input, x"))
    return tuple(batch["x"].shape[1:])


def built(model: Any, source: Source, seed: int, who: str) -> nn.Module:
    """The network with initial weights that depend on the seed and on nothing that ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights", who))
        network: nn.Module = model.build(shape_of(source), source.classes)
    return network


def loaded_teacher(recipe: Recipe, source: Source) -> ModuleTeacher:
    """The teacher of a recipe that names a file of weights.

    Raises:
        DataError: the file is missing, damaged, or holds more than tensors.
        ConfigError: it holds the weights of another network.
    """
    assert recipe.teacher.weights is not None
    model = built(recipe.teacher.model, source, recipe.seed, "teacher")
    filled(model, recipe.teacher.weights)
    return ModuleTeacher(model, normalize=recipe.teacher.normalize)


def filled(model: nn.Module, path: str) -> None:
    """Put the weights of a file into a network.

    Raises:
        DataError: the file is missing, damaged, or holds more than tensors.
        ConfigError: it holds the weights of another network.
    """
    tensors = read_weights(path, "teacher.weights")
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, AttributeError) as error:
        wrong = f"{path!r} holds the weights of another network ({str(error).splitlines()[-1].strip()})"
        mend = "set teacher.model to the network they belong to"
        raise ConfigError(problem("teacher.weights", wrong, mend)) from None
