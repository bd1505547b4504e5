"""A whole run as one object. YAML is its exact mirror: each key is a field, and nothing else is accepted."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from limbeck.auto import Auto
from limbeck.core.check import positive, whole
from limbeck.core.errors import ConfigError, DataError, nearest, problem
from limbeck.core.normalize import Normalize
from limbeck.core.records import as_yaml
from limbeck.core.setting import as_plain, build, setting, tagged
from limbeck.data import SOURCES, Augment
from limbeck.examining import Evidence
from limbeck.models import MODELS
from limbeck.objectives import Term, as_objective
from limbeck.objectives.term import AnyTerm
from limbeck.targets import CODECS, Dense
from limbeck.teachers.own import SelfTeaching
from limbeck.train import Stage, Training, Tuning
from limbeck.train.stages import check_stages, terms_of

if TYPE_CHECKING:
    AnyCodec = Any
    AnyData = Any
    AnyModel = Any
else:
    AnyCodec, AnyData, AnyModel = (tagged(table) for table in (CODECS, SOURCES, MODELS))

_TENSORS = "save the network's state_dict() as safetensors, or with torch.save; code in a file is never run"

__all__ = ["AnyData", "AnyTerm", "Arm", "Kept", "Master", "Recipe", "override", "read", "show"]

_TAKEN = ("teacher", "random", "fresh", "inherit")

R = TypeVar("R")


@setting
class Arm:
    """One way of training the student.

    Args:
        label: its name for people.
        objective: the terms; none where `auto` chooses them.
        auto: try several objectives for a short while, and train with the best; plain, unless one is better.
        rate: the learning rate that was chosen for this arm on validation; the recipe's own when None.
        epochs: where an arm needs another number of passes for an equal number of steps (fewer samples).
        labelled_only: leave samples without a label out.
        ema: decay of a moving average of this arm's weights; the recipe's own training decides when None.
        teacher: who teaches it: "teacher", which is the recipe's, or other arms by name, whose students of the same
            seed do; several are an ensemble, the mean of their logits.
        student: the network, where it is not the recipe's student.
        own: its own earlier self teaches it, and no other teacher does.
        start: the weights it begins with: "random", which are the same for all arms with one network at a seed;
            "fresh", drawn for this arm; "inherit", cut from the teacher's (`limbeck.transfer.inherit`); or those that
            "teacher" or another arm ended with.
        stages: the training in stages, whose epochs add up to those of the other arms for an equal budget.
        tuning: which parts learn, and how fast; the recipe's own training decides when None.
    """

    label: str
    objective: tuple[AnyTerm, ...] = ()
    auto: Auto | None = None
    rate: float | None = None
    epochs: int | None = None
    labelled_only: bool = False
    ema: float | None = None
    teacher: str | tuple[str, ...] | None = None
    student: AnyModel | None = None
    own: SelfTeaching | None = None
    start: str = "random"
    stages: tuple[Stage, ...] = ()
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        """Refuse an arm that matches nothing, or is to choose what it was given, or whose stages are one."""
        check_stages("arms.stages", self.stages)
        if self.auto is None:
            as_objective(self.objective)
        elif self.objective or self.stages or self.own is not None:
            given = "an objective" if self.objective else "stages" if self.stages else "itself as a teacher"
            raise ConfigError(problem("arms", f"an arm has {given}, and auto as well", "leave one of them out"))
        if self.own is not None and self.teacher is not None:
            wrong = f"it is taught by itself and by {self.teacher!r}"
            raise ConfigError(problem("arms.own", wrong, "leave one of them out, or give each an arm"))
        if self.own is not None and not self.taught:
            mend = "give a term that matches a teacher, such as kl, or leave `own` out"
            raise ConfigError(problem("arms.own", "it would be its own teacher, and no term reads one", mend))

    @property
    def terms(self) -> tuple[Term, ...]:
        """All terms that it may be trained with, of all stages."""
        if self.auto is None:
            return terms_of(self.objective, self.stages)
        return tuple(term for terms in self.auto.objectives(labels=True).values() for term in terms)

    @property
    def taught(self) -> bool:
        """Whether anything of a teacher is matched."""
        return any(term.needs().teacher for term in self.terms)


@setting
class Master:
    """The teacher: a network that is trained first, or loaded.

    Args:
        model: which network.
        weights: a file of trained weights (`.safetensors`, or `.pth`/`.pt` that holds tensors only); None trains it.
        training: how it is trained.
        data: what it is trained on, where that is not the student's data (more labels, say).
        normalize: the input normalisation its weights expect, where that is not the data's.
    """

    model: AnyModel
    weights: str | None = None
    training: Training = Training()
    augment: Augment | None = None
    data: AnyData | None = None
    normalize: Normalize | None = None


@setting
class Kept:
    """The teacher runs once for each sample and view; its answers are kept on disk and read in training.

    Args:
        views: augmented versions of each sample; an arm's epochs go through them in turn.
        codec: how the answers are kept.
        path: the folder; None keeps them in the run folder. A folder that holds them already is used as it is.
        batch_size: samples a call of the teacher.
    """

    views: int = 8
    codec: AnyCodec = Dense()
    path: str | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse what cannot be kept."""
        whole("targets.views", self.views)
        whole("targets.batch_size", self.batch_size)


