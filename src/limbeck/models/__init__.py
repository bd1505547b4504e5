"""The few small networks that recipes and benchmarks name. Users bring their own modules to `limbeck.distill`."""

from limbeck.models.conv import Conv, ConvNet
from limbeck.models.mlp import MLP, Perceptron
from limbeck.models.peers import Peers, PeersOf, kept_model, kept_setting
from limbeck.models.resnet import CifarResNet, ResNet
from limbeck.models.reused import ReusedHead, reuse_head

__all__ = [
    "MLP",
    "MODELS",
    "CifarResNet",
    "Conv",
    "ConvNet",
    "Peers",
    "PeersOf",
    "Perceptron",
    "ResNet",
    "ReusedHead",
    "kept_model",
    "kept_setting",
    "reuse_head",
]

MODELS: dict[str, type] = {"conv": Conv, "mlp": MLP, "cifar_resnet": CifarResNet, "peers": PeersOf}
