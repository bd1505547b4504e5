"""Residual networks for 32x32 images (He et al. 2016, "Deep residual learning", section 4.2)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting

__all__ = ["CifarResNet", "ResNet"]


@setting
class CifarResNet:
    """Three stages of basic blocks of 16, 32 and 64 channels (times `width`), shortcuts without parameters (A)."""

    kind: Literal["cifar_resnet"] = "cifar_resnet"
    depth: int = 20
    width: int = 1

    def __post_init__(self) -> None:
        """Refuse a depth that no whole number of blocks gives."""
        if self.depth < 8 or (self.depth - 2) % 6 or self.width < 1:
            mend = "give a depth of 6n + 2 (20, 32, 44, 56, …) and a width of 1 or more"
            wrong = f"depth {self.depth}, width {self.width} is no such network"
            raise ConfigError(problem("cifar_resnet", wrong, mend))

    def build(self, shape: tuple[int, ...], classes: int) -> ResNet:
        """The network for images of this shape (channels, height, width).

        Raises:
            ConfigError: the samples are no images.
        """
        if len(shape) != 3 or min(shape[1:]) < 4:
            wrong = f"samples are {shape}; it needs (channels, height, width)"
            raise ConfigError(problem("cifar_resnet", wrong, "use images, or the model mlp"))
        return ResNet(shape[0], (self.depth - 2) // 6, self.width, classes)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm around an identity; where the stage widens, every second pixel and zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.padding = (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(x + y)


class ResNet(nn.Module):
    """The network of `CifarResNet`. Its layers are called conv1, bn1, layer1 to layer3, linear."""

    def __init__(self, channels: int, blocks: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16 * width)
        stages = []
        inputs = 16 * width
        for outputs in (16 * width, 32 * width, 64 * width):
            stages.append(nn.Sequential(*(Block(inputs if i == 0 else outputs, outputs) for i in range(blocks))))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits
