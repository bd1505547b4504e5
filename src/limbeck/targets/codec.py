"""How a teacher's values are kept: whole in a smaller type, their k likeliest answers, or answers drawn from them.

Raw logits go in, never softened ones, so that the temperature stays free.

Shapes: n = rows (samples, or tokens that count), ... = axes of one row, C = classes (the last axis), K = answers kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.core.check import one_of, whole
from limbeck.core.errors import ConfigError, DataError, problem
from limbeck.core.setting import setting
from limbeck.targets.draw import draw
from limbeck.targets.rounding import absmax, beyond, id_type, no_number, rounded, rounding, unwrapped, wide

__all__ = ["CODECS", "Codec", "Dense", "Origin", "Part", "Sampled", "TopK"]

Float = Literal["float16", "float32", "bfloat16"]
_FLOATS = ("float16", "float32", "bfloat16")
_ROUNDING = 2.0**-20  # of a log-softmax in float32, per unit of its value and one more; seen: a quarter of it
_SMALLEST = 2.0**-126  # the smallest normal float32: scales stay normal, so that dividing by them is exact enough
_AT_A_TIME = 1 << 20  # logits, so that passes over them stay in the cache: three times as fast for 50,000 words
_FAINT = 1e-30  # a mass of the others, of which float32 may have lost a part


class Part(NamedTuple):
    """One tensor that a codec keeps of each row."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Origin(NamedTuple):
    """Where rows come from: names them in errors, and decides the draws of `Sampled`.

    ids_n: the sample of each row; tokens_n: its place among the tokens of the sample that count (all 0 if None).
    """

    output: str = "output"
    seed: int = 0
    view: int = 0
    ids_n: Tensor | None = None
    tokens_n: Tensor | None = None


class Codec(Protocol):
    """What the store asks of a codec; all are frozen settings."""

    @property
    def kind(self) -> str:
        """Its name in `CODECS`."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What is told after an output's name in decoded names; "" is the name itself."""
        ...

    def check(self, output: str, shape: tuple[int, ...]) -> None:
        """Refuse rows of a shape that it cannot keep."""
        ...

    def parts(self, shape: tuple[int, ...]) -> dict[str, Part]:
        """The tensors kept of a row of this shape."""
        ...

    def bytes(self, shape: tuple[int, ...]) -> int:
        """What a row of this shape takes."""
        ...

    def encode(self, x: Tensor, origin: Origin = Origin()) -> dict[str, Tensor]:  # noqa: B008 - immutable
        """Rows [n, ...] as the tensors that are kept, on the device of `x`."""
        ...

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is kept as float32 values and int64 ids, by suffix."""
        ...

    def bound(self, x: Tensor) -> dict[str, Tensor]:
        """The largest error that keeping these values makes, by suffix."""
        ...


@setting
class Dense:
    """Keep all values, in a type of your choice. They come back as float32, float64 ones too.

    float16 and bfloat16 round to nearest: at most 2⁻¹¹ and 2⁻⁸ of the value (2⁻²⁵ and 2⁻¹³⁴ at least); float32 keeps
    float32 exactly. int8 has one float32 scale a row (a sample, or a token of an output by tokens), symmetric, by its
    largest value m: at most m/254. NaN, +inf and what lies beyond the type are refused. −inf, the logit of an answer
    that is ruled out, is kept exactly by the floats and refused by int8.
    """

    kind: Literal["dense"] = "dense"
    dtype: Literal["float16", "float32", "bfloat16", "int8"] = "float16"

    def __post_init__(self) -> None:
        """Refuse unknown types."""
        one_of("dense.dtype", self.dtype, (*_FLOATS, "int8"))

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The output's own name."""
        return ("",)

    def check(self, output: str, shape: tuple[int, ...]) -> None:
        """Any shape will do."""

    def parts(self, shape: tuple[int, ...]) -> dict[str, Part]:
        """`values`, and `scale` for int8."""
        values = {"values": Part(getattr(torch, self.dtype), shape)}
        return values | ({"scale": Part(torch.float32, ())} if self.dtype == "int8" else {})

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Values times the size of the type; 4 more a row for int8."""
        return _size(self.parts(shape))

    def encode(self, x: Tensor, origin: Origin = Origin()) -> dict[str, Tensor]:  # noqa: B008 - immutable
        """Values [n, ...] rounded to the type.

        Raises:
            DataError: a value is NaN, +inf, or beyond the type.
        """
        _check_float(x, origin)
        if self.dtype != "int8":
            return {"values": rounded(x, self.dtype, origin.output)}
        exact = wide(x)
        scale = absmax(exact) / 127
        if not scale.float().mul(127).isfinite().all():
            raise DataError(beyond(exact, self.dtype, origin.output))
        scale = scale.float().clamp_min(_SMALLEST)
        values = (exact / scale.view(-1, *[1] * (x.dim() - 1))).round_().clamp_(-127, 127)
        return {"values": values.to(torch.int8), "scale": scale}

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values [n, ...] in float32."""
        values = parts["values"].float()
        if self.dtype == "int8":
            values *= parts["scale"].view(-1, *[1] * (values.dim() - 1))
        return {"": values}

    def bound(self, x: Tensor) -> dict[str, Tensor]:
        """The largest error of each value [n, ...], in float64."""
        size = x.double().abs()
        if self.dtype == "int8":
            row = (absmax(size) / 254).clamp_min(_SMALLEST / 2) * (1 + 2**-14)
            return {"": row.view(-1, *[1] * (x.dim() - 1)).expand(x.shape)}
        return {"": rounding(size, x.dtype, self.dtype)}


