"""The most memory that one inference takes, by the allocator's own books."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from limbeck.core.still import undisturbed
from limbeck.evaluation.macs import Example, batch_size, call

__all__ = ["peak_memory"]


def peak_memory(model: nn.Module, example: Example) -> int | None:
    """Bytes that must be free to call the model on the example: what it holds, and the most that the call adds to it.

    What it holds is every parameter and buffer once, as it lies in memory. What the call adds is the highest sum, at
    any time, of what the call took from torch's allocator and had not given back: activations, the answer, and the
    scratch space of kernels. On a CPU torch's recorder reports each block taken and given back; on a CUDA device it is
    `torch.cuda.max_memory_allocated` beside what lay there before. The example itself is not counted, nor is what
    libraries take past torch's allocator. The call is made once before, so that what is set up only once is not
    counted. The resident size of the process would be no measure: it holds all of torch, and moves in steps that are
    larger than a small network.

    Returns:
        The bytes, or None where they cannot be had: on other devices, or while another profiler records.

    Raises:
        DataError: the example holds no sample.
        ModelError: the model cannot be called on it.
    """
    batch_size(example)
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    device = next((tensor.device for tensor in held.values()), torch.device("cpu"))
    with undisturbed(model):
        call(model, example)
        added: int | None = None
        if device.type == "cuda":
            added = _on_cuda(device, lambda: call(model, example))
        elif device.type == "cpu":
            added = _on_cpu(lambda: call(model, example))
    return None if added is None else added + sum(t.numel() * t.element_size() for t in held.values())


def _on_cuda(device: torch.device, run: Callable[[], object]) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(run: Callable[[], object]) -> int | None:
    """The crest of blocks taken less blocks given back, in the order in which they were.

    This recorder is the older of torch's two. The newer one counts the same, and writes lines of its own to stderr.
    """
    recorder: Any = torch.autograd  # its names are not in torch's stubs
    if not hasattr(recorder, "_enable_profiler_legacy") or recorder._profiler_enabled():
        return None
    settings = torch._C._profiler._ExperimentalConfig()
    memory = recorder.ProfilerConfig(recorder.ProfilerState.CPU, False, True, False, False, False, settings)
    recorder._enable_profiler_legacy(memory)
    try:
        run()
    finally:
        threads = recorder._disable_profiler_legacy()
    live = most = 0
    for event in (event for events in threads for event in events if event.kind() == "memory_alloc"):
        live += event.cpu_memory_usage()
        most = max(most, live)
    return most
