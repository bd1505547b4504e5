"""A search for a smaller model as one object: network, data, what it may cost and lose, and what may be done to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.comparing import beside
from limbeck.compress import OPS
from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, problem
from limbeck.core.folder import RunFolder
from limbeck.core.setting import as_plain, setting, tagged
from limbeck.data import Augment
from limbeck.export.integers import Quantize
from limbeck.objectives import KL, Label, as_objective
from limbeck.recipes.base import AnyData, AnyTerm, Master
from limbeck.recipes.build import built, filled
from limbeck.search import Budget
from limbeck.squeezing import Say, Squeezed, squeeze
from limbeck.train import Optimizer, Training
from limbeck.workflow import distill

__all__ = ["Squeeze", "SqueezedAll", "squeeze_recipe"]

if TYPE_CHECKING:
    AnyOp = Any
else:
    AnyOp = tagged({**OPS, "quantize": Quantize})


@setting
class Squeeze:
    """A model, data, a budget, and the chains of operations that are tried.

    Args:
        title: its name.
        story: what is made smaller and why, in a sentence or two.
        data: where samples come from.
        model: the network, with a file of weights, or trained first.
        budget: what the smaller model may cost, and what it may lose.
        chains: by name, operations or their names in order; each is a search of its own.
        objective: of the training that repairs a changed model.
        training: how repairs are trained; `epochs` is for each.
        augment: of the images in repairs.
        views: augmented versions of each sample that the original's answers are kept for.
        tries: how often an operation that breaks a score is weakened.
        latency_batch: samples a call where latency counts.
        latency_threads: that a call is timed on; as many as torch has when None.
        seed: of whatever is drawn.
        workers: processes that read data.
    """

    title: str
    story: str
    data: AnyData
    model: Master
    budget: Budget
    chains: Mapping[str, tuple[AnyOp | str, ...]]
    objective: tuple[AnyTerm, ...] = (KL(temperature=2.0, weight=0.5), Label(weight=0.5))
    training: Training = Training(epochs=3, optimizer=Optimizer(rate=0.02))
    augment: Augment | None = None
    views: int | None = None
    tries: int = 3
    latency_batch: int = 1
    latency_threads: int | None = None
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be searched."""
        whole("tries", self.tries, least=0)
        as_objective(self.objective)
        if not self.chains:
            raise ConfigError(problem("chains", "there is none", "name one: {first: [prune]}"))


class SqueezedAll(NamedTuple):
    """What the searches of a recipe give back: each by its chain, and the page and document of all of them."""

    chains: Mapping[str, Squeezed]
    document: Mapping[str, Any]
    page: Path


def squeeze_recipe(recipe: Squeeze, out: Path, *, say: Say = lambda _: None, bars: bool = True) -> SqueezedAll:
    """Load or train the model, and search once for each chain. The same call goes on where it stopped.

    Args:
        recipe: the search.
        out: the folder. The only chain's run lies in `search` there; of several, each in a folder of its name, and
            the page that puts them beside each other in `out` itself.
        say: hears a line on each attempt.
        bars: show bars where stderr is a terminal.

    Raises:
        LimbeckError: the input is at fault.
    """
    if len(recipe.chains) == 1:
        [(name, done)] = _searched(recipe, out, say=say, bars=bars, single=True).items()
        return SqueezedAll({name: done}, done.document, done.report())
    with RunFolder(out, as_plain(recipe), device=recipe.training.device) as folder:
        found = _searched(recipe, out, say=say, bars=bars, single=False)
        said = beside(list(found.values()), folder, title=recipe.title, story=recipe.story)
        return SqueezedAll(found, said.document, said.page)


def _searched(recipe: Squeeze, out: Path, *, say: Say, bars: bool, single: bool) -> dict[str, Squeezed]:
    splits = recipe.data.load()
    network = built(recipe.model.model, splits.train, recipe.seed, "teacher")
    if recipe.model.weights is not None:
        filled(network, recipe.model.weights)
    else:
        how = recipe.model.training
        distill(network, None, train=splits.train, val=splits.val, test=splits.test, seed=recipe.seed,
                augment=recipe.model.augment, out=out / "model", progress=bars,
                **{name: getattr(how, name) for name in type(how).__dataclass_fields__})  # fmt: skip
    found = {}
    for name, ops in recipe.chains.items():
        say(f"{name}: {' > '.join(op if isinstance(op, str) else op.kind for op in ops)}")
        training = {name: getattr(recipe.training, name) for name in type(recipe.training).__dataclass_fields__}
        found[name] = squeeze(
            network, train=splits.train, val=splits.val, test=splits.test, budget=recipe.budget, ops=ops,
            objective=recipe.objective, augment=recipe.augment, views=recipe.views, tries=recipe.tries,
            latency_batch=recipe.latency_batch, latency_threads=recipe.latency_threads, seed=recipe.seed,
            workers=recipe.workers, out=out / "search" if single else out / name,
            title=recipe.title if single else None, say=say, progress=bars, **training,
        )  # fmt: skip
        for line in found[name].words:
            say(f"    {line}")
    return found