@setting
class TopK:
    """Keep the k likeliest answers: their ids, their log-probabilities, and the log of the mass of all others.

    Decoded as `<output>.ids` (int64), `<output>.log_probs` and `<output>.log_tail`: what `TopKKL` reads. The likeliest
    comes first; of equals, the one with the lower id, and equals at the edge are cut the same way, so that the answer
    is a function of the values alone. The mass of the others is summed, not taken from 1; it is −inf for k = C. Ids
    take two bytes for up to 65,536 classes, four beyond. A logit of −inf is an answer of probability 0.
    """

    kind: Literal["topk"] = "topk"
    k: int
    dtype: Float = "float16"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        whole("topk.k", self.k)
        one_of("topk.dtype", self.dtype, _FLOATS)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Ids, log-probabilities, and the log of what is left."""
        return ("ids", "log_probs", "log_tail")

    def check(self, output: str, shape: tuple[int, ...]) -> None:
        """Refuse rows with fewer than k classes.

        Raises:
            ConfigError: there are fewer.
        """
        _check_classes(self.kind, output, shape)
        if shape[-1] < self.k:
            wrong = f"k is {self.k}, the output {output!r} has {shape[-1]} classes"
            raise ConfigError(problem("topk.k", wrong, f"take k of at most {shape[-1]}, or Dense()"))

    def parts(self, shape: tuple[int, ...]) -> dict[str, Part]:
        """`ids` and `log_probs` [..., k], `log_tail` [...]."""
        lead, number = shape[:-1], getattr(torch, self.dtype)
        return {
            "ids": Part(id_type(shape[-1]), (*lead, self.k)),
            "log_probs": Part(number, (*lead, self.k)),
            "log_tail": Part(number, lead),
        }

    def bytes(self, shape: tuple[int, ...]) -> int:
        """For each vector of classes: k ids, k + 1 numbers."""
        return _size(self.parts(shape))

    def encode(self, x: Tensor, origin: Origin = Origin()) -> dict[str, Tensor]:  # noqa: B008 - immutable
        """The answers of logits [n, ..., C].

        Raises:
            DataError: NaN, +inf, no answer at all, or a log-probability beyond the type.
        """
        _check_float(x, origin)
        rows = x.reshape(-1, x.shape[-1])
        step = max(1, _AT_A_TIME // x.shape[-1]) if x.device.type == "cpu" else max(1, len(rows))
        done = [_answers(wide(part), self.k) for part in torch.split(rows, step)]
        ids, log_probs, log_tail = (torch.cat(parts) for parts in zip(*done, strict=True))
        lead = x.shape[:-1]
        return {
            "ids": ids.to(id_type(x.shape[-1])).view(*lead, self.k),
            "log_probs": rounded(log_probs, self.dtype, origin.output).view(*lead, self.k),
            "log_tail": rounded(log_tail, self.dtype, origin.output).view(lead),
        }

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ids in int64, the rest in float32."""
        numbers = {name: parts[name].float() for name in ("log_probs", "log_tail")}
        return {"ids": unwrapped(parts["ids"]), **numbers}

    def bound(self, x: Tensor) -> dict[str, Tensor]:
        """The largest error of each log-probability and of the log tail, in float64; ids are exact.

        The type's rounding, and that of a log-softmax in float32: 2⁻²⁰ (1 + |log p|).
        """
        exact = x.double().log_softmax(-1)
        ids = _likeliest(wide(x), self.k)
        tail = exact.scatter(-1, ids, -torch.inf).logsumexp(-1)
        sizes = {"log_probs": exact.gather(-1, ids).abs(), "log_tail": tail.abs()}
        return {name: self._bound(size) for name, size in sizes.items()}

    def _bound(self, size: Tensor) -> Tensor:
        own = torch.where(size.isinf(), 0.0, _ROUNDING * (1 + size))
        return own + rounding(size + own, torch.float64, self.dtype)


