"""What leaves the house: a model as safetensors with its lineage and a card, as ONNX, in 8 bits, as a torch program.

All but the first are loaded when they are first used: ONNX and its runtime are packages that not everybody has.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from limbeck.export.folder import load_weights, read_lineage, rebuild, save_model

_HOMES = {
    "limbeck.compress.simulate": ("settle", "simulate"),
    "limbeck.export.inprocess": ("Bfloat16", "in_process_int8"),
    "limbeck.export.onnx": ("OnnxModel", "to_onnx"),
    "limbeck.export.parity": ("read_parity",),
    "limbeck.export.integers": ("Quantize", "quantize"),
    "limbeck.export.program": ("ProgramModel", "to_program"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["load_weights", "read_lineage", "rebuild", "save_model", *sorted(_HOME_OF)]  # noqa: PLE0604 - strings, by construction


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'limbeck.export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