@setting
class Recipe:
    """Teacher, student, data, arms and seeds: everything that a run is made from.

    Args:
        title: its name.
        story: what is compared and why, in a sentence or two.
        data: where samples come from.
        teacher: what is distilled.
        student: the network that every arm trains, from the same initial weights at the same seed.
        arms: by name. The arm `baseline` is what the others are compared to.
        training: how students are trained.
        augment: how their images are.
        targets: whether the teacher's answers are kept on disk, and how; None asks it at every step.
        seeds: how many; each is a full repetition with a teacher of its own, unless weights are loaded.
        seed: the first seed.
        baseline: the arm of the plain student, which no teacher teaches; None where there is none.
        rates: factors on the learning rate at which every arm is trained once more, to see where training breaks.
        evidence: what is measured beside the scores; None leaves out all that takes passes of its own.
        workers: processes that read data.
    """

    title: str
    story: str
    data: AnyData
    teacher: Master
    student: AnyModel
    arms: Mapping[str, Arm]
    training: Training = Training()
    augment: Augment | None = None
    targets: Kept | None = None
    seeds: int = 3
    seed: int = 0
    baseline: str | None = "plain"
    rates: tuple[float, ...] = ()
    evidence: Evidence | None = Evidence()
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse what can't be compared."""
        whole("seeds", self.seeds)
        whole("seed", self.seed, least=0)
        for factor in self.rates:
            positive("rates", factor)
        if self.baseline is not None and self.baseline not in self.arms:
            raise ConfigError(
                problem("baseline", f"there is no arm {self.baseline!r}", nearest(self.baseline, self.arms))
            )
        if self.baseline is not None and self.arms[self.baseline].taught:
            mend = "name the arm that learns from labels alone, or set baseline to null where there is none"
            raise ConfigError(problem("baseline", f"the arm {self.baseline!r} has a teacher", mend))
        for name in self.arms:
            if not name.replace("-", "").replace("_", "").isalnum() or name in _TAKEN:
                mend = f"use letters, digits, - and _; {', '.join(f'`{word}`' for word in _TAKEN)} are taken"
                raise ConfigError(problem("arms", f"{name!r} cannot be the name of an arm", mend))


def read(text: str, where: str, kind: type[R] = Recipe) -> R:  # type: ignore[assignment]  # as in typing's own docs
    """A recipe of a kind from YAML.

    Raises:
        ConfigError: it is not YAML, tries to make objects, or a key is unknown, missing or of the wrong type.
    """
    try:
        plain = yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        wrong = f"line {line} asks for what recipes do not hold ({error.problem})"
        mend = "write numbers, words, lists and mappings; no tags, and no lists as keys"
        raise ConfigError(problem(where, wrong, mend)) from None
    except (yaml.YAMLError, RecursionError) as error:
        wrong = f"it is not YAML ({' '.join(str(error).split())})"
        raise ConfigError(problem(where, wrong, "correct the line named above")) from None
    if not isinstance(plain, dict):
        wrong = f"it holds {'nothing' if plain is None else 'a ' + type(plain).__name__}, not a recipe"
        raise ConfigError(problem(where, wrong, "start from `limbeck show digits > mine.yaml`"))
    recipe: R = build(kind, plain, where)
    return recipe


def show(recipe: Any) -> str:
    """The recipe as YAML; `read(show(r), …) == r`."""
    return as_yaml(as_plain(recipe))


def override(recipe: R, changes: Sequence[str], where: str) -> R:
    """The recipe with `a.b=c` changes applied; values are read as YAML.

    Raises:
        ConfigError: a change has no "=", or names a key that the recipe has not.
    """
    plain = as_plain(recipe)
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals or not path:
            raise ConfigError(problem("--set", f"{change!r} is no change", "write --set key.key=value"))
        node: Any = plain
        keys = path.split(".")
        for depth, key in enumerate(keys):
            index: Any = int(key) if isinstance(node, list) and key.isdigit() else key
            last = depth == len(keys) - 1
            known = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else None
            if known is None or (index not in known and not _free(keys[:depth])):
                names = [str(k) for k in known or ()]
                raise ConfigError(problem("--set", f"the recipe has no key {path!r}", nearest(str(key), names)))
            if last:
                node[index] = _value(value, change)
            elif isinstance(node, dict) and node.get(index) is None:
                node[index] = {}
            node = node[index] if not last else node
    changed: R = build(type(recipe), plain, where)
    return changed


def _free(parents: Sequence[str]) -> bool:
    """Whether a mapping takes keys that are not there yet: what was None, and the optimizer's options."""
    return bool(parents) and parents[-1] in ("options", "augment", "codec", "data", "evidence", "normalize", "targets")


def _value(text: str, change: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(problem("--set", f"{change!r} cannot be read", "quote the value as YAML would")) from None


def read_weights(path: str, where: str) -> dict[str, Any]:
    """Tensors by name from `.safetensors`, or from a checkpoint that holds tensors only; nothing in it is executed.

    A wrapping `state_dict` and a `module.` before every name, as data-parallel training leaves them, are taken off.

    Raises:
        DataError: the file is missing, damaged, or holds more than tensors.
    """
    import warnings  # noqa: PLC0415

    import torch  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    file = Path(path)
    if not file.is_file():
        raise DataError(
            problem(where, f"there is no file {path!r}", "check the path, or leave it out to train the teacher")
        )
    try:
        if file.suffix == ".safetensors":
            tensors: Any = load_file(file)
        else:
            with warnings.catch_warnings():  # torch warns of foreign pickles on its way to refusing them
                warnings.simplefilter("ignore")
                tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(problem(where, f"{path!r} holds more than tensors, or is damaged", _TENSORS)) from None
    except Exception as error:
        wrong = f"{path!r} cannot be read ({(str(error).splitlines() or [type(error).__name__])[0].rstrip('.')})"
        raise DataError(problem(where, wrong, _TENSORS)) from None
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise DataError(problem(where, f"{path!r} does not hold tensors by name", _TENSORS))
    return {name.removeprefix("module."): value for name, value in tensors.items()}
