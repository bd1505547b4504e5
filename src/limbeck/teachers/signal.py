"""What a teacher is, and what each does to input and answer: renormalise, make logits, pick classes."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, ModelError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.types import RESERVED, Named

__all__ = [
    "FLOOR",
    "Classes",
    "Gives",
    "Teaching",
    "as_logits",
    "behind",
    "check_class_range",
    "check_classes",
    "check_gives",
    "checked_floor",
    "digest_of",
    "named_classes",
    "pick_classes",
    "plain_function",
    "renormalized",
]

Classes = tuple[int | tuple[int, ...], ...]
"""Class numbers, and groups of them that are one class."""

Gives = Literal["logits", "probabilities", "log_probabilities"]
"""What a teacher's main answer holds."""

FLOOR = 1e-7
"""The probability that stands for zero. Below it float32 can't tell a share from none: 1 - 1e-8 is 1."""


@runtime_checkable
class Teaching(Protocol):
    """All that the rest of the library asks of a teacher, whatever it is made of."""

    @property
    def offers(self) -> frozenset[str]:
        """Names that can be asked for, as far as they are known before `open`."""
        ...

    @property
    def words(self) -> str:
        """What it is, in a phrase for reports."""
        ...

    @property
    def form(self) -> Mapping[str, Any]:
        """How it computes, as plain data: what may differ between machines while the answers stay the same."""
        ...

    def identity(self) -> dict[str, Any]:
        """The plain data that decides its answers."""
        ...

    def fingerprint(self) -> str:
        """A digest of the identity: it changes when the answers would."""
        ...

    def open(
        self,
        names: Iterable[str],
        example: Named,
        *,
        applied: Normalize | None = None,
        device: torch.device | None = None,
        samples: Named | None = None,
    ) -> Named:
        """Make ready to answer with `names`, refuse what can't be given, and return the answer to `example`."""
        ...

    def close(self) -> None:
        """Let go of what `open` made."""
        ...

    def __call__(self, batch: Named) -> Named:
        """The signal for one batch: without gradient, detached, on the batch's device."""
        ...


def behind(teacher: Teaching | None) -> Iterator[Teaching]:
    """The teacher and all that stand behind it: members of an ensemble, what is joined, what targets were made from."""
    if teacher is None:
        return
    yield teacher
    for inner in (*getattr(teacher, "members", ()), getattr(teacher, "inner", None), getattr(teacher, "live", None)):
        yield from behind(inner)


def digest_of(identity: Mapping[str, Any]) -> str:
    """The sha256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def plain_function(value: Any) -> Any:
    """Settings such as `inputs` and `outputs` as plain data; a function becomes its name and a digest of its source.

    What a function closes over can't be seen. Where there is no source (built-ins), the type's name stands for it.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain_function(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_function(v) for v in value]
    if isinstance(value, functools.partial):
        return [plain_function(value.func), plain_function(value.args), plain_function(value.keywords)]
    if not callable(value):
        return type(value).__qualname__
    code = value if inspect.isroutine(value) else type(value)
    try:
        text = inspect.getsource(code)
    except (OSError, TypeError):
        text = repr(type(value))
    return {"name": getattr(code, "__qualname__", ""), "source": hashlib.sha256(text.encode()).hexdigest()}


def renormalized(batch: Named, step: Normalize | None) -> Named:
    """The batch with its floating inputs carried over to the teacher's own normalisation."""
    if step is None:
        return batch
    return {k: step(v) if k not in RESERVED and v.is_floating_point() and v.dim() > 1 else v for k, v in batch.items()}


def as_logits(answer: Tensor, gives: Gives | None, floor: float) -> Tensor:
    """Logits whose softmax is the answer; probabilities below `floor`, zero among them, count as `floor`.

    The logarithm is taken in the answer's own type, and float64 is rounded to float32 after it.
    """
    if gives in (None, "logits"):
        return answer
    logs = answer.clamp_min(floor).log() if gives == "probabilities" else answer.clamp_min(math.log(floor))
    return logs.float()


