"""A Hugging Face model as a teacher, with its tokenizer where the data is text."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import ConfigError, DataError, ModelError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.taps import Inputs, Outputs
from limbeck.core.types import RESERVED, Named
from limbeck.teachers.module import ModuleTeacher
from limbeck.teachers.signal import Classes, digest_of

__all__ = ["TransformersTeacher"]


class TransformersTeacher:
    """A Hugging Face model: `logits`, `hidden_states.0` …, `attentions.0` …, and any layer by its path.

    Token ids that are columns of the batch (`input_ids`, `attention_mask`, …) go in by name; a mask that the model
    needs must be among them. Raw text comes from data of its own, by sample id: `limbeck.teacher(model,
    tokenizer=tokenizer, data=texts)`. Hidden states are asked for, and attention is computed in the way that can show
    its weights, only where a term reads them. The model itself, its configuration too, is left as it was.

    Args:
        model: a `PreTrainedModel`.
        tokenizer: its tokenizer or processor; it decides the answers, and belongs to the fingerprint.
        inputs: which columns go in; None goes by the model's parameter names.
        outputs: names for what it returns.
        max_length: the most tokens of a text; None takes what tokenizer and model can.
        padding: "longest" fills up to the longest text of a batch, "max_length" always to `max_length`, so that hidden
            states have one shape.
        **settings: those of `ModuleTeacher`.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        inputs: Inputs = None,
        outputs: Outputs = None,
        normalize: Normalize | None = None,
        classes: Classes | None = None,
        max_length: int | None = None,
        padding: Literal["longest", "max_length"] = "longest",
        **settings: Any,
    ) -> None:
        if padding not in ("longest", "max_length"):
            raise ConfigError(problem("teacher.padding", f"it is {padding!r}", 'give "longest" or "max_length"'))
        self.model: Any = model
        self.tokenizer, self.padding = tokenizer, padding
        self.max_length = max_length if max_length is not None else _longest(model, tokenizer)
        if padding == "max_length" and self.max_length is None:
            raise ConfigError(problem("teacher.max_length", "it is not known", "give the most tokens of a text"))
        self._settings = {
            "inputs": inputs,
            "outputs": outputs,
            "normalize": normalize,
            "classes": classes,
            **settings,
        }
        self._plain = ModuleTeacher(model, **self._settings)
        self._asked = self._plain

    @property
    def inputs(self) -> Inputs:
        """Which columns go in."""
        return self._plain.inputs

    @property
    def outputs(self) -> Outputs:
        """Names for what it returns."""
        return self._plain.outputs

    @property
    def offers(self) -> frozenset[str]:
        """The layers; what the model returns comes on top and is known after `open`."""
        return self._plain.offers | {"logits"}

    @property
    def words(self) -> str:
        """Its class."""
        return type(self.model).__qualname__

    @property
    def form(self) -> Mapping[str, Any]:
        """How the module computes, and the library's version."""
        version = getattr(sys.modules.get("transformers"), "__version__", "")
        return {**getattr(self._asked, "form", {}), "transformers": version}

    def identity(self) -> dict[str, Any]:
        """The module's, with configuration, tokenizer, and how texts are cut and filled up."""
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in _IDLE}
        return {
            **self._plain.identity(),
            "teacher": type(self).__name__,
            "config": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
            "tokenizer": _tokenizer_digest(self.tokenizer),
            "max_length": self.max_length,
            "padding": self.padding,
        }

    def fingerprint(self) -> str:
        """A digest of the identity."""
        return digest_of(self.identity())

    def encode(self, columns: Mapping[str, Any]) -> Named:
        """Token ids and masks of the texts in `columns`: one column of strings, or two for pairs.

        Raises:
            DataError: there are no texts, or there is no tokenizer for them.
        """
        texts = [list(value) for name, value in columns.items() if name not in RESERVED and _is_text(value)]
        if not texts:
            rest = {name: value for name, value in columns.items() if name not in RESERVED}
            if rest and all(isinstance(value, Tensor) for value in rest.values()):
                return rest
            raise DataError(problem("teacher", f"its data has no text (only {', '.join(rest) or 'nothing'})", _MEND))
        if self.tokenizer is None:
            raise DataError(problem("teacher", "its data is text, and it has no tokenizer", "pass `tokenizer=`"))
        limit = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        return dict(self.tokenizer(*texts, padding=self.padding, return_tensors="pt", **limit))

    def open(
        self,
        names: Iterable[str],
        example: Named,
        *,
        applied: Normalize | None = None,
        device: torch.device | None = None,
        samples: Named | None = None,
    ) -> Named:
        """Make ready to answer with `names`, and return the answer to `example`.

        Raises:
            ModelError: the model cannot be called with the batch, or lacks a name.
        """
        self.close()
        names = frozenset(names)
        flags = {flag for flag in _FLAGS if any(name.split(".")[0] == flag for name in names)}
        if flags:
            self._asked = ModuleTeacher(self._with(flags), **self._settings)
        more = {} if samples is None else {"samples": samples}
        how: Any = {
            "applied": applied,
            "device": device,
            **more,
        }
        return self._asked.open(names, example, **how)

    def _with(self, flags: set[str]) -> nn.Module:
        """A copy that shares the weights, with a configuration of its own that returns these."""
        own: Any = copy.deepcopy(self.model, {id(p): p for p in self.model.parameters()})
        try:
            if "attentions" in flags:
                own.set_attn_implementation("eager")
            for flag in flags:
                setattr(own.config, f"output_{flag}", True)
        except Exception as error:
            wrong = f"it can't return its {' and '.join(sorted(flags))} ({type(error).__name__}: {error})"
            raise ModelError(problem("teacher", wrong, "read layers by their path instead")) from None
        made: nn.Module = own
        return made

    def close(self) -> None:
        """Let go of the private copies."""
        self._asked.close()
        self._asked = self._plain

    def __call__(self, batch: Named) -> Named:
        """The signal for one batch of token ids."""
        return self._asked(batch)


_FLAGS = ("hidden_states", "attentions")
_IDLE = ("_name_or_path", "transformers_version", "output_hidden_states", "output_attentions", "dtype", "torch_dtype")
_MEND = "give a column of strings, or `encode=`, a function from the columns to the model's inputs"


def _is_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, str) for each in value)


def _longest(model: Any, tokenizer: Any) -> int | None:
    limits = (getattr(tokenizer, "model_max_length", None), getattr(model.config, "max_position_embeddings", None))
    known = [int(limit) for limit in limits if limit and 0 < limit < 10**9]  # a huge number says "no limit"
    return min(known) if known else None


def _tokenizer_digest(tokenizer: Any) -> str | None:
    """By value: the fast tokenizer's own description without its last padding, or vocabulary and settings."""
    if tokenizer is None:
        return None
    if hasattr(tokenizer, "backend_tokenizer"):
        said = json.loads(tokenizer.backend_tokenizer.to_str())
        said = {k: v for k, v in said.items() if k not in ("padding", "truncation")}
    elif hasattr(tokenizer, "get_vocab"):
        said = {"vocabulary": tokenizer.get_vocab(), "settings": getattr(tokenizer, "init_kwargs", {})}
    else:
        said = tokenizer.to_dict() if hasattr(tokenizer, "to_dict") else {"class": type(tokenizer).__qualname__}
    sides = [getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side", "special_tokens_map")]
    plain = json.dumps([type(tokenizer).__qualname__, said, sides], sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()