@setting
class Sampled:
    """Keep answers drawn from the softmax of the logits, with replacement: unbiased whatever is left out.

    Decoded as `<output>.ids`, distinct and rising, and `<output>.log_probs`, the log of the share of the draws; places
    that are left since answers came more than once have −inf, as `topk_kl` reads it. With `TopKKL(tail="teacher")` the
    gradient is, on average over draws, that of the full cross-entropy at temperature 1, and only there. Draws are a
    function of (seed, output, sample, view, token), by the inverse of the distribution: no generator is touched.

    Source: Anshumann et al. 2025, "Sparse Logit Sampling" (random sampling, with the teacher itself as proposal).
    """

    kind: Literal["sampled"] = "sampled"
    draws: int

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        whole("sampled.draws", self.draws)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Ids and the logs of their shares."""
        return ("ids", "log_probs")

    def check(self, output: str, shape: tuple[int, ...]) -> None:
        """Refuse rows without an axis of classes.

        Raises:
            ConfigError: there is none.
        """
        _check_classes(self.kind, output, shape)
        if shape[-1] < self.draws:  # places are at most classes to those who read them
            wrong = f"draws is {self.draws}, the output {output!r} has {shape[-1]} classes"
            raise ConfigError(problem("sampled.draws", wrong, "take fewer, or Dense(), which is smaller and exact"))

    def parts(self, shape: tuple[int, ...]) -> dict[str, Part]:
        """`ids` [..., draws]."""
        return {"ids": Part(id_type(shape[-1]), (*shape[:-1], self.draws))}

    def bytes(self, shape: tuple[int, ...]) -> int:
        """For each vector of classes: an id a draw."""
        return _size(self.parts(shape))

    def encode(self, x: Tensor, origin: Origin = Origin()) -> dict[str, Tensor]:  # noqa: B008 - immutable
        """Draws from logits [n, ..., C], in rising order.

        Raises:
            DataError: NaN, +inf, or no answer at all.
        """
        _check_float(x, origin)
        logits, vectors = x.reshape(-1, x.shape[-1]), math.prod(x.shape[1:-1])
        ids = np.arange(len(x)) if origin.ids_n is None else origin.ids_n.cpu().numpy()
        tokens = np.zeros(len(x), np.int64) if origin.tokens_n is None else origin.tokens_n.cpu().numpy()
        tokens = (tokens[:, None] * vectors + np.arange(vectors)).reshape(-1)
        keys = np.stack([ids.repeat(vectors), tokens])
        u_ND = torch.from_numpy(draw(origin.seed, origin.output, origin.view, keys, draws=self.draws)).to(x.device)
        found, step = [], max(1, _AT_A_TIME // x.shape[-1])
        for z, u in zip(torch.split(logits, step), torch.split(u_ND, step), strict=True):
            below = z.double().softmax(-1).cumsum(-1)
            if below.isnan().any():
                raise DataError(no_number(origin.output))
            at = u * below[:, -1:]  # below the last entry, however it is rounded, since u is at most 1 - 2⁻⁵³
            found.append(torch.searchsorted(below, at, right=True).sort(-1).values)
        drawn = torch.cat(found) if found else logits.new_zeros((0, self.draws), dtype=torch.int64)
        return {"ids": drawn.to(id_type(x.shape[-1])).view(*x.shape[:-1], self.draws)}

    def decode(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Distinct ids in int64, the logs of their shares in float32; −inf where a place is not filled."""
        ids = unwrapped(parts["ids"])
        new = torch.ones_like(ids, dtype=torch.bool)
        new[..., 1:] = ids[..., 1:] != ids[..., :-1]
        place = new.cumsum(-1) - 1
        counts = torch.zeros(ids.shape).scatter_add_(-1, place, torch.ones(ids.shape))
        return {"ids": ids[..., :1].expand_as(ids).scatter(-1, place, ids), "log_probs": (counts / self.draws).log()}

    def bound(self, x: Tensor) -> dict[str, Tensor]:
        """No bound, but the standard deviation of the share of each class [n, ..., C], in float64: √(p (1−p) / draws).

        It is that of `log_probs` exponentiated and scattered over the classes.
        """
        p = x.double().softmax(-1)
        return {"log_probs": (p * (1 - p) / self.draws).sqrt()}


