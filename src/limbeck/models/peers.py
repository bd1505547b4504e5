"""Several networks that are trained side by side, of which the first is kept.

Shapes: B = batch, P = peers, C = classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, ModelError, problem
from limbeck.core.setting import setting, tagged
from limbeck.core.taps import flatten_output
from limbeck.models.mlp import MLP

__all__ = ["Peers", "PeersOf", "kept_model", "kept_setting"]


class Peers(nn.Module):
    """Students that learn together, as `Mutual` and `Each` train them: every peer runs once on a batch.

    It gives `logits` [B, C] of the first peer and `peers` [B, P, C] of all. The first is the student: it is scored,
    returned and saved, alone, whatever the others became. `peer.0.layer2` is a layer of the first, and so on.

    Args:
        students: two modules or more with the same classes, which differ in their initial weights or their form.

    Raises:
        ConfigError: there are fewer than two.
        ModelError: two of them share parameters.

    Source: Zhang et al. 2018, "Deep mutual learning".
    """

    def __init__(self, students: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(students) < 2:
            mend = "give two or more, or train one alone"
            raise ConfigError(problem("student.peers", f"it has {len(students)}, and nobody to learn from", mend))
        seen: set[int] = set()
        for number, student in enumerate(students):
            own = {id(parameter) for parameter in student.parameters()}
            if own & seen:
                wrong = f"peer {number} shares parameters with one before it"
                raise ModelError(problem("student.peers", wrong, "build each with initial weights of its own"))
            seen |= own
        self.peer = nn.ModuleList(students)

    @property
    def apart(self) -> Sequence[nn.Module]:
        """What learns each for itself: gradients are clipped peer by peer, as in trainings of their own."""
        return list(self.peer)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Logits of the first, and of all.

        Raises:
            ModelError: their logits have different shapes.
        """
        each = [_logits(peer(*args, **kwargs)) for peer in self.peer]
        shapes = [tuple(logits.shape[1:]) for logits in each]
        if len(set(shapes)) > 1:
            wrong = f"the peers answer with {', '.join(map(str, shapes))} a sample"
            raise ModelError(problem("student.peers", wrong, "give them the same classes"))
        return {"logits": each[0], "peers": torch.stack(each, 1)}


def _logits(output: Any) -> Tensor:
    flat = flatten_output(output)
    if not flat:
        raise ModelError(problem("student.peers", "a peer returns no tensor", "let each return its logits"))
    return flat["logits"] if "logits" in flat else next(iter(flat.values()))


if TYPE_CHECKING:
    AnyModel = Any
else:

    class AnyModel:
        """In a field's place: any model, read from YAML by its `kind`; the table holds models that hold models."""

        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            """What pydantic asks of a type that says itself how it is read."""
            from limbeck.models import MODELS  # noqa: PLC0415 - whole by the time anything is read

            return handler.generate_schema(tagged({k: v for k, v in MODELS.items() if v is not PeersOf}))


@setting
class PeersOf:
    """Several networks of one form that are trained side by side (`Mutual`, `Each`); the first is the student."""

    kind: Literal["peers"] = "peers"
    student: AnyModel = MLP()
    count: int = 2

    def __post_init__(self) -> None:
        """Refuse one alone."""
        whole("peers.count", self.count, least=2)

    def build(self, shape: tuple[int, ...], classes: int) -> Peers:
        """The networks for samples of this shape. The first has the initial weights that it would have alone."""
        return Peers([self.student.build(shape, classes) for _ in range(self.count)])


def kept_model(student: nn.Module) -> nn.Module:
    """What is left of a student after training: the first of peers, anything else itself."""
    return student.peer[0] if isinstance(student, Peers) else student


def kept_setting(model: Any) -> Any:
    """The setting of what is left of a student after training."""
    return model.student if isinstance(model, PeersOf) else model
