"""Which parts of a student learn, from when, how fast, and how far they may go from where they began.

Parts are named by patterns of paths: `body.0` is that module with all that is in it, `*.bias` every bias, as file names
are matched. What the teacher's loss asked for beside the model (heads) always learns, at the full rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from limbeck.core.check import not_negative, positive, whole
from limbeck.core.errors import CheckpointError, ConfigError, nearest, problem
from limbeck.core.setting import setting
from limbeck.core.sharding import parted
from limbeck.core.sharding import whole as entire

__all__ = ["UNTUNED", "Tuner", "Tuning"]


@setting
class Tuning:
    """How the parts of a student learn; all of them equally when nothing is said.

    A part that is frozen is bit-identical afterwards: its modules stay in evaluation mode, so that batch statistics
    do not move either.

    Args:
        learn: patterns of what learns; everything else is frozen. Nothing named: everything learns.
        freeze: patterns of what does not.
        thaw: pattern -> after how many epochs it begins to learn (gradual unfreezing: Howard & Ruder 2018, sec. 3.3).
        rates: pattern -> factor on the learning rate; where several match, the last one counts.
        decay: factor on the rate from each layer to the one before it, in the order in which the model registers them
            (discriminative fine-tuning: Howard & Ruder 2018, section 3.2, where it is 1/2.6). What has no weights of
            more than one axis, such as a norm, goes with the layer before it.
        anchor: a, or pattern -> a, of the penalty a/2·|w - w0|², which draws weights to where they began and takes the
            place of weight decay there (L2-SP: Li et al. 2018). Like weight decay it is not clipped.
    """

    learn: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    thaw: Mapping[str, int] | None = None
    rates: Mapping[str, float] | None = None
    decay: float | None = None
    anchor: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse impossible numbers, by name."""
        for name in ("learn", "freeze"):
            if isinstance(getattr(self, name), str):
                wrong = f"{getattr(self, name)!r} is one pattern"
                raise ConfigError(problem(f"tuning.{name}", wrong, "give a list of patterns"))
        for pattern, epochs in (self.thaw or {}).items():
            whole(f"tuning.thaw.{pattern}", epochs)
        for pattern, factor in (self.rates or {}).items():
            positive(f"tuning.rates.{pattern}", factor)
        for pattern, strength in self.anchors.items():
            not_negative(f"tuning.anchor.{pattern}" if pattern != "*" else "tuning.anchor", strength)
        if self.decay is not None:
            positive("tuning.decay", self.decay)

    @property
    def anchors(self) -> Mapping[str, float]:
        """The strength of the pull, by pattern."""
        if isinstance(self.anchor, Mapping):
            return self.anchor
        return {} if self.anchor is None else {"*": self.anchor}

    def check_epochs(self, epochs: int) -> None:
        """Refuse what would be thawed after the end of a training of so many epochs."""
        for pattern, since in (self.thaw or {}).items():
            if since >= epochs:
                wrong = f"{pattern!r} would learn after {since} epochs, and there are {epochs}"
                raise ConfigError(problem("tuning.thaw", wrong, "give fewer, or freeze it"))


