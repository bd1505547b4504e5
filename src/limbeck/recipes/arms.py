"""Arms as a graph: who teaches whom, from which weights each begins, and in which order they are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.data import Splits
from limbeck.recipes.base import Arm, Recipe
from limbeck.recipes.build import built
from limbeck.teachers import EnsembleTeacher, ModuleTeacher
from limbeck.teachers.own import SelfTeacher
from limbeck.teachers.signal import Teaching
from limbeck.transfer import inherit

__all__ = ["budgets", "helps", "model_of", "needs", "order", "student_of", "teacher_of", "teachers"]

_OWN = "teacher"
"""What an arm calls the recipe's own teacher."""

_WORDS = ("random", "fresh", "inherit")
"""Starts that are no arm's."""


def teachers(arm: Arm) -> tuple[str, ...]:
    """The names of an arm's teachers."""
    if arm.own is not None:
        return ()
    if arm.teacher is None:
        return (_OWN,)
    return (arm.teacher,) if isinstance(arm.teacher, str) else tuple(arm.teacher)


def needs(recipe: Recipe, name: str) -> Iterator[str]:
    """The arms that must be trained before this one."""
    arm = recipe.arms[name]
    named = [*teachers(arm)] if arm.taught else []
    if arm.start not in _WORDS:
        named.append(arm.start)
    yield from (other for other in named if other != _OWN)


def order(recipe: Recipe) -> list[str]:
    """The arms, each after those that it needs; otherwise as the recipe names them.

    Raises:
        ConfigError: an arm needs one that is not there, or itself by way of others.
    """
    for name, arm in recipe.arms.items():
        if (not teachers(arm) and arm.own is None) or len(set(teachers(arm))) < len(teachers(arm)):
            wrong = f"its teachers are {list(teachers(arm))}"
            raise ConfigError(problem(f"arms.{name}.teacher", wrong, "name one or more, each once"))
        for field, names in (("teacher", teachers(arm)), ("start", (arm.start,))):
            known = {_OWN, *recipe.arms} | (set(_WORDS) if field == "start" else set())
            for other in names:
                if other not in known:
                    raise ConfigError(
                        problem(f"arms.{name}.{field}", f"there is no arm {other!r}", nearest(other, known))
                    )
    found: list[str] = []
    for name in recipe.arms:
        _visit(recipe, name, found, [])
    return found


def _visit(recipe: Recipe, name: str, found: list[str], path: list[str]) -> None:
    if name in path:
        circle = " → ".join([*path[path.index(name) :], name])
        mend = "let one of them learn from `teacher`, or start at random"
        raise ConfigError(problem("arms", f"they wait for each other ({circle})", mend))
    if name not in found:
        for other in needs(recipe, name):
            _visit(recipe, other, found, [*path, name])
        found.append(name)


def helps(recipe: Recipe, name: str) -> bool:
    """Whether another arm needs this one."""
    return any(name in needs(recipe, other) for other in recipe.arms)


def model_of(recipe: Recipe, name: str) -> object:
    """The settings of the network that an arm trains."""
    own = recipe.arms[name].student
    return recipe.student if own is None else own


def teacher_of(
    recipe: Recipe, name: str, own: ModuleTeacher, answers: Teaching, made: Mapping[str, nn.Module]
) -> Teaching | None:
    """Who teaches an arm: nobody, itself, the recipe's teacher (or its answers on disk), other arms' students.

    Args:
        recipe: the run.
        name: the arm.
        own: the recipe's teacher, live.
        answers: the same, or what it said.
        made: the students of the arms before.
    """
    arm = recipe.arms[name]
    if not arm.taught:
        return None
    if arm.own is not None:
        return SelfTeacher(decay=arm.own.decay, epochs=arm.own.epochs)
    if teachers(arm) == (_OWN,):
        return answers
    every = [own if other == _OWN else ModuleTeacher(made[other]) for other in teachers(arm)]
    return every[0] if len(every) == 1 else EnsembleTeacher(every)


def student_of(recipe: Recipe, name: str, splits: Splits, made: Mapping[str, nn.Module], *, seed: int) -> nn.Module:
    """The student of an arm as it begins; `made` holds what was trained before, the teacher among it.

    Raises:
        ConfigError: it is to begin with the weights of another network.
        ModelError: it can inherit nothing from the teacher.
    """
    arm = recipe.arms[name]
    who = "student" if arm.start != "fresh" else f"student of {name}"
    model = built(model_of(recipe, name), splits.train, seed, who)
    if arm.start == "inherit":
        inherit(model, made[_OWN], data=splits.train, seed=seed)
    if arm.start in _WORDS:
        return model
    theirs, ours = made[arm.start].state_dict(), model.state_dict()
    wrong = next((n for n in {**ours, **theirs} if _shape(ours, n) != _shape(theirs, n)), None)
    if wrong is not None:
        said = f"the weights of {arm.start!r} do not fit ({wrong}: {_shape(theirs, wrong)}, here {_shape(ours, wrong)})"
        mend = "give both the same network, or start at random"
        raise ConfigError(problem(f"arms.{name}.start", said, mend))
    model.load_state_dict(theirs)
    return model


def _shape(state: Mapping[str, object], name: str) -> str:
    return str(list(state[name].shape)) if name in state else "nothing"  # type: ignore[attr-defined]


def budgets(recipe: Recipe) -> tuple[str, ...]:
    """A note for each arm whose stages have more or fewer epochs in all than it has otherwise."""
    notes = []
    for arm in recipe.arms.values():
        asked = recipe.training.epochs if arm.epochs is None else arm.epochs
        given = sum(stage.epochs for stage in arm.stages)
        if arm.stages and given != asked:
            notes.append(f"{arm.label}: the stages have {given} epochs in all, where the recipe gives {asked}.")
    return tuple(notes)
