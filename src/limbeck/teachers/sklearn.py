"""A fitted scikit-learn estimator as a teacher."""

from __future__ import annotations

import hashlib
import inspect
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from limbeck.core.errors import ConfigError, ModelError, nearest, problem
from limbeck.core.normalize import Normalize
from limbeck.core.taps import Inputs
from limbeck.core.types import Named
from limbeck.teachers.black_box import BlackBox, arguments
from limbeck.teachers.signal import FLOOR, Classes, digest_of, plain_function

__all__ = ["SklearnTeacher"]

_IDLE = ("n_jobs", "verbose")
"""Parameters that decide how fast an answer comes, and not what it is."""

Array = npt.NDArray[Any]
Method = Literal["predict_proba", "decision_function", "predict"]


class SklearnTeacher(BlackBox):
    """Any fitted estimator with scikit-learn's manners: a classifier's answers are logits, a regressor's its numbers.

    Probabilities become their logarithm. Column k is the student's class k: an estimator that was fitted on whole
    numbers is ordered by them, and a class that it never saw has the probability `floor`; one that was fitted on names
    needs `labels`, the student's classes in order.

    Args:
        estimator: fitted; it is not changed, and is called in the calling process.
        inputs: which columns go in, joined side by side where there are several; images of one channel are flattened.
        labels: the student's classes in its order, by the names that the estimator was fitted on.
        by: the method that is asked; None takes the first that it has.
        floor: the probability that stands for zero.

    Raises:
        ModelError: it is not fitted, has none of the methods, or its classes cannot be ordered.
    """

    noun = "the estimator"

    def __init__(
        self,
        estimator: Any,
        *,
        inputs: Inputs = None,
        normalize: Normalize | None = None,
        classes: Classes | None = None,
        labels: Sequence[Any] | None = None,
        by: Method | None = None,
        floor: float = FLOOR,
    ) -> None:
        self.estimator = estimator
        self.by = self._method(by)
        gives: Any = "probabilities" if self.by == "predict_proba" else "logits"
        super().__init__(inputs=inputs, normalize=normalize, classes=classes, gives=gives, floor=floor)
        self.labels = None if labels is None else [_scalar(label) for label in labels]
        self._places: list[int] = []
        self._width = 0
        if self.by != "predict":
            self._places, self._width = self._order()

    @property
    def words(self) -> str:
        """Its class."""
        return type(self.estimator).__qualname__

    @property
    def form(self) -> Mapping[str, Any]:
        """The library's version."""
        return {"sklearn": str(getattr(sys.modules.get("sklearn"), "__version__", ""))}

    def about(self) -> dict[str, Any]:
        """Method, order of classes, and a digest of parameters and fitted arrays."""
        return {
            "by": self.by,
            "labels": self.labels,
            "estimator": self.words,
            "state": _Digest().of(self.estimator).hex(),
        }

    def _method(self, by: str | None) -> str:
        known = ("predict_proba", "decision_function", "predict")
        if by is not None and by not in known:
            raise ConfigError(problem("teacher.by", f"it is {by!r}", nearest(by, known)))
        there = [name for name in known if callable(getattr(self.estimator, name, None))]
        name = type(self.estimator).__qualname__
        classifies = "predict_proba" in there or hasattr(self.estimator, "classes_")
        if not _fitted(self.estimator) or (classifies and not hasattr(self.estimator, "classes_")):
            raise ModelError(problem("teacher", f"the {name} is not fitted", "call its `fit` first"))
        if classifies:
            there = [method for method in there if method != "predict"]  # labels alone are no answer to distil
        if not there or (by is not None and by not in there):
            wrong = f"the {name} has no {by or 'predict_proba or decision_function'}"
            mend = f"ask one of {', '.join(there)}" if there else "set probability=True, or wrap it in a calibrator"
            raise ModelError(problem("teacher", wrong, mend))
        return by or there[0]

    def _order(self) -> tuple[list[int], int]:
        """The student's class for each of the estimator's, and the student's number of classes."""
        own = self.estimator.classes_
        if isinstance(own, list):
            wrong = f"the {self.words} answers {len(own)} questions at once"
            raise ModelError(problem("teacher", wrong, "pass a function that returns the logits of one"))
        own = [_scalar(each) for each in own]
        if self.labels is not None:
            lost = [each for each in own if each not in self.labels]
            if lost or len(set(self.labels)) != len(self.labels):
                wrong = f"labels are {self.labels}, and the estimator's classes are {own}"
                raise ModelError(problem("teacher.labels", wrong, "name each of its classes once, in your order"))
            return [self.labels.index(each) for each in own], len(self.labels)
        if not all(isinstance(each, int | float) and each >= 0 and int(each) == each for each in own):
            wrong = f"the {self.words} was fitted on the classes {own}, and which is the student's first is not clear"
            mend = "say so with `labels=`, the student's classes in order"
            raise ModelError(problem("teacher.labels", wrong, mend))
        return [int(each) for each in own], int(max(own)) + 1

    def answer(self, batch: Named) -> Array:
        """What the estimator says of the rows."""
        rows = self._rows(batch)
        with warnings.catch_warnings():
            # Batches carry no column names; those that it was fitted with are in the same order.
            warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
            said = np.asarray(getattr(self.estimator, self.by)(rows))
        if said.ndim == 1:
            # Log odds of two classes, or one number.
            said = np.stack([-said / 2, said / 2], 1) if self.by == "decision_function" else said[:, None]
        if self.by == "predict_proba":
            return self._placed(said, np.zeros((len(said), 1)))
        if self.by == "decision_function":
            return self._placed(said, said.min(1, keepdims=True) + np.log(self.floor)).astype(np.float32)
        return said.astype(np.float32)

    def _placed(self, said: Array, absent: Array) -> Array:
        """Columns in the student's order; `absent` [B, 1] stands for the classes that the estimator never saw."""
        if said.shape[1] != len(self._places):
            wrong = f"the {self.words} gives {said.shape[1]} numbers for {len(self._places)} classes"
            raise ModelError(problem("teacher", wrong, 'give it decision_function_shape="ovr", or ask predict_proba'))
        if self._places == list(range(self._width)):
            return said
        placed = np.repeat(absent.astype(said.dtype), self._width, 1)
        placed[:, self._places] = said
        return placed

    def _rows(self, batch: Named) -> Array:
        positional, keyword = arguments(batch, self.inputs)
        parts = [_table(value) for value in (*positional, *keyword.values())]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
        wanted = getattr(self.estimator, "n_features_in_", rows.shape[1])
        if rows.shape[1] != wanted:
            wrong = f"the {self.words} was fitted on {wanted} features, the batch has {rows.shape[1]}"
            raise ModelError(problem("teacher", wrong, "give it its own columns with `inputs=` or `data=`"))
        return rows