class Tuner:
    """What a `Tuning` means for one model.

    Raises:
        ConfigError: a pattern matches nothing, a part is both frozen and thawed, or nothing would learn at first.
    """

    def __init__(self, tuning: Tuning, model: nn.Module) -> None:
        self._model, self._tuning = model, tuning
        self._names: dict[int, list[str]] = {}
        for name, value in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(value), []).append(name)
        self._values = {id(value): value for value in model.parameters()}
        self._check_patterns()
        self._held = {key for key, names in self._names.items() if any(self._frozen(name) for name in names)}
        if tuning.learn:  # a weight in two places learns where either is named
            self._held -= {k for k, names in self._names.items() if any(map(self._learns, names))}
        self._since = self._thawing()
        self._factors = self._rates()
        self._pulls = {key: found for key in self._names if (found := self._last(tuning.anchors, key)) is not None}
        drawn = [key for key in self._values if self._pulls.get(key) and key not in self._held]
        self._start = {key: self._values[key].detach().clone() for key in drawn}
        self._flags: dict[nn.Module, bool] = {}

    @property
    def pulls(self) -> bool:
        """Whether any weight is drawn to where it began."""
        return bool(self._start)

    def factor(self, parameter: nn.Parameter) -> float:
        """The factor on the learning rate."""
        return self._factors.get(id(parameter), 1.0)

    def anchored(self, parameter: nn.Parameter) -> bool:
        """Whether it is drawn to where it began, and not to zero."""
        return id(parameter) in self._start

    def freeze(self) -> Callable[[], None]:
        """Take gradients from what is frozen; returns what undoes it.

        Raises:
            ConfigError: nothing is left to learn at first.
        """
        changed = [self._values[key] for key in self._held if self._values[key].requires_grad]
        if not any(v.requires_grad for k, v in self._values.items() if k not in self._held and not self._since.get(k)):
            mend = "leave a part out of tuning.freeze and tuning.thaw, or name it in tuning.learn"
            raise ConfigError(problem("tuning", "no part would learn in the first epoch", mend))
        for value in changed:
            value.requires_grad_(False)

        def undo() -> None:
            for value in changed:
                value.requires_grad_(True)

        return undo

    def enter(self, epoch: int) -> list[nn.Parameter]:
        """Put what does not learn in this epoch, counted from 0, in evaluation mode; returns what has yet to wait."""
        waiting = {key for key, since in self._since.items() if epoch < since}
        still = set(self._still(self._held | waiting))
        for module in still - self._flags.keys():
            self._flags[module] = module.training
        for module, flag in self._flags.items():
            module.training = flag and module not in still
        return [self._values[key] for key in waiting]

    def leave(self) -> None:
        """Put the modules' modes back as training would have left them."""
        for module, flag in self._flags.items():
            module.training = flag

    @torch.no_grad()
    def pull(self) -> None:
        """Add the gradient a·(w - w0) of the penalty, where there is a gradient."""
        for key, start in self._start.items():
            value = self._values[key]
            if value.grad is not None:
                value.grad.add_(value.detach() - start, alpha=self._pulls[key])

    def start(self) -> dict[str, Tensor]:
        """The weights that others are drawn to, by name; every process must ask."""
        return {self._names[key][0]: entire(value) for key, value in self._start.items()}

    def restore(self, held: Mapping[str, Tensor], where: str) -> None:
        """Go on with the start that a run folder kept.

        Raises:
            CheckpointError: a weight is missing.
        """
        for key, value in self._start.items():
            name = self._names[key][0]
            if name not in held:
                wrong, mend = f"it lacks {name!r}", "delete this folder to train again"
                raise CheckpointError(problem(where, wrong, mend))
            value.copy_(parted(held[name], value))

    def _frozen(self, name: str) -> bool:
        """Whether this name is frozen by itself."""
        named = any(_matches(pattern, name) for pattern in self._tuning.freeze)
        return named or bool(self._tuning.learn and not self._learns(name))

    def _learns(self, name: str) -> bool:
        named = any(_matches(pattern, name) for pattern in self._tuning.learn)
        return named and not any(_matches(pattern, name) for pattern in self._tuning.freeze)

    def _thawing(self) -> dict[int, int]:
        """After how many epochs each part begins, where it does not at once."""
        found: dict[int, int] = {}
        for key in self._names:
            since = self._last(self._tuning.thaw or {}, key)
            if since is None:
                continue
            if key in self._held:
                wrong = f"{self._names[key][0]!r} is both frozen and to be thawed"
                raise ConfigError(problem("tuning.thaw", wrong, "leave it out of one of them"))
            found[key] = int(since)
        return found

    def _last(self, table: Mapping[str, float], key: int) -> float | None:
        """The value of the last pattern that matches."""
        found = [v for pattern, v in table.items() if any(_matches(pattern, name) for name in self._names[key])]
        return found[-1] if found else None

    def _rates(self) -> dict[int, float]:
        rates = self._tuning.rates or {}
        factors = {key: self._last(rates, key) or 1.0 for key in self._names}
        if self._tuning.decay is None:
            return factors
        depth = 0
        layer: dict[int, int] = {}
        for module in self._model.modules():
            own = list(module.parameters(recurse=False))
            depth += any(value.dim() > 1 for value in own)
            for value in own:
                layer.setdefault(id(value), max(depth, 1))
        return {key: factor * self._tuning.decay ** (depth - layer[key]) for key, factor in factors.items()}

    def _still(self, held: set[int]) -> Iterator[nn.Module]:
        """The modules that have no part in learning while these parameters are held."""
        paths = dict(self._model.named_modules())
        done = {path for path, module in paths.items() if (own := set(map(id, module.parameters()))) and own <= held}
        for path, module in paths.items():
            parents = _above(path)
            quiet = path in done or any(parent in done for parent in parents)
            if not quiet and next(module.parameters(), None) is None:  # by name: it has nothing that could be held
                quiet = any(_matches(pattern, path) for pattern in self._tuning.freeze)
                quiet |= bool(self._tuning.learn) and self._counts(module) and not self._learns(path)
            if quiet:
                yield module

    @staticmethod
    def _counts(module: nn.Module) -> bool:
        """Whether it keeps statistics of its own, as a norm without weights does."""
        return next(module.buffers(), None) is not None

    def _check_patterns(self) -> None:
        """Refuse patterns that match nothing: they are slips, and would leave a part as it was."""
        known = {name for names in self._names.values() for name in names}
        known |= {path for path, _ in self._model.named_modules() if path}
        for field in ("learn", "freeze", "thaw", "rates", "anchors"):
            for pattern in getattr(self._tuning, field) or ():
                if not any(_matches(pattern, name) for name in known):
                    where = f"tuning.{field.removesuffix('s') if field == 'anchors' else field}"
                    wrong = f"{pattern!r} matches no part of the student"
                    raise ConfigError(problem(where, wrong, nearest(pattern, known)))


def _matches(pattern: str, name: str) -> bool:
    """Whether the pattern names this path or a module that it lies in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _above(path: str) -> Iterator[str]:
    """The paths of the modules that this one lies in."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


UNTUNED = Tuner(Tuning(), nn.Module())
"""Holds nothing back and draws nothing."""