def check_gives(answer: Tensor, gives: Gives | None, name: str) -> None:
    """Refuse answers that are not what was said of them; of which nothing was said must not be probabilities.

    Raises:
        ModelError: the answers sum to one and are taken for logits, or are taken for probabilities and don't.
    """
    if not answer.is_floating_point() or answer.dim() < 2 or answer.shape[-1] < 2:
        return
    if gives == "log_probabilities":
        answer = answer.exp()
    off = (answer.double().sum(-1) - 1).abs().max()
    if gives is None and bool((answer >= 0).all()) and float(off) < 1e-5:
        mend = 'say gives="probabilities", so that their logarithm is taken, or gives="logits" if they are logits'
        raise ModelError(problem("teacher", f"{name} returns rows that sum to 1, as probabilities do", mend))
    if gives in ("probabilities", "log_probabilities") and (bool((answer < 0).any()) or not float(off) < 1e-2):
        wrong = f"{name} returns rows that are no {gives} (a sum is {float(off):.3g} away from 1)"
        raise ModelError(problem("teacher", wrong, 'say gives="logits", or return one share a class'))


def checked_floor(gives: Gives | None, floor: float) -> float:
    """The floor, if both settings can be.

    Raises:
        ConfigError: `gives` is no known kind, or `floor` is no small probability.
    """
    if gives not in (None, "logits", "probabilities", "log_probabilities"):
        mend = 'give "logits", "probabilities" or "log_probabilities"'
        raise ConfigError(problem("teacher.gives", f"it is {gives!r}", mend))
    if not 1e-30 <= floor <= 0.01:
        raise ConfigError(problem("teacher.floor", f"it is {floor}", "give a probability from 1e-30 to 0.01"))
    return floor


def pick_classes(signal: Mapping[str, Tensor], index: Tensor | None) -> dict[str, Tensor]:
    """The signal with the logits of the chosen classes only, in the chosen order; those of a group are one class.

    A group has the sum of its classes' probabilities, which is the log of the sum of the exponentials of its logits.
    """
    if index is None:
        return dict(signal)
    logits, index = signal["logits"], index.to(signal["logits"].device)
    picked = logits.index_select(-1, index.clamp_min(0).flatten())
    if index.dim() > 1:
        picked = picked.view(*logits.shape[:-1], *index.shape).masked_fill(index < 0, -torch.inf).logsumexp(-1)
    return {**signal, "logits": picked}


def check_classes(classes: Classes | None) -> Tensor | None:
    """The chosen classes as an index [K], or, where there are groups, [K, G] with -1 where a group is smaller; or None.

    Raises:
        ModelError: a class number is negative or named twice, or a group is empty.
    """
    if classes is None:
        return None
    groups = [tuple(each) if isinstance(each, Sequence) else (each,) for each in classes]
    flat = [number for group in groups for number in group]
    if not groups or not all(groups) or min(flat) < 0 or len(set(flat)) != len(flat):
        wrong = f"{classes} are not distinct class numbers"
        raise ModelError(problem("teacher.classes", wrong, "name each of the teacher's classes once, from 0"))
    size = max(len(group) for group in groups)
    index = torch.tensor([group + (-1,) * (size - len(group)) for group in groups], dtype=torch.int64)
    return index.squeeze(-1) if size == 1 else index


def check_class_range(signal: Named, index: Tensor | None) -> None:
    """Refuse a choice of classes that the teacher has not.

    Raises:
        ModelError: a chosen number is the teacher's number of classes, or more.
    """
    if index is not None and int(index.max()) >= signal["logits"].shape[-1]:
        wrong = f"class {int(index.max())} is asked for, the teacher has {signal['logits'].shape[-1]}"
        raise ModelError(problem("teacher.classes", wrong, "name classes that the teacher has, from 0"))


def named_classes(index: Tensor | None) -> str:
    """The choice in words for a fingerprint; all of it, where a tensor's own words would leave out the middle."""
    return "all" if index is None else str(index.tolist())
