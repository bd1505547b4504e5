"""Smaller forms of a module that stay in torch: bfloat16, and 8-bit linear and recurrent layers.

The 8-bit layers are torch's own (`torch.ao.quantization`), which torch means to remove: all that is known of them is in
`in_process_int8`, and where they are gone it says so.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from limbeck.core.errors import ExtraError, ModelError, problem

__all__ = ["Bfloat16", "in_process_int8"]

_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.LSTM, nn.GRU)


class Bfloat16(nn.Module):
    """A copy of a model with all floats in bfloat16: half the bytes. It takes and returns float32.

    It is faster where the chip multiplies bfloat16 itself, and slower where it does not.

    Args:
        model: any module; it stays as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(torch.bfloat16).eval()

    def forward(self, *values: Any, **named: Any) -> Any:
        """The model's answer, in float32."""
        values, named = tree_map(_to(torch.bfloat16), (values, named))
        device = next((p.device.type for p in self.model.parameters()), "cpu")
        with torch.autocast(device, torch.bfloat16):  # for what the model itself makes of float32 inside
            answer = self.model(*values, **named)
        return tree_map(_to(torch.float32), answer)


def _to(dtype: torch.dtype) -> Any:
    return lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def in_process_int8(model: nn.Module) -> nn.Module:
    """A copy of a model whose linear, LSTM and GRU layers compute in 8 bits, with ranges found at each call.

    It runs on the CPU, cannot be trained, saved as safetensors or exported. It is the way for GRUs, which ONNX Runtime
    has in floats alone.

    Raises:
        ModelError: there is no such layer, or none that torch changes.
        ExtraError: this torch has no 8-bit layers any more.
    """
    if not any(isinstance(module, _LAYERS) for module in model.modules()):
        wrong = f"{type(model).__name__} has no linear, LSTM or GRU layer"
        raise ModelError(problem("8 bits in process", wrong, "export it: limbeck.export.quantize"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their removal, which is handled below
        try:
            from torch.ao.quantization import quantize_dynamic  # noqa: PLC0415
        except ImportError:
            mend = "export it instead: limbeck.export.quantize"
            raise ExtraError(problem("8 bits in process", f"torch {torch.__version__} has none", mend)) from None
        own = copy.deepcopy(model).cpu().eval()
        return quantize_dynamic(own, set(_LAYERS), dtype=torch.qint8)  # type: ignore[no-untyped-call, no-any-return]
