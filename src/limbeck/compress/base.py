"""What every compression step shares: an operation plans by reading, and one function writes.

A plan is plain data: the edits it would make, what it left alone and why, and what the model would then weigh. So it
can be read, shown, kept as JSON and replayed on a fresh model of the same architecture.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from limbeck.core.coupling import Coupling
from limbeck.core.errors import ConfigError, ModelError, problem
from limbeck.core.setting import as_plain, build, setting
from limbeck.core.still import undisturbed
from limbeck.core.surgery import Edit, run
from limbeck.core.taps import Inputs, Outputs, Reader
from limbeck.core.types import Named
from limbeck.evaluation.macs import Example, count_macs

__all__ = [
    "EDITS",
    "Change",
    "Evidence",
    "Left",
    "Op",
    "Plan",
    "Size",
    "apply",
    "edit",
    "edited",
    "frame",
    "hollow",
    "lean",
    "plan",
    "predict",
    "read_plan",
    "replay",
]

EDITS: dict[str, Edit] = {}
"""Every edit by its name; a file of operations adds its own with `@edit(name)`."""


def edit(name: str) -> Callable[[Edit], Edit]:
    """Enter a function into the table of edits."""

    def enter(function: Edit) -> Edit:
        EDITS[name] = function
        return function

    return enter


@setting
class Change:
    """One edit as plain data: its name in `EDITS`, the module or tensor it is made at, and its settings.

    What a setting called `values` holds decides values alone, and no shape.
    """

    edit: str
    at: str
    detail: Mapping[str, Any]


@setting
class Left:
    """What an operation left alone, and why, in words."""

    at: str
    why: str


@setting
class Size:
    """Parameters (tied ones once) and multiply-accumulates an example."""

    parameters: int
    macs: int


@setting
class Plan:
    """What an operation would do to a model."""

    op: Mapping[str, Any]
    """The operation itself, its kind and settings."""
    changes: tuple[Change, ...]
    before: Size
    after: Size
    left: tuple[Left, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What an operation may read beside the weights.

    Attributes:
        batch: a real batch with a few samples, on the model's device.
        batches: gives further real batches, for activations and gradients; None where the operation needs no data.
        inputs: how the model is called with a batch (see `Reader`).
        outputs: how its answers are named.
        seed: of whatever is drawn at random.
        coupling: the units of the very model that is planned for, where they are known; looked for when None.
    """

    batch: Named
    batches: Callable[[], Iterable[Named]] | None = None
    inputs: Inputs = None
    outputs: Outputs = None
    seed: int = 0
    coupling: Coupling | None = None

    def reader(self, model: nn.Module, taps: Iterable[str] = ()) -> Reader:
        """The model as `batch -> named tensors`."""
        return Reader(model, taps=taps, inputs=self.inputs, outputs=self.outputs)

    def example(self, model: nn.Module) -> Example:
        """The batch as the model's own arguments."""
        positional, keyword = self.reader(model).arguments(self.batch)
        return keyword or positional


class Op(Protocol):
    """Frozen settings of a compression step."""

    @property
    def needs(self) -> frozenset[str]:
        """Of the evidence: "data" (`batches`), "labels" (`y` in them)."""
        ...

    follows: ClassVar[frozenset[str]]
    """Kinds of operations that may have been applied before."""

    @property
    def kind(self) -> str:
        """The name in the table."""
        ...

    def changes(self, model: nn.Module, evidence: Evidence) -> tuple[Sequence[Change], Sequence[Left]]:
        """The edits, in order, and what is left alone. Reads only."""
        ...


def plan(model: nn.Module, op: Op, evidence: Evidence) -> Plan:
    """What `op` would do to `model`. Nothing of the model changes.

    Raises:
        ConfigError: the operation needs evidence that is not there.
        ModelError: the model cannot be called with the evidence.
    """
    _check(op, evidence)
    with undisturbed(model):
        before = _size(model, evidence)
        changes, left = op.changes(model, evidence)
    after = predict(model, changes, evidence) if changes else before
    return Plan(op=as_plain(op), changes=tuple(changes), before=before, after=after, left=tuple(left))


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """A changed copy of `model`, which itself stays as it is. The only function that writes.

    Raises:
        ModelError: the plan does not fit the model.
    """
    return edited(model, plan.changes)


