"""A model in 8-bit whole numbers, as an ONNX file whose kernels really compute in them.

Convolutions get static ranges from calibration, linear layers, attention and LSTMs ranges that are found at each call:
either way is wrong for the other (`docs/decisions/0013-int8.md`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.core.check import whole
from limbeck.core.chip import sums_saturate
from limbeck.core.errors import ConfigError, DataError, ModelError, problem
from limbeck.core.extras import need
from limbeck.core.parity import Parity
from limbeck.core.setting import as_plain, setting
from limbeck.core.taps import Inputs, Reader
from limbeck.core.types import RESERVED, Named
from limbeck.export.calibrate import Calibration, Histogram, Range, range_of
from limbeck.export.graph import Graph, integer_ops, read_graph, showing
from limbeck.export.onnx import OnnxModel, about, quiet, to_onnx
from limbeck.export.parity import FLOAT, INT8, prove, write_parity
from limbeck.export.whole import staged

__all__ = ["Method", "Quantize", "quantize"]

Method = Literal["static", "dynamic", "mixed"]
Score = Callable[[nn.Module], Mapping[str, Any]]

_PART = 32
"""Samples that inner values are held of at a time."""
_PROOF = 256
"""Samples that parity is proved on, at most."""
_STATIC = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool",
    "AveragePool", "GlobalAveragePool", "Concat", "Split", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Pad",
    "Resize",
)  # fmt: skip
_DYNAMIC = ("MatMul", "Gemm", "LSTM", "Gather")


@setting
class Quantize:
    """8-bit whole numbers, where the chip and the runtime compute in them: the last step, whose result is a file.

    Args:
        method: "static" rounds inner values in ranges that calibration found; "dynamic" finds them at each call;
            "mixed" is static, and dynamic for LSTMs; "auto" chooses by what the model is made of, and says so.
        calibration: static ranges from the ends that were seen, from a percentile, or by the least divergence.
        percentile: of the values that stay inside, where that is the rule.
        per_channel: a scale for each output channel of a weight, else one for each weight.
        reduce_range: weights of 7 bits, which the sums of a chip without VNNI need; None asks the chip.
        samples: of calibration, at most.
    """

    kind: Literal["quantize"] = "quantize"
    method: Method | Literal["auto"] = "auto"
    calibration: Calibration = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    reduce_range: bool | None = None
    samples: int = 512

    def __post_init__(self) -> None:
        """Refuse what is no range."""
        whole("quantize.samples", self.samples)
        if not 50 < self.percentile <= 100:
            wrong = f"it is {self.percentile}"
            raise ConfigError(problem("quantize.percentile", wrong, "give a share from above 50 to 100, such as 99.99"))


def quantize(
    model: nn.Module | str | Path,
    batches: Iterable[Any],
    path: str | Path,
    *,
    settings: Quantize | None = None,
    inputs: Inputs = None,
    score: Score | None = None,
    bound: Parity = INT8,
) -> OnnxModel:
    """Write a model as an ONNX file of 8-bit kernels, and return it, ready to be called.

    Beside the file is the record of its parity: how it was made, which operations are really in whole numbers, what was
    left in floats and why, and the scores of both where `score` is given. The model stays as it is.

    Args:
        model: a module, or the path of a float ONNX file.
        batches: real data: batches by column (`id`, `valid`, `view` and `y` are left out), pairs (x, y), or tensors.
            Read once, and not further than `settings.samples`.
        path: the file to write.
        settings: how; `Quantize()` when None.
        inputs: which columns go in, where it is not clear (see `limbeck.evaluate`).
        score: names to numbers of a model; asked of the model and of the file.
        bound: how far the file's answers may be from the model's.

    Raises:
        DataError: there is no sample.
        ModelError: the model cannot be exported, nothing in it can be quantised, or the answers are beyond the bound.
        CheckpointError: the file cannot be written.
        ExtraError: the packages are not installed.
    """
    settings, path = settings or Quantize(), Path(path)
    for package in ("onnx", "onnxruntime.quantization"):
        need(package, extra="onnx", why="8-bit export")
    samples = _gather(batches, settings.samples)
    with tempfile.TemporaryDirectory() as scratch:
        base = _as_file(model, samples, inputs, Path(scratch) / "float.onnx")
        given = dict(zip(base.columns, base.arguments(samples, inputs), strict=True))
        graph = read_graph(base.path)
        method, why = _choose(settings.method, graph)
        if settings.reduce_range is None:
            settings = dataclasses.replace(settings, reduce_range=sums_saturate())
        with staged(path) as file:
            if method == "dynamic":
                _dynamic(base.path, file, settings, ops=_DYNAMIC)
            else:
                first = file if method == "static" else Path(scratch) / "static.onnx"
                _static(base, given, first, settings, Path(scratch))
                if method == "mixed":
                    _dynamic(first, file, settings, ops=("LSTM",))
            done = integer_ops(file, Path(scratch) / "optimized.onnx")
            if not done.integer:
                wrong = f"nothing in it can be computed in whole numbers (it is made of {', '.join(graph.counts)})"
                raise ModelError(problem("8-bit export", wrong, "export it in floats: limbeck.export.to_onnx"))
            few = {name: value[:_PROOF] for name, value in given.items()}
            parity = prove("8-bit export", base.answer, OnnxModel(file).answer, few, bound)
            scores = {"float": score(base), "int8": score(OnnxModel(file))} if score is not None else None
            record = write_parity(
                file, parity, kind="int8", **about(base if not isinstance(model, nn.Module) else model),
                settings=as_plain(settings), method=method, why=why,
                integer=dict(done.integer), float=dict(done.float), left=list(_left(graph, method)),
                float_bytes=base.bytes, scores=scores,
            )  # fmt: skip
    return OnnxModel(path, record=record)


def _gather(batches: Iterable[Any], most: int) -> dict[str, Tensor]:
    """The first samples by column."""
    parts: list[dict[str, Tensor]] = []
    held = 0
    for batch in batches:
        columns = batch if hasattr(batch, "keys") else {"x": batch[0] if isinstance(batch, list | tuple) else batch}
        part = {k: torch.as_tensor(v)[: most - held].cpu() for k, v in columns.items() if k not in RESERVED}
        size = len(next(iter(part.values()), ()))
        parts += [part] if size else []
        held += size
        if held >= most:
            break
    if not parts:
        raise DataError(problem("8-bit export", "there is no sample to calibrate with", "give batches of real data"))
    if any(part.keys() != parts[0].keys() for part in parts):
        raise DataError(problem("8-bit export", "its batches have different columns", "give one kind of batch"))
    try:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    except RuntimeError as error:
        raise DataError(problem("8-bit export", f"its batches cannot be joined ({error})", "give one shape")) from None


def _as_file(model: nn.Module | str | Path, samples: Named, inputs: Inputs, path: Path) -> OnnxModel:
    if isinstance(model, str | Path):
        return OnnxModel(model)
    if isinstance(model, OnnxModel):
        return model
    few = {name: value[:_PROOF] for name, value in samples.items()}
    positional, keyword = Reader(model, inputs=inputs).arguments(few)
    example = keyword or positional
    return to_onnx(model, example, path, bound=FLOAT)


def _choose(asked: str, graph: Graph) -> tuple[Method, str]:
    """How, and why in words."""
    convolutions, recurrent = graph.has("Conv", "ConvTranspose"), graph.has("LSTM", "GRU", "RNN")
    if asked != "auto":
        return asked, "asked for"  # type: ignore[return-value]
    if not convolutions:
        return "dynamic", "it has no convolution"
    if recurrent:
        return "mixed", "it has convolutions and recurrent layers"
    if graph.has("Softmax", "LayerNormalization"):
        return "dynamic", "it is made of attention; its convolutions stay in floats"
    return "static", "it is made of convolutions"


def _left(graph: Graph, method: Method) -> Iterable[dict[str, Any]]:
    """What stays in floats for a reason that is worth telling."""
    reasons = {
        "GRU": "ONNX Runtime has no whole-number GRU; limbeck.export.int8 has one for torch",
        "RNN": "ONNX Runtime has no whole-number RNN",
    }
    if method == "static":
        reasons["LSTM"] = 'it has ranges at each call only: method "mixed"'
    if method == "dynamic":
        reasons |= dict.fromkeys(("Conv", "ConvTranspose"), "found at each call, ranges make convolutions slower")
    for name, why in reasons.items():
        if graph.has(name):
            yield {"op": name, "count": graph.counts[name], "why": why}


def _dynamic(source: Path, path: Path, settings: Quantize, *, ops: tuple[str, ...]) -> None:
    tools = need("onnxruntime.quantization", extra="onnx", why="8-bit export")
    with quiet():
        tools.quantize_dynamic(
            str(source), str(path), op_types_to_quantize=list(ops), per_channel=settings.per_channel,
            reduce_range=settings.reduce_range, weight_type=tools.QuantType.QInt8,
        )  # fmt: skip


def _static(base: OnnxModel, given: Named, path: Path, settings: Quantize, scratch: Path) -> None:
    tools = need("onnxruntime.quantization", extra="onnx", why="8-bit export")
    ready = scratch / "ready.onnx"
    with quiet():
        # Symbolic shapes need a further package, and these graphs have their shapes.
        tools.quant_pre_process(str(base.path), str(ready), skip_symbolic_shape=True)
    ranges = _ranges(ready, given, settings, scratch / "showing.onnx")
    overrides = {name: [{"rmin": np.float32(each.low), "rmax": np.float32(each.high)}] for name, each in ranges.items()}
    with quiet():
        tools.quantize_static(
            str(ready), str(path), _Once(OnnxModel(ready).feed(given)), quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=list(_STATIC), per_channel=settings.per_channel, reduce_range=settings.reduce_range,
            # The defaults (QInt8 twice) leave the convolutions of x86 in floats.
            activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QInt8,
            extra_options={"TensorQuantOverrides": overrides},
        )  # fmt: skip


class _Once:
    """One sample, for the calibration of ONNX Runtime, whose ranges ours replace."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._left = [arrays]

    def get_next(self) -> Mapping[str, Any] | None:
        return self._left.pop() if self._left else None


def _ranges(path: Path, given: Named, settings: Quantize, showing_at: Path) -> dict[str, Range]:
    """The range of every inner value that will be rounded, in one pass over the samples."""
    names = showing(path, showing_at, _STATIC)
    model = OnnxModel(showing_at)
    histograms = {name: Histogram(settings.calibration) for name in names}
    total = len(next(iter(given.values())))
    for start in range(0, total, _PART):
        part = {name: value[start : start + _PART] for name, value in given.items()}
        answers = {**part, **model.answer(part)}
        for name, histogram in histograms.items():
            histogram.add(answers[name].numpy(), name)
    return {
        name: range_of(histogram, settings.calibration, percentile=settings.percentile)
        for name, histogram in histograms.items()
    }
