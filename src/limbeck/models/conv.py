"""Plain convolutional networks."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting

__all__ = ["Conv", "ConvNet"]


@setting
class Conv:
    """3x3 convolutions, each with a ReLU and 2x2 max-pooling, then one linear layer."""

    kind: Literal["conv"] = "conv"
    channels: tuple[int, ...] = (16, 32)

    def __post_init__(self) -> None:
        """Refuse a network without channels."""
        for number in self.channels:
            whole("conv.channels", number)
        if not self.channels:
            raise ConfigError(problem("conv.channels", "there is none", "give one number a block, e.g. [16, 32]"))

    def build(self, shape: tuple[int, ...], classes: int) -> ConvNet:
        """The network for samples of this shape (channels, height, width).

        Raises:
            ConfigError: the samples are no images, or too small to be pooled that often.
        """
        least = 2 ** len(self.channels)
        if len(shape) != 3 or min(shape[1:]) < least:
            wrong = f"samples are {shape}; it needs (channels, height, width) of at least {least} pixels a side"
            raise ConfigError(problem("conv", wrong, "use fewer blocks, larger images, or the model mlp"))
        return ConvNet(shape, self.channels, classes)


class ConvNet(nn.Module):
    """The network of `Conv`. Its layers are called conv1, conv2, …, pool1, …, and linear."""

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...], classes: int) -> None:
        super().__init__()
        width, height, side = shape
        self.blocks = len(channels)
        for i, out in enumerate(channels, 1):
            setattr(self, f"conv{i}", nn.Conv2d(width, out, 3, padding=1))
            setattr(self, f"pool{i}", nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
            width, height, side = out, height // 2, side // 2
        self.linear = nn.Linear(width * height * side, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        for i in range(1, self.blocks + 1):
            x = getattr(self, f"pool{i}")(getattr(self, f"conv{i}")(x))
        logits: Tensor = self.linear(x.flatten(1))
        return logits
