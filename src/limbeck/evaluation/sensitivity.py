"""How much accuracy small noise costs, on the inputs and on the weights (a flat minimum loses little)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.seeds import derive
from limbeck.core.still import undisturbed
from limbeck.core.types import Named

__all__ = ["INPUT_SCALES", "WEIGHT_SCALES", "sensitivity"]

INPUT_SCALES = (0.05, 0.1, 0.2, 0.4, 0.8)
WEIGHT_SCALES = (0.02, 0.05, 0.1, 0.2, 0.4)


def sensitivity(
    model: nn.Module,
    batches: Iterable[Named],
    *,
    forward: Callable[[Named], Named],
    draws: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy under Gaussian noise of several sizes, means over `draws`, as plain data.

    Noise on inputs is in shares of the inputs' standard deviation; noise on weights is in shares of the root mean
    square of each parameter tensor, so that it does not depend on how a layer is scaled (in the spirit of Li et al.
    2018, "Visualizing the loss landscape of neural nets", section 4). Weights are bit-identical afterwards.

    Args:
        model: whose weights are disturbed.
        batches: labelled batches with `x` and `y`.
        forward: the model as a function of a batch.
        draws: noises that are averaged.
        seed: of the noise.
    """
    held = list(batches)
    sd = float(torch.cat([batch["x"].float().flatten() for batch in held]).std())
    with undisturbed(model):
        inputs = [
            _mean(_accuracy(forward, _noisy(held, scale * sd, derive(seed, "inputs", k))) for k in range(draws))
            for scale in INPUT_SCALES
        ]
        weights = [
            _mean(_disturbed(model, forward, held, scale, derive(seed, "weights", k)) for k in range(draws))
            for scale in WEIGHT_SCALES
        ]
    return {
        "inputs": {"scale": list(INPUT_SCALES), "accuracy": inputs},
        "weights": {"scale": list(WEIGHT_SCALES), "accuracy": weights},
    }


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)


def _noisy(held: Iterable[Named], sd: float, seed: int) -> Iterable[Named]:
    generator = torch.Generator().manual_seed(seed)
    for batch in held:
        x = batch["x"]
        yield {**batch, "x": x + sd * torch.randn(x.shape, generator=generator).to(x)}


def _disturbed(
    model: nn.Module, forward: Callable[[Named], Named], held: Iterable[Named], scale: float, seed: int
) -> float:
    generator = torch.Generator().manual_seed(seed)
    before: list[tuple[Tensor, Tensor]] = [(p, p.detach().clone()) for p in model.parameters()]
    try:
        for parameter, value in before:
            rms = value.float().square().mean().sqrt()
            noise = torch.randn(value.shape, generator=generator).to(value)
            parameter.copy_(value + scale * rms.to(value) * noise)
        return _accuracy(forward, held)
    finally:
        for parameter, value in before:
            parameter.copy_(value)


def _accuracy(forward: Callable[[Named], Named], held: Iterable[Named]) -> float:
    right = count = 0
    for batch in held:
        answers = forward(batch)["logits"].argmax(dim=1).cpu()
        known = batch["y"] >= 0
        right += int((answers == batch["y"])[known].sum())
        count += int(known.sum())
    return right / max(1, count)
