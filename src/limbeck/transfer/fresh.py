"""Fresh random weights for a module of any kind, by the rules that its own parts were made with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["refresh"]


def refresh(model: nn.Module, seed: int) -> None:
    """Draw all weights anew, in place; the global random state stays as it is.

    Each module's own `reset_parameters` is called, inner ones first, then `_init_weights` of a Hugging Face model.
    What neither changes and is not one constant (position embeddings, class tokens, weights behind a parametrisation)
    is drawn from a normal distribution with the mean and spread that it had. Running statistics begin again.
    """
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.is_floating_point()}
    with _seeded(model, seed), torch.no_grad():
        for module in reversed(list(model.modules())):
            for name in ("reset_parameters", "_reset_parameters"):
                if callable(reset := getattr(module, name, None)):
                    reset()
                    break
        _as_hugging_face(model, None)
        for name, tensor in model.named_parameters():
            if name in before and torch.equal(tensor, before[name]):
                _redraw(tensor, before[name])


def _as_hugging_face(module: nn.Module, init: Any) -> None:
    """Children first; a model inside a model by its own rule, as transformers does."""
    init = getattr(module, "_init_weights", init) if hasattr(module, "config") else init
    for child in module.children():
        _as_hugging_face(child, init)
    if init is not None:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            vars(tensor).pop("_is_hf_initialized", None)  # its mark for "came from a file, leave it"
        init(module)


def _redraw(tensor: Tensor, before: Tensor) -> None:
    spread = before.double().std(unbiased=False) if before.numel() > 1 else before.new_zeros(())
    if float(spread) > 0:
        drawn = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
        tensor.copy_(drawn.normal_(float(before.double().mean()), float(spread)))


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """The generators that a draw on the model's devices uses, seeded inside and as before after."""
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
