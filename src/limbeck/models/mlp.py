"""Dense networks."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting

__all__ = ["MLP", "Perceptron"]


@setting
class MLP:
    """Linear layers with ReLUs between them; inputs of any shape are flattened, `dropout` follows each ReLU."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[int, ...] = (128,)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a layer without units, and a dropout that is no share."""
        for number in self.hidden:
            whole("mlp.hidden", number)
        if not 0 <= self.dropout < 1:
            raise ConfigError(problem("mlp.dropout", f"it is {self.dropout}", "give a share from 0 to below 1"))

    def build(self, shape: tuple[int, ...], classes: int) -> Perceptron:
        """The network for samples of this shape."""
        return Perceptron(math.prod(shape), self.hidden, classes, dropout=self.dropout)


class Perceptron(nn.Module):
    """The network of `MLP`. Its layers are called hidden1, hidden2, …, and linear."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = len(hidden)
        for i, out in enumerate(hidden, 1):
            noise = [nn.Dropout(dropout)] if dropout else []
            setattr(self, f"hidden{i}", nn.Sequential(nn.Linear(inputs, out), nn.ReLU(), *noise))
            inputs = out
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of samples [B, ...]."""
        x = x.flatten(1)
        for i in range(1, self.layers + 1):
            x = getattr(self, f"hidden{i}")(x)
        logits: Tensor = self.linear(x)
        return logits
