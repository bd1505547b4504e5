"""The numbers that torch's own layers keep about their shape, as a function of the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

__all__ = ["knows_shape", "shape_attributes"]

_GATES = {"LSTM": 4, "GRU": 3, "LSTMCell": 4, "GRUCell": 3}
Shapes = Mapping[str, tuple[int, ...]]


def shape_attributes(module: nn.Module, old: Shapes, new: Shapes) -> dict[str, int | list[int]] | None:
    """What a layer must say about itself once its tensors have other shapes; None for a layer that isn't torch's own.

    Args:
        module: the layer, still with its old shapes.
        old: the shapes of its tensors by their name in the layer.
        new: the shapes that they will have.
    """
    for kind, rule in _KINDS.items():
        if isinstance(module, kind):
            # Where its weight is computed from others (a parametrization), it has none whose shape could be read.
            return {} if hasattr(module, "parametrizations") else rule(module, old, new)
    return None


def knows_shape(module: nn.Module) -> bool:
    """Whether it is a layer of torch's own, whose numbers are known."""
    return isinstance(module, tuple(_KINDS))


def _linear(_module: nn.Module, _old: Shapes, new: Shapes) -> dict[str, int | list[int]]:
    outs, ins = new["weight"]
    return {"in_features": ins, "out_features": outs}


def _conv(module: nn.Module, old: Shapes, new: Shapes) -> dict[str, int | list[int]]:
    # A grouped convolution loses whole groups, so its groups shrink as its weight does.
    assert isinstance(module, nn.modules.conv._ConvNd)
    first, second = new["weight"][:2]
    groups = module.groups * first // old["weight"][0] if module.groups > 1 else 1
    ins, outs = (first, second * groups) if module.transposed else (second * groups, first)
    return {"in_channels": ins, "out_channels": outs, "groups": groups}


def _batch_norm(_module: nn.Module, _old: Shapes, new: Shapes) -> dict[str, int | list[int]]:
    return {"num_features": next(iter(new.values()))[0]} if new else {}


def _group_norm(module: nn.Module, old: Shapes, new: Shapes) -> dict[str, int | list[int]]:
    assert isinstance(module, nn.GroupNorm)
    channels = new["weight"][0]
    return {"num_channels": channels, "num_groups": module.num_groups * channels // old["weight"][0]}


def _layer_norm(_module: nn.Module, _old: Shapes, new: Shapes) -> dict[str, int | list[int]]:
    return {"normalized_shape": list(new["weight"])}


def _embedding(_module: nn.Module, _old: Shapes, new: Shapes) -> dict[str, int | list[int]]:
    rows, width = new["weight"]
    return {"num_embeddings": rows, "embedding_dim": width}


def _recurrent(module: nn.Module, _old: Shapes, new: Shapes) -> dict[str, int | list[int]]:
    end = "" if isinstance(module, nn.RNNCellBase) else "_l0"
    rows, inputs = new[f"weight_ih{end}"]
    found: dict[str, int | list[int]] = {
        "input_size": inputs,
        "hidden_size": rows // _GATES.get(type(module).__name__, 1),
    }
    if "weight_hr_l0" in new:
        found["proj_size"] = new["weight_hr_l0"][0]
    return found


def _attention(module: nn.Module, _old: Shapes, new: Shapes) -> dict[str, int | list[int]]:
    assert isinstance(module, nn.MultiheadAttention)
    rows, width = new["in_proj_weight"] if "in_proj_weight" in new else new["q_proj_weight"]
    inner = rows // 3 if "in_proj_weight" in new else rows
    found: dict[str, int | list[int]] = {"embed_dim": width, "num_heads": inner // module.head_dim}
    if "k_proj_weight" in new:
        found |= {"kdim": new["k_proj_weight"][1], "vdim": new["v_proj_weight"][1]}
    return found


_KINDS: dict[type[nn.Module], Callable[[nn.Module, Shapes, Shapes], dict[str, int | list[int]]]] = {
    nn.Linear: _linear,
    nn.modules.conv._ConvNd: _conv,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent,
    nn.MultiheadAttention: _attention,
    nn.PReLU: lambda _module, _old, new: {"num_parameters": new["weight"][0]},
}
