"""How much of a model's accuracy is left on harder inputs: corrupted ones, and ones that were made to fool it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import ConfigError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.seeds import derive
from limbeck.core.types import Named

__all__ = ["CORRUPTIONS", "EPSILONS", "attack", "corrupt", "robustness"]

Forward = Callable[[Named], Named]
Kind = Literal["noise", "blur", "contrast", "shift"]
Aim = Literal["label", "margin"]

CORRUPTIONS: dict[str, tuple[float, ...]] = {
    "noise": (0.04, 0.08, 0.12, 0.18, 0.26),
    "blur": (0.01, 0.02, 0.03, 0.045, 0.06),
    "contrast": (0.75, 0.5, 0.35, 0.2, 0.1),
    "shift": (0.03, 0.06, 0.1, 0.15, 0.2),
}
"""Five strengths each: sd of Gaussian noise in pixel units (0..1), sd of a Gaussian blur and distance of a shift as
shares of the image side, and what is left of the contrast. In the spirit of Hendrycks & Dietterich 2019, but relative
to the side, so that small images can be corrupted too."""

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
_STEPS = 10
_ATTACKS: tuple[tuple[str, int, Aim], ...] = (
    ("fgsm", 1, "label"),
    ("pgd", _STEPS, "label"),
    ("margin", _STEPS, "margin"),
)


class _Scale(NamedTuple):
    """From the model's inputs to units in which strengths are stated, and back: pixels, or standard deviations."""

    mean: Tensor
    std: Tensor
    low: float
    high: float


def corrupt(pixels_BCHW: Tensor, kind: Kind, strength: int, *, ids: Tensor, seed: int = 0) -> Tensor:
    """Images in 0..1 with one corruption of strength 1 to 5; what is drawn depends on seed and sample id alone.

    Raises:
        ConfigError: there is no such corruption or strength.
    """
    if kind not in CORRUPTIONS or not 1 <= strength <= 5:
        raise ConfigError(
            problem("corrupt", f"{kind!r} of strength {strength}", f"give {', '.join(CORRUPTIONS)}, 1 to 5")
        )
    amount = CORRUPTIONS[kind][strength - 1]
    side = max(pixels_BCHW.shape[-2:])
    if kind == "noise":
        return (pixels_BCHW + amount * _noise(pixels_BCHW, ids, derive(seed, kind))).clamp(0, 1)
    if kind == "contrast":
        mean = pixels_BCHW.mean(dim=(1, 2, 3), keepdim=True)
        return mean + amount * (pixels_BCHW - mean)
    if kind == "blur":
        return _blur(pixels_BCHW, amount * side)
    angle = 2 * math.pi * _uniform(ids, derive(seed, kind)).to(pixels_BCHW)
    return _shift(pixels_BCHW, amount * side * torch.stack([angle.cos(), angle.sin()], dim=1))


def attack(
    forward: Forward, batch: Named, epsilon: float, *, steps: int, mean: Tensor, std: Tensor,
    low: float = -math.inf, high: float = math.inf, seed: int = 0, aim: Aim = "label",
) -> Tensor:  # fmt: skip
    """The inputs `x` moved by at most `epsilon` a number, in units of (x * std + mean), to make the label wrong.

    `aim` is to raise the label's cross-entropy, or the margin by which another class's logit is above it. The latter is
    blind to the scale of logits: where a softmax is so sharp that its gradient rounds to nothing, as after defensive
    distillation, the first finds no way and the second does (Carlini & Wagner 2017, sections V and VIII).

    One step is FGSM (Goodfellow et al. 2015, section 4); more are PGD with a random start and steps of
    2.5 epsilon / steps (Madry et al. 2018, section 2.1). Moved inputs stay within low..high. Parameters gather no
    gradient.
    """
    start = batch["x"].detach() * std + mean
    moved = start.clone()
    if steps > 1:
        # In -1..1, a draw for each number of each sample.
        moved = (start + epsilon * (2 * _uniform_like(start, batch["id"], seed) - 1)).clamp(low, high)
    step = epsilon if steps == 1 else 2.5 * epsilon / steps
    for _ in range(steps):
        with torch.enable_grad():
            leaf = moved.detach().requires_grad_(True)
            logits = forward({**batch, "x": (leaf - mean) / std})["logits"]
            loss = _aimed(logits.float(), batch["y"].to(logits.device), aim)
            (slope,) = torch.autograd.grad(loss, leaf)
        moved = moved + step * slope.sign()
        moved = torch.minimum(torch.maximum(moved, start - epsilon), start + epsilon).clamp(low, high)
    return (moved.detach() - mean) / std


def _aimed(logits_BC: Tensor, y: Tensor, aim: Aim) -> Tensor:
    """What an attack raises, summed over the labelled samples."""
    if aim == "label":
        return F.cross_entropy(logits_BC, y, ignore_index=-1, reduction="sum")
    known = y >= 0
    some, own = logits_BC[known], y[known].unsqueeze(1)
    others = some.scatter(1, own, -torch.inf).amax(1)
    return (others - some.gather(1, own).squeeze(1)).sum() + 0 * logits_BC.sum()


