"""Every kind of teacher, as rows of one table: a new kind is held to all laws on the day it is added."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

os.environ["KERAS_BACKEND"] = "torch"

FEATURES, CLASSES = 6, 3
SAMPLES = 8
WORDS = ["[PAD]", "[UNK]", "red", "green", "blue", "cat", "dog", "bird", "sees"]


def batch(samples: int = SAMPLES) -> dict[str, torch.Tensor]:
    """Rows whose ids are neither in order nor dense."""
    g = torch.Generator().manual_seed(7)
    ids = torch.tensor([40, 7, 19, 3, 88, 61, 12, 54])[:samples]
    return {
        "id": ids,
        "valid": torch.ones(samples, dtype=torch.bool),
        "view": torch.zeros(samples, dtype=torch.int64),
        "x": torch.randn(SAMPLES, FEATURES, generator=g)[:samples],
        "y": torch.arange(samples) % CLASSES,
    }


@dataclass(frozen=True)
class Row:
    """A kind of teacher. `model(seed)` makes what a user has; `reload` gives it back from what was saved."""

    model: Callable[[int], Any]
    settings: Callable[[], dict[str, Any]] = dict
    reload: Callable[[Any, Path], Any] = lambda model, folder: copy.deepcopy(model)
    state: Callable[[Any], Any] = lambda model: None
    parts: float = 0.0
    """How far the answer for a part may be from that part of the answer: the rounding of another batch size."""
    names: tuple[str, ...] = ("logits",)
    extra: dict[str, Any] = field(default_factory=dict)

    def teacher(self, model: Any) -> Any:
        import limbeck as lb

        return lb.teacher(model, **self.settings())


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    with torch.no_grad():
        net[1].running_mean.normal_()
    return net


def module_state(model: nn.Module) -> Any:
    return (
        {k: v.clone().numpy().tobytes() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


class Rule:
    """A callable with a state that its source does not show."""

    def __init__(self, seed: int) -> None:
        self.weight = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(seed))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def shares(x: np.ndarray) -> np.ndarray:
    """Probabilities, of which some are zero."""
    assert isinstance(x, np.ndarray)
    raised = np.maximum(x[:, :CLASSES], 0) + np.eye(CLASSES)[np.zeros(len(x), dtype=int)]
    return raised / raised.sum(1, keepdims=True)


def other_shares(x: np.ndarray) -> np.ndarray:
    return shares(-x)


def onnx_file(folder: Path, seed: int, *, samples: int | str = "batch", external: bool = False) -> Path:
    """Two matrix products and what lies between, written node by node."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.normal(size=(FEATURES, 8)).astype(np.float32),
        "b1": rng.normal(size=8).astype(np.float32),
        "w2": rng.normal(size=(8, CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["features", "w1", "b1"], ["before"]),
        helper.make_node("Relu", ["before"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w2"], ["logits"]),
    ]
    real = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("features", real, [samples, FEATURES])],
        [
            helper.make_tensor_value_info("hidden", real, [samples, 8]),
            helper.make_tensor_value_info("logits", real, [samples, CLASSES]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"net-{seed}.onnx"
    if external:
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"w-{seed}.bin", size_threshold=0)
    else:
        onnx.save_model(model, str(path))
    return path


def onnx_row(tmp: Path, **how: Any) -> Row:
    def copied(path: Path, folder: Path) -> Path:
        for file in path.parent.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder / path.name

    def state(path: Path) -> Any:
        return {file.name: file.read_bytes() for file in path.parent.iterdir()}

    return Row(
        lambda seed: onnx_file(tmp / f"{seed}-{how}".replace("'", ""), seed, **how),
        reload=copied,
        state=state,
        names=("logits", "hidden"),
        parts=1e-6,
    )


@cache
def table(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(80, FEATURES)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)


def fitted(make: Callable[[], Any], **changed: Any) -> Callable[[int], Any]:
    def fit(seed: int) -> Any:
        x, y = table(seed)
        return make().fit(x, y)

    return fit


def forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(6, max_depth=4, random_state=0)


def boosted() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=4, random_state=0)


def pipeline() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression())


def machine() -> Any:
    from sklearn.svm import SVC

    return SVC()


def ridge() -> Any:
    from sklearn.linear_model import Ridge

    return Ridge()


