"""What an ONNX graph is made of: before it is quantised, and after the runtime has optimised it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.core.extras import need
from limbeck.core.onnx import OnnxFile

__all__ = ["Done", "Graph", "integer_ops", "read_graph", "showing"]

_WHY = "8-bit export"
_INTEGER = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize", "QGemm", "QAttention", "NhwcQLinear", "QMoE")
_HEAVY = ("Conv", "ConvTranspose", "FusedConv", "Gemm", "MatMul", "FusedMatMul", "LSTM", "GRU", "RNN")
_FLOAT = 1  # TensorProto.FLOAT


@dataclass(frozen=True)
class Graph:
    """How many of each operation a file has."""

    counts: Counter[str]

    def has(self, *names: str) -> bool:
        """Whether it has any of these."""
        return any(self.counts[name] for name in names)


class Done(NamedTuple):
    """Counts by operation: those that compute in whole numbers, and those with weights that still compute in floats."""

    integer: Counter[str]
    float: Counter[str]


def read_graph(path: Path) -> Graph:
    """The operations of a file."""
    return Graph(Counter(node.op_type for node in _load(path).graph.node))


def integer_ops(path: Path, optimized: Path) -> Done:
    """The operations of a file as the runtime runs it on this machine.

    What a file asks for says little: whether a rounded convolution becomes one in whole numbers is decided when the
    session is made.
    """
    file = OnnxFile(path, where=_WHY, why=_WHY)
    file.open(optimized=optimized)
    counts = read_graph(optimized).counts
    file.close()
    integer = {name: count for name, count in counts.items() if name.startswith(_INTEGER)}
    return Done(Counter(integer), Counter({name: counts[name] for name in _HEAVY if counts[name]}))


def showing(path: Path, target: Path, ops: Sequence[str]) -> list[str]:
    """Write the file with every float that goes in or out of these operations as an output; the names of those."""
    onnx = need("onnx", extra="onnx", why=_WHY)
    model = onnx.shape_inference.infer_shapes(_load(path))
    graph = model.graph
    constant = {each.name for each in graph.initializer}
    floats = {
        each.name for each in (*graph.value_info, *graph.output, *graph.input)
        if each.type.tensor_type.elem_type == _FLOAT
    }  # fmt: skip
    seen = dict.fromkeys(
        name for node in graph.node if node.op_type in ops for name in (*node.input, *node.output)
        if name in floats and name not in constant
    )  # fmt: skip
    there = {each.name for each in (*graph.output, *graph.input)}
    for name in seen:
        if name not in there:
            graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    onnx.save(model, str(target), save_as_external_data=False)
    return list(seen)


def _load(path: Path) -> Any:
    return need("onnx", extra="onnx", why=_WHY).load(str(path))
