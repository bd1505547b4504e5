"""Look at a module without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["buffers_as_now", "undisturbed"]


@contextmanager
def undisturbed(*things: object) -> Iterator[None]:
    """Evaluation mode and no gradient inside; every module's own training flag and every buffer restored after.

    What is no module is passed over. Buffers are restored by value and by identity, for modules that count their
    calls or replace a buffer in `forward`, whatever the mode.
    """
    modules = {id(m): m for thing in things if isinstance(thing, nn.Module) for m in thing.modules()}.values()
    flags = [(module, module.training) for module in modules]
    restore = buffers_as_now(modules)
    try:
        # Set one by one: `eval()` may be overridden, and restoring must undo exactly what was done.
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag
        restore()


def buffers_as_now(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """What brings the modules' own buffers back to what they are now, by value and by identity."""
    buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = [
        (module, name, buffer, buffer.detach().clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]

    def restore() -> None:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                if not buffer.is_meta and not torch.equal(buffer, before):  # on meta there is no value to restore
                    buffer.copy_(before)

    return restore
