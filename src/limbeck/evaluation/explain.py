"""Which parts of an input move a model's answer.

What is explained is the logit of one class less the mean over all classes: what the softmax sees of it. A constant
that is added to all logits of a sample changes no answer, and so no attribution.

Attributions are with respect to the batch as it comes, whatever a model does to it first, so that those of models
with different input normalisations have the same units and the same baseline: zero, which for normalised data is the
mean of the training data. Images [B, C, H, W] have one position a pixel: the sum over channels, signs kept.

Shapes: B = samples, C = classes or channels, T = tokens, D = width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from limbeck.core.check import one_of, whole
from limbeck.core.errors import ConfigError, DataError, ModelError, nearest, problem
from limbeck.core.extras import need
from limbeck.core.still import undisturbed
from limbeck.core.taps import Inputs, Outputs, Reader
from limbeck.core.types import RESERVED, Named

__all__ = ["METHODS", "Fit", "Method", "attributions", "convolution"]

Method = Literal["gradient_input", "integrated_gradients", "grad_cam"]
METHODS: tuple[Method, ...] = get_args(Method)

Fit = Callable[[Named], Named]
"""Makes of a batch what a model takes, in a way that can be differentiated."""

_WAYS = {1: "linear", 2: "bilinear", 3: "trilinear"}


class _Ask(NamedTuple):
    """What is explained, found once for all rows."""

    reader: Reader
    fit: Fit
    captum: Any
    method: Method
    steps: int
    at_once: int
    names: tuple[str, ...] = ()
    embedding: nn.Module | None = None
    layer: nn.Module | None = None


def attributions(
    model: nn.Module,
    batch: Named,
    *,
    method: Method,
    target: Tensor | int,
    tap: str | None = None,
    steps: int = 16,
    at_once: int = 64,
    inputs: Inputs = None,
    outputs: Outputs = None,
    fit: Fit | None = None,
) -> Tensor:
    """How much each position of each sample speaks for the class `target` (above zero) or against it (below).

    - "gradient_input": gradient times input (Shrikumar et al. 2016, "Not just a black box").
    - "integrated_gradients": from the baseline zero (Sundararajan et al. 2017, "Axiomatic attribution for deep
      networks", section 3); the sum over a sample is how far its answer is from the baseline's.
    - "grad_cam": activations of a convolution weighted by their mean gradients (Selvaraju et al. 2017, section 3),
      without the final ReLU, at the resolution of the input.

    Several float columns are joined, each as one row a sample. Token ids have no gradient: their embedding is
    explained in their place, summed over its width, against zero vectors. The model is called in evaluation mode and
    is as it was afterwards, `.grad` included.

    Args:
        model: the module.
        batch: named tensors, samples on the first axis.
        method: one of the above.
        target: a class for every sample, or one for all.
        tap: for "grad_cam", the layer; None takes the last convolution that is called and has more than one
            position. For token ids, the embedding; None takes the first that is called on a column of the batch.
        steps: points of the path of integrated gradients.
        at_once: most rows in one pass.
        inputs: which columns the model takes (see `limbeck.core.taps.Reader`).
        outputs: names for what it returns.
        fit: makes of a batch what the model takes, such as another normalisation.

    Returns:
        Detached, where the batch is: [B, H, W] for images; [B, T] for token ids; else the input's shape.

    Raises:
        ConfigError: a setting is impossible.
        DataError: there is no sample, or the targets do not fit the classes.
        ExtraError: captum is not installed.
        ModelError: the model cannot be called, or its answer has no gradient, or lacks the layer.
    """
    one_of("attributions.method", method, METHODS)
    whole("attributions.steps", steps)
    whole("attributions.at_once", at_once)
    captum = need("captum.attr", extra="explain", why="attributions")
    rows, target_B = _targets(batch, target)
    with _looking(model, inputs, outputs) as reader:
        ask = _Ask(reader, fit or dict, captum, method, steps, at_once)
        few = _part(batch, 0, 2)
        _check_answer(reader, ask.fit(few), target_B)
        ask = _found(ask, few, tap)
        explain = _cam if method == "grad_cam" else _gradient
        starts = range(0, rows, at_once)
        parts = [explain(ask, _part(batch, at, at + at_once), target_B[at : at + at_once]) for at in starts]
    found = torch.cat(parts)
    if not found.isfinite().all():
        wrong = (
            f"the gradient of {int((~found.isfinite()).flatten(1).any(dim=1).sum())} of {rows} samples is not finite"
        )
        raise ModelError(problem("attributions", wrong, "look for infinite logits or roots of zero in the model"))
    return found


def convolution(
    model: nn.Module, batch: Named, *, inputs: Inputs = None, outputs: Outputs = None, fit: Fit | None = None
) -> str | None:
    """Where "grad_cam" looks: the last convolution that is called and has more than one position; None without one.

    Raises:
        ModelError: the model cannot be called.
    """
    reader = Reader(model, inputs=inputs, outputs=outputs)
    try:
        return _convolution(reader, fit or dict, _part(batch, 0, 2))
    finally:
        reader.close()


def _convolution(reader: Reader, fit: Fit, few: Named) -> str | None:
    last: list[str] = []

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            # One position has no map: convolutions stand behind pooling too, as classifiers or to weigh channels.
            if math.prod(output.shape[2:]) > 1 and _surface(few, output) is not None:
                last[:] = [path]

        return hook

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    named = [(path, module) for path, module in reader.model.named_modules() if path and isinstance(module, kinds)]
    handles = [module.register_forward_hook(keep(path)) for path, module in named]
    try:
        reader.probe(fit(few))
    finally:
        for handle in handles:
            handle.remove()
    return last[0] if last else None


@contextmanager
def _looking(model: nn.Module, inputs: Inputs, outputs: Outputs) -> Iterator[Reader]:
    """The model as a function of a batch, in evaluation mode and with gradient, left as it was afterwards."""
    dead = next((n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_inference()), None)
    if dead is not None:
        wrong = f"{dead} was made in inference mode, and has no gradient"
        raise ModelError(problem("attributions", wrong, "make or load the model outside of `torch.inference_mode`"))
    reader = Reader(model, inputs=inputs, outputs=outputs)
    # cuDNN's recurrent layers have no gradient in evaluation mode; torch's own have.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        with (
            torch.random.fork_rng(devices=[]),
            undisturbed(model),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext(),
        ):
            yield reader
    finally:
        reader.close()


def _targets(batch: Named, target: Tensor | int) -> tuple[int, Tensor]:
    """How many rows there are, and a class for each."""
    rows = len(next(iter(batch.values()))) if batch else 0
    if not rows:
        raise DataError(problem("attributions", "the batch holds no sample", "give at least one"))
    target_B = torch.as_tensor(target)
    if target_B.is_floating_point() or target_B.dtype == torch.bool or target_B.shape not in ((), (rows,)):
        wrong = f"the target is {list(target_B.shape)} of {str(target_B.dtype)[6:]} for {rows} samples"
        raise DataError(problem("attributions", wrong, "give one class number, or one a sample"))
    return rows, target_B.detach().long().expand(rows)


def _part(batch: Named, start: int, stop: int) -> dict[str, Tensor]:
    """Some rows, copied: what comes out of inference mode cannot be kept for a gradient."""
    return {name: value[start:stop].detach().clone() for name, value in batch.items()}


def _check_answer(reader: Reader, few: Named, target_B: Tensor) -> None:
    logits = reader.probe(few)["logits"]
    if logits.dim() != 2 or len(logits) != len(next(iter(few.values()))):
        wrong = f"the logits are {list(logits.shape)}, expected [samples, classes]"
        raise ModelError(problem("attributions", wrong, "explain a model that answers with one row a sample"))
    if int(target_B.min()) < 0 or int(target_B.max()) >= logits.shape[1]:
        wrong = f"targets run from {int(target_B.min())} to {int(target_B.max())}, of {logits.shape[1]} classes"
        raise DataError(problem("attributions", wrong, "give class numbers of the model"))


# What the gradient is taken by ----------------------------------------------------------------------------------------


def _found(ask: _Ask, few: dict[str, Tensor], tap: str | None) -> _Ask:
    """The ask, completed by the columns, the embedding or the layer that the method needs."""
    if ask.method == "grad_cam":
        return ask._replace(layer=_layer(ask, few, tap))
    if names := _floats(ask, few):
        if tap is not None:
            wrong = f"tap is {tap!r}, and {ask.method} explains the input"
            raise ConfigError(problem("attributions.tap", wrong, 'leave it out, or take the method "grad_cam"'))
        return ask._replace(names=names)
    module, column = _embedding(ask, few, tap)
    return ask._replace(names=(column,), embedding=module)


def _floats(ask: _Ask, few: dict[str, Tensor]) -> tuple[str, ...]:
    """The float columns that the answer has a gradient by."""
    names = [name for name, value in few.items() if name not in RESERVED and value.is_floating_point()]
    if not names:
        return ()
    leaves = {name: few[name].detach().clone().requires_grad_() for name in names}
    logits = ask.reader(ask.fit({**few, **leaves}))["logits"]
    if not logits.requires_grad:
        return ()
    gradients = torch.autograd.grad(logits.sum(), list(leaves.values()), allow_unused=True)
    return tuple(name for name, gradient in zip(names, gradients, strict=True) if gradient is not None)


def _embedding(ask: _Ask, few: dict[str, Tensor], tap: str | None) -> tuple[nn.Module, str]:
    """The embedding that is called on a column of the batch, and that column."""
    model = ask.reader.model
    fitted = ask.fit(few)
    ids = {k: v for k, v in fitted.items() if k not in RESERVED and not v.is_floating_point()}
    calls: dict[str, list[Tensor]] = {}
    handles: list[RemovableHandle] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            # The default argument holds this turn's path: a closure would see the last one's.
            hook = lambda _module, args, path=path: calls.setdefault(path, []).extend(args[:1])  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
    try:
        ask.reader(fitted)
    finally:
        for handle in handles:
            handle.remove()
    for path, seen in calls.items():
        column = next((name for name, value in ids.items() if len(seen) == 1 and torch.equal(value, seen[0])), None)
        if column is not None and tap in (None, path):
            return model.get_submodule(path), column
    columns = ", ".join(f"{k} {str(v.dtype)[6:]}" for k, v in few.items() if k not in RESERVED)
    wrong = f"the answer has no gradient by the batch ({columns}), and no embedding {tap or ''} is called once on it"
    mend = "give a float column that the model computes with in torch, or a model with an `nn.Embedding` for its ids"
    raise ModelError(problem("attributions", wrong, mend))


def _layer(ask: _Ask, few: dict[str, Tensor], tap: str | None) -> nn.Module:
    reader = ask.reader
    paths: dict[str, nn.Module] = dict(reader.model.named_modules())
    if tap is None:
        tap = _convolution(reader, ask.fit, few)
        if tap is None:
            wrong = "no convolution with more than one position is called that can be laid over the input"
            raise ModelError(problem("attributions, grad_cam", wrong, "name a layer with `tap=`, or another method"))
    elif tap not in paths or not tap:
        wrong = f"there is no layer called {tap!r}"
        raise ModelError(problem("attributions.tap", wrong, nearest(tap, (p for p in paths if p))))
    return paths[tap]


def _surface(batch: Named, map_: Tensor) -> torch.Size | None:
    """The input's positions under a map [B, channels, ...], channels first as torch has them; None if it has none."""
    column = batch["x"] if "x" in batch else next(v for k, v in batch.items() if k not in RESERVED)
    if map_.dim() - 2 not in _WAYS or column.dim() not in (map_.dim(), map_.dim() - 1):
        return None
    return column.shape[2:] if column.dim() == map_.dim() else column.shape[1:]


# The methods ----------------------------------------------------------------------------------------------------------


def _answer(ask: _Ask, names: tuple[str, ...]) -> Callable[..., Tensor]:
    """What is explained, as a function of columns in the order of `names`, and of the target at last."""

    def answer(*values: Tensor) -> Tensor:
        *columns, target_B = values
        batch = dict(zip(names, columns, strict=True))
        logits_BC = ask.reader(ask.fit(batch))["logits"]
        chosen_B: Tensor = logits_BC.gather(1, target_B.to(logits_BC.device)[:, None])[:, 0]
        return chosen_B - logits_BC.mean(dim=1) if logits_BC.shape[1] > 1 else chosen_B

    return answer


def _gradient(ask: _Ask, batch: dict[str, Tensor], target_B: Tensor) -> Tensor:
    if ask.embedding is not None:
        return _embedded(ask, ask.embedding, batch, target_B)
    order = (*ask.names, *(name for name in batch if name not in ask.names))
    # Captum warns of inputs that require no gradient; these are copies, so they may.
    values = tuple(batch[name].requires_grad_() for name in ask.names)
    rest = (*(batch[name] for name in order[len(values) :]), target_B)
    found = [_positions(value) for value in _run(ask, _answer(ask, order), values, rest)]
    return found[0] if len(found) == 1 else torch.cat([value.flatten(1) for value in found], dim=1)


def _embedded(ask: _Ask, module: nn.Module, batch: dict[str, Tensor], target_B: Tensor) -> Tensor:
    order = tuple(batch)
    plain = _answer(ask, order)

    def answer(vectors_BTD: Tensor, *values: Tensor) -> Tensor:
        handle = module.register_forward_hook(lambda _module, _args, _output: vectors_BTD)
        try:
            return plain(*values)
        finally:
            handle.remove()

    home = batch[ask.names[0]]
    vectors_BTD = module(ask.fit(batch)[ask.names[0]]).detach().requires_grad_()
    found = _run(ask, answer, (vectors_BTD,), (*batch.values(), target_B))[0]
    return found.sum(dim=-1).to(home.device)


def _run(
    ask: _Ask, answer: Callable[..., Tensor], values: tuple[Tensor, ...], rest: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    if ask.method == "gradient_input":
        found = ask.captum.InputXGradient(answer).attribute(values, additional_forward_args=rest)
    else:
        way = ask.captum.IntegratedGradients(answer)
        found = way.attribute(
            values, additional_forward_args=rest, n_steps=ask.steps, internal_batch_size=max(ask.at_once, len(rest[-1]))
        )
    return tuple(value.detach() for value in found)


def _cam(ask: _Ask, batch: dict[str, Tensor], target_B: Tensor) -> Tensor:
    way = ask.captum.LayerGradCam(_answer(ask, tuple(batch)), ask.layer)
    try:
        map_ = way.attribute((*batch.values(), target_B)).detach()
    except (AssertionError, RuntimeError) as error:
        wrong = f"the layer has no map of its own ({type(error).__name__}: {error})"
        raise ModelError(problem("attributions, grad_cam", wrong, "tap a layer that the answer goes through")) from None
    size = _surface(batch, map_)
    if size is None:
        wrong = f"the layer's map is {list(map_.shape)} and cannot be laid over the input"
        raise ModelError(problem("attributions, grad_cam", wrong, "tap a convolution over the axes of the input"))
    home = next(iter(batch.values())).device
    return F.interpolate(map_, size=size, mode=_WAYS[len(size)], align_corners=False)[:, 0].to(home)


def _positions(value: Tensor) -> Tensor:
    return value.sum(dim=1) if value.dim() >= 4 else value
