"""What can be done to a network's plain layers without changing its answers beyond rounding, found by one dry run.

Three things: batch norm folded into the convolution or linear layer before it (a batch norm that has stopped learning
is an affine map per channel, and so is the end of such a layer), weights laid out for channels-last convolutions, and
weights cast once to the type that autocast would cast them to at every call. The dry run also finds layers that feed
one other layer and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.core.still import undisturbed
from limbeck.core.types import Named

__all__ = ["Chain", "Pair", "Survey", "cast", "fold", "lay_out", "survey"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Pair(NamedTuple):
    """A layer and the batch norm that alone reads what it returns, by module path."""

    layer: str
    norm: str


class Chain(NamedTuple):
    """A layer and the layer that alone reads what it returns, by module path."""

    first: str
    second: str


@dataclass(frozen=True)
class Survey:
    """What a dry run has shown.

    `macs` are multiply-accumulates a sample: those of convolutions and matrix products, so at least as many as there
    are. `plain` are the paths of layers whose weights may be replaced, because nothing else reads them. `chains` are
    layers one of which gives its answer to the other as it is, and to nobody else.
    """

    macs: int
    pairs: tuple[Pair, ...]
    plain: tuple[str, ...]
    chains: tuple[Chain, ...] = ()


def survey(model: nn.Module, run: Callable[[], Named], *, samples: int, tapped: Iterable[str]) -> Survey:
    """Watch `run`, which calls the model once on `samples` samples; nothing of the model changes.

    Args:
        model: the module to look at, in the mode that it answers in.
        run: calls it and returns all that is read of it: outputs and taps.
        samples: how many samples that is.
        tapped: names that are read (`path`, `path@in`, `path@weight`); those layers are left alone.
    """
    taken = {name.partition("@")[0] for name in tapped}
    free = {path: module for path, module in model.named_modules() if path not in taken}
    layers = {path: module for path, module in free.items() if type(module) in _LAYERS and _ordinary(module)}
    norms = {path: module for path, module in free.items() if type(module) in _NORMS and _ordinary(module)}
    learning = {path for path, module in norms.items() if module.training}
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    notes = _Notes()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(undisturbed(model))
        for path, module in layers.items():
            notes.weights[id(module.weight)] = path
            stack.callback(module.register_forward_hook(partial(notes.returned, path), with_kwargs=True).remove)
            stack.callback(module.register_forward_pre_hook(partial(notes.fed, path), with_kwargs=True).remove)
        for path, module in norms.items():
            stack.callback(module.register_forward_pre_hook(partial(notes.normed, path), with_kwargs=True).remove)
        # The fused encoder layer is one operation that calls no inner layer and counts as no work.
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        with _Watcher(notes):
            signal = run()
    alone = [path for path, module in layers.items() if all(owners[id(p)] == 1 for p in module.parameters())]
    plain = tuple(path for path in alone if 0 < notes.calls[path] == notes.weight_uses[path])
    alone_read = notes.read_once(signal.values())
    pairs = tuple(
        Pair(path, norm)
        for path, norm in alone_read
        if path in plain
        and norm in norms
        and norm not in learning
        and all(owners[id(p)] == 1 for p in norms[norm].parameters())
        and _fits(layers[path], norms[norm], notes.inputs[norm])
    )
    chains = tuple(Chain(a, b) for a, b in alone_read if a in plain and b in plain)
    return Survey(round(notes.flops / 2 / max(samples, 1)), pairs, plain, chains)


def fold(model: nn.Module, pairs: Sequence[Pair]) -> None:
    """Fold each batch norm into its layer; the norm then returns what it is given. Computed in float64.

    The parameters are replaced and not written, so those that are shared with another copy stay as they are.
    """
    for pair in pairs:
        layer, norm = model.get_submodule(pair.layer), model.get_submodule(pair.norm)
        mean, var, weight, bias = (_double(getattr(norm, n)) for n in ("running_mean", "running_var", "weight", "bias"))
        assert isinstance(layer.weight, Tensor)
        assert mean is not None
        assert var is not None
        assert isinstance(norm.eps, float)
        folded = fuse_conv_bn_weights(
            layer.weight.detach().double(),
            _double(layer.bias),
            mean,
            var,
            norm.eps,
            weight,
            bias,
            transpose=isinstance(layer, _TRANSPOSED),
        )
        _replace(layer, *(p.detach().to(layer.weight.dtype) for p in folded))
        # Its class and not its place changes: it may stand in several places, and be asked for its attributes.
        norm.__class__ = nn.Identity


def lay_out(model: nn.Module, paths: Sequence[str]) -> None:
    """Lay out the weights of 2-d convolutions channels-last; torch then runs all between them so."""
    for layer in (model.get_submodule(path) for path in paths):
        if isinstance(layer.weight, Tensor) and layer.weight.dim() == 4:
            _replace(layer, layer.weight.detach().contiguous(memory_format=torch.channels_last), layer.bias)


def cast(model: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """Cast the weights of these layers, for use under autocast to the same type, which then has nothing to cast."""
    for layer in (model.get_submodule(path) for path in paths):
        assert isinstance(layer.weight, Tensor)
        bias = layer.bias.detach().to(dtype) if isinstance(layer.bias, Tensor) else None
        _replace(layer, layer.weight.detach().to(dtype), bias)


@dataclass
class _Notes:
    """What a dry run writes down. Tensors are known by identity, so those that matter are held on to."""

    outputs: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[int, str] = field(default_factory=dict)
    uses: Counter[int] = field(default_factory=Counter)
    weight_uses: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    flops: int = 0

    def returned(self, path: str, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        """A layer has answered."""
        self.calls[path] += 1
        if isinstance(output, Tensor):
            self.outputs[id(output)] = (path, output)

    def normed(self, path: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """A norm is about to be called."""
        self.calls[path] += 1
        self.fed(path, module, args, kwargs)

    def fed(self, path: str, _module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """A module is about to be given this."""
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if first is not None:
            self.inputs[path] = first

    def read_once(self, read: Iterable[Any]) -> list[tuple[str, str]]:
        """Layers called once, with the module that alone reads what they return; `read` is what the model returns."""
        answers = {id(value) for value in read}
        return [
            (path, reader)
            for reader, x in self.inputs.items()
            if (path := self.outputs.get(id(x), ("", x))[0])
            and self.calls[path] == self.calls[reader] == self.uses[id(x)] == 1
            and id(x) not in answers
        ]

    def used(self, values: Iterable[Any]) -> None:
        """An operation has been given these."""
        for value in values:
            if id(value) in self.outputs:
                self.uses[id(value)] += 1
            elif id(value) in self.weights:
                self.weight_uses[self.weights[id(value)]] += 1


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation: who reads a tensor, whether through a module or not, and how much work there is."""

    def __init__(self, notes: _Notes) -> None:
        from torch.utils.flop_counter import flop_registry  # noqa: PLC0415 - rarely needed

        super().__init__()  # type: ignore[no-untyped-call]
        self._notes, self._formulas = notes, flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._notes.used(tree_leaves((args, kwargs)))
        out = func(*args, **(kwargs or {}))
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self._notes.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _ordinary(module: nn.Module) -> bool:
    """Whether calling it does what its class says and no more."""
    hooked = any(getattr(module, hooks) for hooks in _HOOKS)
    return not hooked and not is_parametrized(module) and "forward" not in vars(module)


def _fits(layer: nn.Module, norm: nn.Module, x: Tensor) -> bool:
    """Whether the norm's channels are the layer's last axis of freedom, in floats that both have."""
    if not isinstance(norm.running_var, Tensor):
        return False  # it takes each batch's own statistics
    if not isinstance(layer.weight, Tensor) or layer.weight.dtype not in (torch.float32, torch.float64):
        return False
    if isinstance(layer, nn.Linear):
        return x.dim() == 2 and layer.out_features == norm.num_features  # axis 1 of [B, T, C] is no output feature
    if isinstance(layer, _TRANSPOSED) and layer.groups > 1:
        return False  # its weight holds the channels of one group only
    return layer.out_channels == norm.num_features


def _double(value: Any) -> Tensor | None:
    return value.detach().double() if isinstance(value, Tensor) else None


def _replace(layer: nn.Module, weight: Tensor, bias: Any) -> None:
    """New parameters for old, which learn where the old weight did."""
    assert isinstance(layer.weight, Tensor)
    learns = layer.weight.requires_grad and weight.is_floating_point()
    layer.weight = nn.Parameter(weight, requires_grad=learns)
    if isinstance(bias, Tensor):
        layer.bias = nn.Parameter(bias.detach(), requires_grad=learns)