def _table(value: Any) -> Array:
    array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim > 3 and array.shape[1] > 1:
        wrong = f"an input has the shape {array.shape[1:]} a sample, and in which order it is a row is not clear"
        mend = 'say so with `inputs=`, e.g. inputs=lambda batch: batch["x"].permute(0, 2, 3, 1).flatten(1)'
        raise ModelError(problem("teacher", wrong, mend))
    return array.reshape(len(array), -1)


def _scalar(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, bool) else value


def _fitted(estimator: Any) -> bool:
    """As scikit-learn sees it; what is none of its own is taken at its word."""
    base, exceptions = sys.modules.get("sklearn.base"), sys.modules.get("sklearn.exceptions")
    if base is None or exceptions is None or not isinstance(estimator, base.BaseEstimator):
        return True
    from sklearn.utils.validation import check_is_fitted  # noqa: PLC0415 - it is there already: the estimator is its own

    try:
        check_is_fitted(estimator)
    except exceptions.NotFittedError:
        return False
    return True


class _Digest:
    """The sha256 of any object's state, by value: what it would be rebuilt from, without writing a pickle.

    Equal states have equal digests however their parts are shared. Padding between the fields of a record, as in the
    nodes of a tree, is left out: it holds whatever was in memory.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, Any]] = {}
        self._open: set[int] = set()

    def of(self, value: Any) -> bytes:
        """The digest of a value."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return _sha(type(value).__name__, repr(value))
        if id(value) in self._open:
            return _sha("cycle")
        if id(value) not in self._known:
            self._open.add(id(value))
            try:
                self._known[id(value)] = (self._made(value), value)  # the value is kept: its id must not be reused
            finally:
                self._open.discard(id(value))
        return self._known[id(value)][0]

    def _made(self, value: Any) -> bytes:  # noqa: PLR0911 - one for each kind
        if isinstance(value, np.ndarray | np.generic):
            return self._array(np.asarray(value))
        if isinstance(value, Mapping):
            pairs = sorted((self.of(k), self.of(v)) for k, v in value.items() if k not in _IDLE)
            return _sha(type(value).__qualname__, *(part for pair in pairs for part in pair))
        if isinstance(value, set | frozenset):
            return _sha("set", *sorted(map(self.of, value)))
        if isinstance(value, list | tuple):
            return _sha(type(value).__qualname__, *map(self.of, value))
        if isinstance(value, type):
            return _sha("class", f"{value.__module__}.{value.__qualname__}")
        if inspect.isroutine(value):
            return _sha("function", digest_of({"function": plain_function(value)}))
        parts = value.__reduce_ex__(2)
        return _sha("name", parts) if isinstance(parts, str) else _sha("object", *map(self.of, self._state(parts)))

    @staticmethod
    def _state(parts: tuple[Any, ...]) -> list[Any]:
        """Class, arguments, state, and what is appended; iterators are read."""
        return [part if i < 3 or part is None else list(part) for i, part in enumerate(parts[:5])]

    def _array(self, array: Array) -> bytes:
        if array.dtype.names:
            return _sha("record", *(name + self._array(array[name]).hex() for name in array.dtype.names))
        if array.dtype.hasobject:
            return _sha("objects", str(array.shape), *(self.of(each) for each in array.ravel().tolist()))
        return _sha("array", array.dtype.str, str(array.shape), np.ascontiguousarray(array).tobytes())


def _sha(*parts: str | bytes) -> bytes:
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.digest()