CODECS: dict[str, type[Dense] | type[TopK] | type[Sampled]] = {"dense": Dense, "topk": TopK, "sampled": Sampled}
"""Every codec by its kind."""


def _answers(logits_NC: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and log-probabilities of the k likeliest, and the log of the mass of the others."""
    ids = _likeliest(logits_NC, k)
    shifted = logits_NC - logits_NC.amax(-1, keepdim=True)
    masses = shifted.exp()
    log_total = masses.sum(-1, keepdim=True).log()
    rest = masses.scatter_(-1, ids, 0.0).sum(-1)
    log_rest, faint = rest.log(), rest < _FAINT
    if faint.any():
        log_rest[faint] = shifted[faint].scatter(-1, ids[faint], -torch.inf).logsumexp(-1)
    return ids, shifted.gather(-1, ids) - log_total, log_rest - log_total.squeeze(-1)


def _likeliest(logits: Tensor, k: int) -> Tensor:
    """Ids of the k largest values: falling, equals by rising id. `topk` alone leaves open which equals it takes."""
    values, ids = logits.topk(min(k + 1, logits.shape[-1]), -1)
    edge, ids = values[..., k - 1 : k], ids[..., :k].sort(-1).values
    cut = (values[..., k:] == edge).any(-1)
    if cut.any():
        at, edge = logits[cut], edge[cut]
        equal, above = at == edge, at > edge
        first = equal.cumsum(-1, dtype=torch.int32) <= k - above.sum(-1, keepdim=True)
        ids[cut] = (above | (equal & first)).nonzero()[:, -1].view(-1, k)
    return ids.gather(-1, logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices)


def _check_float(x: Tensor, origin: Origin) -> None:
    if not x.is_floating_point():
        wrong = f"its values are {str(x.dtype).removeprefix('torch.')}"
        raise DataError(problem(f"output {origin.output!r}", wrong, "keep outputs of real numbers, such as logits"))


def _check_classes(kind: str, output: str, shape: tuple[int, ...]) -> None:
    if not shape:
        wrong = f"the output {output!r} is one number a sample, with no axis of classes"
        raise ConfigError(problem(kind, wrong, "keep it with Dense()"))


def _size(parts: Mapping[str, Part]) -> int:
    return sum(math.prod(part.shape) * part.dtype.itemsize for part in parts.values())