def replay(model: nn.Module, operations: Iterable[Any]) -> nn.Module:
    """A copy of a fresh base model, changed by the plans of a lineage in their order.

    Raises:
        ConfigError: an entry of the lineage is no plan.
        ModelError: one does not fit the model.
    """
    for operation in operations:
        model = apply(model, read_plan(operation))
    return model


def read_plan(plain: Any) -> Plan:
    """A plan from plain data, as `as_plain(plan)` gives it.

    Raises:
        ConfigError: it is no plan.
    """
    return build(Plan, plain, "plan")  # type: ignore[no-any-return]


def edited(model: nn.Module, changes: Iterable[Change]) -> nn.Module:
    """A copy of `model` with the changes made in their order.

    Raises:
        ModelError: one does not fit the model.
    """
    changed = copy.deepcopy(model)
    _edit(changed, changes)
    return changed


def _check(op: Op, evidence: Evidence) -> None:
    if {"data", "labels"} & op.needs and evidence.batches is None:
        raise ConfigError(problem(op.kind, "it needs data, and there is none", "give batches with the evidence"))
    if "labels" in op.needs and "y" not in evidence.batch:
        raise ConfigError(problem(op.kind, "it needs labels, and the batch has none", "give labelled data"))


def _size(model: nn.Module, evidence: Evidence) -> Size:
    return Size(parameters=_parameters(model), macs=count_macs(model, evidence.example(model)))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def predict(model: nn.Module, changes: Sequence[Change], evidence: Evidence) -> Size:
    """The size after the changes, from a copy without values where the model can be called on one."""
    shape = edited(hollow(model), changes)
    example = evidence.example(model)
    try:
        macs = count_macs(shape, _meta(example))
    except ModelError:  # its way depends on values, as where a mask of padding is read
        macs = count_macs(edited(model, changes), example)
    return Size(parameters=_parameters(shape), macs=macs)


def hollow(model: nn.Module) -> nn.Module:
    """A copy on the meta device, without values: tied tensors stay tied, as `Module.to` would not keep them."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(model, memo)


def lean(plan: Plan) -> dict[str, Any]:
    """A plan as plain data without the values that its weights were computed from.

    It still gives a fresh model its shapes, and the weights come from the file that they are stored in.
    """
    plain: dict[str, Any] = as_plain(plan)
    for change in plain["changes"]:
        change["detail"].pop("values", None)
    return plain


def frame(model: nn.Module, operations: Iterable[Any]) -> nn.Module:
    """What `replay` gives, without the work of its values: a copy that only waits for the weights of a file.

    Tensors that keep their shape hold the base's values, for those that no file holds; others hold nothing yet.

    Raises:
        ConfigError: an entry of the lineage is no plan.
        ModelError: one does not fit the model.
    """
    outline = hollow(model)
    sources: dict[int, tuple[Tensor, Tensor]] = {}  # by identity, and held, so that none is given again
    for tensors in (nn.Module.parameters, nn.Module.buffers):
        sources |= {id(empty): (empty, own) for empty, own in zip(tensors(outline), tensors(model), strict=True)}
    for operation in operations:
        _edit(outline, read_plan(operation).changes)
    device = next((own.device for _, own in sources.values()), torch.device("cpu"))
    made: dict[int, Any] = {}
    for module in outline.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None:
                    if id(value) not in made:
                        _, own = sources.get(id(value), (None, None))
                        made[id(value)] = _filled(value, own, device)
                    table[name] = made[id(value)]
    return outline


def _edit(model: nn.Module, changes: Iterable[Change]) -> None:
    with torch.no_grad():
        for change in changes:
            run(EDITS, change.edit, model, change.at, change.detail)


def _filled(value: Tensor, source: Tensor | None, device: torch.device) -> Tensor:
    """A tensor of this shape, with the values of what it stands for."""
    if source is not None and source.shape == value.shape:
        real = source.detach().clone()
    elif value.is_meta:
        real = torch.zeros(value.shape, dtype=value.dtype, device=device)
    else:
        real = value.detach().clone()
    return nn.Parameter(real, value.requires_grad) if isinstance(value, nn.Parameter) else real


def _meta(example: Example) -> Example:
    if isinstance(example, Tensor):
        return example.to("meta")
    if isinstance(example, Mapping):
        return {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in example.items()}
    return tuple(value.to("meta") if isinstance(value, Tensor) else value for value in example)