def through_pickle(model: Any, folder: Path) -> Any:
    return pickle.loads(pickle.dumps(model))


def sklearn_row(make: Callable[[], Any]) -> Row:
    return Row(fitted(make), reload=through_pickle, state=pickle.dumps, parts=1e-5)


def keras_net(seed: int) -> Any:
    import keras

    keras.utils.set_random_seed(seed)
    inner = [keras.Input((8,)), keras.layers.Dense(8, name="dense"), keras.layers.BatchNormalization(name="norm")]
    block = keras.Sequential(inner, name="block")
    layers = [keras.layers.Dense(8, activation="relu", name="hidden"), block, keras.layers.Dropout(0.5, name="drop")]
    return keras.Sequential([keras.Input((FEATURES,)), *layers, keras.layers.Dense(CLASSES, name="out")], name="net")


def keras_again(model: Any, folder: Path) -> Any:
    import keras

    model.save(folder / "net.keras")
    return keras.saving.load_model(folder / "net.keras")


def keras_state(model: Any) -> Any:
    from limbeck.core.keras import layers_of

    layers = layers_of(model).values()
    return (
        [v.value.detach().numpy().tobytes() for v in model.variables],
        [m.training for m in (model, *layers)],
        [v.value.requires_grad for v in model.variables],
        [len(layer._forward_hooks) for layer in layers],
    )


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def bert(seed: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=12, num_labels=CLASSES, **sizes)
    return BertForSequenceClassification(config)


def bert_again(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def texts() -> Any:
    """A text for each id, in another order than the batch's, of other lengths."""
    from limbeck.teachers import Rows

    rng = np.random.default_rng(0)
    said = [" ".join(rng.choice(WORDS[2:], size=n)) for n in (3, 5, 2, 7, 4, 6, 3, 9)]
    return Rows({"text": said}, ids=sorted(batch()["id"].tolist()))


def own_columns() -> Any:
    from limbeck.teachers import Rows

    x = torch.randn(SAMPLES, FEATURES, generator=torch.Generator().manual_seed(3))
    return Rows({"x": x}, ids=sorted(batch()["id"].tolist()))


def several(seed: int) -> list[Any]:
    return [module(seed), fitted(forest)(seed), module(seed + 10)]


def several_again(models: list[Any], folder: Path) -> list[Any]:
    return [copy.deepcopy(model) for model in models]


def ensemble_row(**settings: Any) -> Row:
    return Row(
        several,
        settings=lambda: settings,
        reload=several_again,
        state=lambda models: (module_state(models[0]), pickle.dumps(models[1]), module_state(models[2])),
        names=("logits", "0.0", "2.logits"),
        parts=1e-5,
    )


def rows(tmp: Path) -> dict[str, Row]:
    """The table. `tmp` is where files are written."""
    return {
        "module": Row(module, state=module_state, names=("logits", "0"), parts=1e-6),
        "function": Row(Rule, settings=dict, parts=1e-6),
        "function of arrays": Row(
            lambda seed: (shares, other_shares)[seed],
            settings=lambda: {"arrays": "numpy", "gives": "probabilities"},
        ),
        "onnx": onnx_row(tmp),
        "onnx, three at a time": onnx_row(tmp, samples=3),
        "onnx, weights beside it": onnx_row(tmp, external=True),
        "forest": sklearn_row(forest),
        "boosted trees": sklearn_row(boosted),
        "pipeline": sklearn_row(pipeline),
        "support vectors": sklearn_row(machine),
        "ridge": sklearn_row(ridge),
        "keras": Row(
            keras_net,
            reload=keras_again,
            state=keras_state,
            names=("logits", "hidden", "block.dense"),
            parts=1e-6,
        ),
        "transformers": Row(
            bert,
            settings=lambda: {"tokenizer": tokenizer(), "data": texts()},
            reload=bert_again,
            state=module_state,
            names=("logits", "hidden_states.1", "attentions.0", "bert.pooler"),
            parts=1e-5,
        ),
        "joined": Row(module, settings=lambda: {"data": own_columns()}, state=module_state, parts=1e-6),
        "mean of logits": ensemble_row(weights=(1, 2, 3)),
        "mean of probabilities": ensemble_row(mean="probabilities", dropout=0.5, seed=3),
        "the most confident": ensemble_row(choose="confident"),
        "those that are right": ensemble_row(choose="correct"),
    }