def robustness(
    forward: Forward, batches: Iterable[Named], *, normalize: Normalize | None = None, seed: int = 0
) -> dict[str, Any]:
    """Accuracy on clean samples, under corruptions of images, and under FGSM and PGD (two aims), as plain data.

    Images [B, C, H, W] are corrupted and attacked as pixels in 0..1, from which `normalize` made them. Other inputs
    get noise alone, and for them strengths and epsilons are in standard deviations of each feature.

    Args:
        forward: the model in evaluation mode, from a batch to `logits` [B, classes], differentiable.
        batches: labelled batches with `x`, `y` and `id`.
        normalize: what was applied to the inputs.
        seed: of all draws.
    """
    held = [dict(batch) for batch in batches]
    scale = _scale(held, normalize)
    images = held[0]["x"].dim() == 4
    said: dict[str, Any] = {"clean": _accuracy(forward, held, lambda batch: batch["x"]), "corruptions": {}}
    for kind in CORRUPTIONS if images else ("noise",):
        said["corruptions"][kind] = [
            _accuracy(forward, held, lambda batch, kind=kind, level=level: _spoilt(batch, scale, kind, level, seed))
            for level in range(1, 6)
        ]
    said["attacks"] = {
        name: {
            "epsilon": list(EPSILONS),
            "accuracy": [
                _accuracy(
                    forward,
                    held,
                    lambda batch, e=e, s=steps, a=aim: _fooled(forward, batch, scale, e, steps=s, aim=a, seed=seed),
                )
                for e in EPSILONS
            ],
        }
        for name, steps, aim in _ATTACKS
    }
    return said


def _scale(held: list[dict[str, Tensor]], normalize: Normalize | None) -> _Scale:
    x = held[0]["x"]
    if x.dim() == 4:
        if normalize is None:
            return _Scale(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 0.0, 1.0)
        mean, std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (normalize.mean, normalize.std))
        return _Scale(mean, std, 0.0, 1.0)
    whole = torch.cat([batch["x"] for batch in held]).float()
    sd = whole.std(dim=0, correction=0)
    # One unit is one standard deviation; a constant feature has none and stays as it is.
    return _Scale(torch.zeros(()), 1 / torch.where(sd > 0, sd, 1e-20), -math.inf, math.inf)


def _spoilt(batch: Named, scale: _Scale, kind: Any, level: int, seed: int) -> Tensor:
    x = batch["x"].float()
    if x.dim() == 4:
        pixels = (x * scale.std + scale.mean).clamp(0, 1)
        return (corrupt(pixels, kind, level, ids=batch["id"], seed=seed) - scale.mean) / scale.std
    amount = 5 * CORRUPTIONS["noise"][level - 1]
    return x + amount * _noise(x, batch["id"], derive(seed, kind)) / scale.std


def _fooled(
    forward: Forward, batch: Named, scale: _Scale, epsilon: float, *, steps: int, aim: Aim, seed: int
) -> Tensor:
    return attack(forward, batch, epsilon, steps=steps, mean=scale.mean, std=scale.std, low=scale.low,
                  high=scale.high, seed=seed, aim=aim)  # fmt: skip


def _accuracy(forward: Forward, held: Iterable[Mapping[str, Tensor]], change: Callable[..., Tensor]) -> float:
    right = count = 0
    for batch in held:
        x = change(batch)
        with torch.no_grad():
            answers = forward({**batch, "x": x})["logits"].argmax(dim=1).cpu()
        known = batch["y"] >= 0
        right += int((answers == batch["y"])[known].sum())
        count += int(known.sum())
    return right / max(1, count)


def _generator(sample: int, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, sample) % 2**63)


def _noise(like: Tensor, ids: Tensor, seed: int) -> Tensor:
    return torch.stack([torch.randn(like.shape[1:], generator=_generator(i, seed)) for i in ids.tolist()]).to(like)


def _uniform_like(like: Tensor, ids: Tensor, seed: int) -> Tensor:
    return torch.stack([torch.rand(like.shape[1:], generator=_generator(i, seed)) for i in ids.tolist()]).to(like)


def _uniform(ids: Tensor, seed: int) -> Tensor:
    return torch.stack([torch.rand((), generator=_generator(i, seed)) for i in ids.tolist()])


def _blur(pixels: Tensor, sd: float) -> Tensor:
    reach = max(1, min(math.ceil(3 * sd), min(pixels.shape[-2:]) - 1))
    at = torch.arange(-reach, reach + 1, dtype=pixels.dtype, device=pixels.device)
    weights = torch.exp(-(at**2) / (2 * sd**2))
    weights = weights / weights.sum()
    channels = pixels.shape[1]
    wide = F.pad(pixels, (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(wide, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def _shift(pixels: Tensor, by_B2: Tensor) -> Tensor:
    """Moved by (right, down) pixels, bilinearly; what comes in from outside is the border."""
    height, width = pixels.shape[-2:]
    theta = torch.zeros(len(pixels), 2, 3, dtype=pixels.dtype, device=pixels.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, 0, 2] = -2 * by_B2[:, 0] / width
    theta[:, 1, 2] = -2 * by_B2[:, 1] / height
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
