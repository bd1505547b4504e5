"""How an operation passes labels on (see `labels`), operation by operation.

There are few rules, for kinds of operations and not for layers. What only moves elements is run on the labels
themselves. What works element by element joins labels at equal places. Products join what they sum over. Any other
operation is asked by experiment: some indices of its input are disturbed, and where the result changes tells which
index came from which. A rule that is wrong or missing costs a group, never a wrong cut: what is found here is only
proposed, and `coupling` proves it on real samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from limbeck.core.labels import Ids, Labels, Strips, aligned, compress, spread, varies

__all__ = ["Operation", "moves_in_place", "strips_after"]


@dataclass(frozen=True)
class Operation:
    """An aten operation that was called.

    Attributes:
        labels: which the rules join and fix.
        func: the operation.
        args: its arguments.
        kwargs: its named arguments.
        outputs: the tensors that it returned.
        strips: by the identity of an argument, its strips.
        weights: the storages of the network's own tensors.
        read: gets the labels of weights that a product sums over: these weights read units, and do not make them.
    """

    labels: Labels
    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    outputs: Sequence[Tensor]
    strips: Mapping[int, Strips]
    weights: Set[int]
    read: set[int]

    @property
    def name(self) -> str:
        """What it is called, without its overload."""
        return str(self.func.overloadpacket.__name__)

    def get(self, argument: Any) -> Strips:
        """The strips of an argument."""
        return self.strips.get(id(argument), ())

    def sums_over(self, tensor: Tensor, ids: Ids | None) -> None:
        """Note that a product sums over these labels of an operand."""
        if ids is not None and tensor.untyped_storage().data_ptr() in self.weights:
            self.read.update(ids.tolist())


Rule = Callable[[Operation], list[Strips]]

_MOVES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "slice", "select",
    "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "squeeze", "unsqueeze", "unbind", "flip",
    "roll", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold", "diagonal", "movedim",
    "repeat_interleave", "narrow", "chunk", "unsafe_chunk", "index_select", "index", "embedding", "alias", "detach",
    "lift_fresh", "view_as_real", "view_copy",
}  # fmt: skip
_ELEMENTWISE = {
    "_prelu_kernel", "hardswish", "_to_copy", "clone", "copy", "masked_fill", "tril", "triu", "where", "contiguous",
    "detach_", "fill", "zero", "_softmax", "_safe_softmax", "_log_softmax", "cumsum", "native_dropout", "relu",
    "hardtanh", "leaky_relu", "elu", "silu", "gelu", "mish", "softplus", "log_sigmoid_forward", "threshold",
    "hardsigmoid", "rrelu_with_noise", "_fused_dropout", "normal_functional", "lerp", "clamp",
}  # fmt: skip
_ALONG = {"_softmax", "_safe_softmax", "_log_softmax", "cumsum"}


def strips_after(op: Operation) -> list[Strips]:
    """The strips of each output of an operation."""
    base = op.name.removesuffix("_")
    rule = _RULES.get(op.name) or _RULES.get(base)
    if rule is None:
        rule = _elementwise if torch.Tag.pointwise in op.func.tags or base in _ELEMENTWISE else _probed
    return rule(op)


def moves_in_place(func: Any) -> bool:
    """Whether an operation rearranges the very tensor that it is given, so that its shape must be read before."""
    name = func.overloadpacket.__name__
    return bool(name.endswith("_") and name.removesuffix("_") in _MOVES)


def _moved(op: Operation) -> list[Strips]:
    """The operation is run on the labels, and they land where their elements land."""
    source: Tensor = op.args[0]
    func, rest = op.func, op.args[1:]
    if op.name == "_reshape_alias":
        func, rest = torch.ops.aten.view.default, op.args[1:2]
    rest = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, tuple(rest))  # as the labels are
    found: list[list[Tensor]] = [[] for _ in op.outputs]
    picked = _picked(op)
    for strip in op.get(source):
        if set(varies(strip)) <= picked:
            op.labels.fix(strip.numpy())  # what is looked up by its number keeps its place
            continue
        moved = func(strip.expand(source.shape).contiguous(), *rest, **op.kwargs)
        landed = [leaf for leaf in tree_leaves(moved) if isinstance(leaf, Tensor)]
        for strips, dense in zip(found, landed, strict=True):
            strips.append(compress(dense))
    return [op.labels.tidy(strips) for strips in found]


def _picked(op: Operation) -> set[int]:
    """The dimensions along which elements are picked by numbers that the code or the data holds."""
    if op.name == "embedding":
        return {0}
    if op.name in ("index_select", "select"):
        return {op.args[1] % op.args[0].dim()}
    if op.name == "index":
        return {dim for dim, index in enumerate(op.args[1]) if index is not None}
    return set()


def _elementwise(op: Operation) -> list[Strips]:
    name = op.name.removesuffix("_")
    dims = op.outputs[0].dim()
    operands = [leaf for leaf in tree_leaves((op.args, op.kwargs)) if isinstance(leaf, Tensor)]
    strips = op.labels.merged([aligned(op.get(t), dims) for t in operands if t.dim() <= dims])
    if name in _ALONG:
        along = op.labels.along(strips)
        dim = int(op.args[1]) % dims
        if dim in along:
            op.labels.fix(along[dim], f"{name.strip('_')} runs over them")
        strips = op.labels.strips(along, dims)
    return [strips if output.dim() == dims else () for output in op.outputs]


def _joined(op: Operation) -> list[Strips]:
    """`cat` and `stack`: along the dimension the labels follow each other, elsewhere they meet."""
    output = op.outputs[0]
    parts = [part for part in op.args[0] if part.numel()]
    dim = int(op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % output.dim()
    strips = [op.get(part) for part in parts]
    if op.name == "stack":
        strips = [tuple(strip.unsqueeze(dim) for strip in one) for one in strips]
        return [op.labels.merged(strips)]
    across = op.labels.merged([tuple(s for s in one if s.shape[dim] == 1) for one in strips])
    whole = [[s for s in one if s.shape[dim] > 1] for one in strips]
    kinds = {varies(s) for one in whole for s in one}
    if len(kinds) == 1 and len(next(iter(kinds))) > 1 and all(len(one) == 1 for one in whole):
        return [op.labels.tidy([*across, torch.cat([one[0] for one in whole], dim)])]
    pieces = []
    for part, one in zip(parts, strips, strict=True):
        ids = op.labels.along(tuple(s for s in one if s.shape[dim] > 1), (dim,)).get(dim)
        if ids is None:
            ids = op.labels.fresh(part.shape[dim])
            op.labels.fix(ids, "they are joined with what is not cut")
        pieces.append(torch.from_numpy(ids))
    return [op.labels.tidy([*across, spread(torch.cat(pieces).numpy(), dim, output.dim())])]


def _padded(op: Operation) -> list[Strips]:
    """Constants before and after: how many there are is fixed."""
    dims, pad = op.args[0].dim(), list(op.args[1])
    found = {}
    for dim, ids in op.labels.along(op.get(op.args[0])).items():
        at = 2 * (dims - 1 - dim)
        before, after = (pad[at], pad[at + 1]) if at < len(pad) else (0, 0)
        sides = [op.labels.fresh(max(0, before)), op.labels.fresh(max(0, after))]
        for side in sides:
            op.labels.fix(side, "the network's code pads with so many constants")
        middle = ids[max(0, -before) : len(ids) - max(0, -after)]
        found[dim] = torch.cat([torch.from_numpy(x) for x in (sides[0], middle, sides[1])]).numpy()
    return [op.labels.strips(found, dims)]


def _halved(op: Operation) -> list[Strips]:
    """`glu`: the second half along a dimension gates the first."""
    x = op.args[0]
    dim = int(op.args[1] if len(op.args) > 1 else -1) % x.dim()
    along = op.labels.along(op.get(x), (dim,))
    if dim in along:
        first, second = along[dim].reshape(2, -1)
        op.labels.join(first, second)
        along[dim] = first
    return [op.labels.strips(along, x.dim())]


def _product(op: Operation) -> list[Strips]:
    """mm, bmm, mv, dot and their kinds with an addend: what is summed over is joined."""
    name = op.name.removesuffix("_")
    added = name.startswith(("addm", "badd", "addbmm"))
    left, right = op.args[1:3] if added else op.args[:2]
    a, b = op.labels.along(op.get(left)), op.labels.along(op.get(right))
    batch = left.dim() - 2 if left.dim() == 3 else 0
    summed = a.get(left.dim() - 1), b.get(max(0, right.dim() - 2))
    op.labels.meet(*summed)
    for operand, ids in zip((left, right), summed, strict=True):
        op.sums_over(operand, ids)
    found: dict[int, Ids | None] = {dim: op.labels.meet(a.get(dim), b.get(dim)) for dim in range(batch)}
    if left.dim() > 1:
        found[batch] = a.get(batch)
    if right.dim() > 1:
        found[batch + 1] = b.get(batch + 1)
    dims = op.outputs[0].dim()
    strips = op.labels.strips({dim: ids for dim, ids in found.items() if ids is not None and dim < dims}, dims)
    if added:
        strips = op.labels.merged([strips, aligned(op.get(op.args[0]), dims)])
    return [strips]


def _convolution(op: Operation) -> list[Strips]:
    x, weight, bias = op.args[:3]
    transposed, groups = bool(op.args[6]), int(op.args[8])
    dims = x.dim()
    a, w = op.labels.along(op.get(x), (1,)), op.labels.along(op.get(weight))
    for dim in range(2, dims):
        for ids in (a.get(dim), w.get(dim)):
            if ids is not None:
                op.labels.fix(ids)  # pixels
    ins, outs = (w.get(0), w.get(1)) if transposed else (w.get(1), w.get(0))
    if groups == 1:
        op.labels.meet(a.get(1), ins)
        op.sums_over(weight, ins)
    else:
        each = _by_groups(op.labels, a.get(1), w, groups)
        outs = None if each is None else each.repeat(op.outputs[0].shape[1] // groups)
    if bias is not None:
        op.labels.meet(outs, op.labels.along(op.get(bias)).get(0))
    found = {dim: ids for dim, ids in ((0, a.get(0)), (1, outs)) if ids is not None}
    return [op.labels.strips(found, dims)]


def _by_groups(labels: Labels, x: Ids | None, w: dict[int, Ids], groups: int) -> Ids | None:
    """Grouped convolutions are cut by whole groups: one label for each, or None."""
    if 1 in w:
        labels.fix(w[1])
    if 0 not in w:
        return None
    for ids in (w[0], x):
        if ids is not None:
            blocks = ids.reshape(groups, -1)
            labels.join(blocks, blocks[:, :1].repeat(blocks.shape[1], 1))
    first: Ids = w[0].reshape(groups, -1)[:, 0]
    labels.meet(first, None if x is None else x.reshape(groups, -1)[:, 0])
    return first


def _normalized(op: Operation) -> list[Strips]:
    """Layer norm and its kinds: what is normalised together cannot be thinned out, unless norms may run over less."""
    x, over = op.args[0], len(op.args[1])
    along = op.labels.along(op.get(x))
    for dim in range(x.dim() - over, x.dim()):
        if dim in along and not op.labels.norms:
            op.labels.fix(along[dim], "a norm runs over them, and without some of them its result is another")
    affine = [aligned(op.get(t), x.dim()) for t in op.args[2:4] if isinstance(t, Tensor)]
    strips = op.labels.merged([op.labels.strips(along, x.dim()), *affine])
    return [strips if output.dim() == x.dim() and i == 0 else () for i, output in enumerate(op.outputs)]


def _by_channel(op: Operation) -> list[Strips]:
    """Batch norm, and group norm, which is cut by whole groups."""
    x = op.args[0]
    along = op.labels.along(op.get(x), (1,))
    if op.name == "native_group_norm" and 1 in along:
        blocks = along[1].reshape(int(op.args[6]), -1)
        op.labels.join(blocks, blocks[:, :1].repeat(blocks.shape[1], 1))
    for tensor in op.args[1:5]:
        if isinstance(tensor, Tensor):
            along_1 = op.labels.meet(along.get(1), op.labels.along(op.get(tensor)).get(0))
            if along_1 is not None:
                along[1] = along_1
    return [op.labels.strips(along, x.dim()), *([()] * (len(op.outputs) - 1))]


def _probed(op: Operation) -> list[Strips]:
    """Ask the operation itself: disturb some indices of an input, see which indices of the result change."""
    found: list[list[Strips]] = [[] for _ in op.outputs]
    if op.func._schema.is_mutable:
        return [() for _ in op.outputs]
    for tensor in tree_leaves((op.args, op.kwargs)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not op.get(tensor):
            continue

        def run(other: Tensor, tensor: Tensor = tensor) -> list[Tensor]:
            swapped = tree_map(lambda leaf: other if leaf is tensor else leaf, (tuple(op.args), op.kwargs))
            return [leaf for leaf in tree_leaves(op.func(*swapped[0], **swapped[1])) if isinstance(leaf, Tensor)]

        for dim, ids in op.labels.along(op.get(tensor)).items():
            for place, (output, source) in enumerate(zip(op.outputs, _sources(run, tensor, dim), strict=True)):
                if source is not None:
                    at, index = source
                    found[place].append(op.labels.strips({at: ids[index.numpy()]}, output.dim()))
    return [op.labels.merged(strips) for strips in found]


def _sources(run: Callable[[Tensor], list[Tensor]], tensor: Tensor, dim: int) -> list[tuple[int, Tensor] | None]:
    """For each output the dimension whose every index depends on one index of the input's `dim`, and on which."""
    size = tensor.shape[dim]
    generator = torch.Generator(tensor.device).manual_seed(0)
    other = 3 * torch.randn(tensor.shape, generator=generator, device=tensor.device, dtype=tensor.dtype) + 1
    bits = (torch.arange(size)[:, None] >> torch.arange(max(1, (size - 1).bit_length()))) & 1
    shape = [-1 if at == dim else 1 for at in range(tensor.dim())]
    tensor = tensor.contiguous()  # as what is disturbed: another layout rounds otherwise
    plain = run(tensor)
    changed: list[list[tuple[Tensor, Tensor]]] = []
    for bit in bits.T:
        pair = []
        for side in (1, 0):
            where = (bit == side).view(shape).to(tensor.device)
            pair.append(
                [
                    a != b
                    for a, b in zip(run(torch.where(where, tensor + other, tensor).contiguous()), plain, strict=True)
                ]
            )
        changed.append(list(zip(*pair, strict=True)))
    return [_decode([step[place] for step in changed], size) for place in range(len(plain))]


def _decode(steps: Sequence[tuple[Tensor, Tensor]], size: int) -> tuple[int, Tensor] | None:
    for dim in range(steps[0][0].dim()):
        if steps[0][0].shape[dim] < 2:
            continue
        on, off = (torch.stack([_any_but(pair[side], dim) for pair in steps], -1) for side in (0, 1))
        index = (on.long() << torch.arange(len(steps), device=on.device)).sum(-1)
        if bool((on ^ off).all()) and int(index.max()) < size:
            return dim, index.cpu()
    return None


def _any_but(changed: Tensor, dim: int) -> Tensor:
    return changed.movedim(dim, 0).reshape(changed.shape[dim], -1).any(-1)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, _moved),
    **dict.fromkeys(("cat", "stack"), _joined),
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "addmm", "addmv", "baddbmm"), _product),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _normalized),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"), _by_channel),
    **dict.fromkeys(("native_group_norm",), _by_channel),
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    "constant_pad_nd": _padded,
    "glu": _halved,
}
