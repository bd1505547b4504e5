"""Numbers into TensorBoard, Weights & Biases or MLflow, beside the records of the run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from limbeck.core.errors import ConfigError, ExtraError, problem
from limbeck.core.processes import first

__all__ = ["Tracking", "check_trackers", "tracking", "untracked"]

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Tracking(Protocol):
    """Called with plain numbers by name, and the step."""

    def __call__(self, values: Mapping[str, Any], step: int) -> None:
        """Write them to every tracker."""
        ...


def untracked(values: Mapping[str, Any], step: int) -> None:
    """Nobody listens."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not there.

    Raises:
        ExtraError: it is missing.
    """
    for name in names:
        if find_spec(_PACKAGES[name]) is None:
            raise ExtraError(problem("trackers", f"{name!r} needs the package", f"pip install {_PACKAGES[name]}"))


@contextmanager
def tracking(names: Sequence[str], title: str, folder: Path | None, settings: Mapping[str, Any]) -> Iterator[Tracking]:
    """Accelerate's trackers, open inside the block; the first process alone writes.

    TensorBoard and Weights & Biases write into `tracking/` of the run folder. The latter stays offline unless
    WANDB_MODE says otherwise; MLflow goes where MLFLOW_TRACKING_URI says.

    Raises:
        ConfigError: one of them cannot start.
    """
    if not names or not first():
        yield untracked
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # noqa: PLC0415 - seconds to import

    home = (folder or Path()) / "tracking"
    home.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_MODE", "offline")
    how: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": title, "logging_dir": str(home)},
        "wandb": {"run_name": "limbeck", "name": title, "dir": str(home)},
        "mlflow": {"experiment_name": "limbeck", "run_name": title},
    }
    opened: list[Any] = []
    try:
        for name in names:
            try:
                tracker = LOGGER_TYPE_TO_CLASS[name](**how[name])
                tracker.start()
                opened.append(tracker)
                if name != "tensorboard":  # which draws a table of its own for each run, beside the curves
                    tracker.store_init_configuration({key: str(value) for key, value in settings.items()})
            except Exception as error:
                said = f"{type(error).__name__}: {error}".splitlines()[0]
                wrong = f"{name!r} cannot start ({said})"
                raise ConfigError(problem("trackers", wrong, "set it up as it says, or leave it out")) from error

        def tell(values: Mapping[str, Any], step: int) -> None:
            numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
            for tracker in opened:
                tracker.log(numbers, step=step)

        yield tell
    finally:
        for tracker in opened:
            tracker.finish()
