"""Several teachers as one.

Shapes: B = samples of a batch, M = members, C = classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, DataError, ModelError, nearest, problem
from limbeck.core.normalize import Normalize
from limbeck.core.types import Named
from limbeck.teachers.signal import Classes, Teaching, digest_of
from limbeck.teachers.weighing import check_union, mean_of_known, placed, trusted

__all__ = ["EnsembleTeacher"]

Mean = Literal["logits", "probabilities"]
Choose = Literal["all", "confident", "correct"]
Trust = Literal["equal", "entropy", "label"]


class EnsembleTeacher:
    """The weighted mean of several teachers, of any kinds, each with its own normalisation and data.

    `logits` are the mean; each member's own answers are `0.logits`, `1.layer3`, …

    Args:
        members: the teachers.
        mean: of "logits", or of "probabilities" (the logits are then the logarithm of the mean of their softmax).
        weights: one for each member, which are scaled to sum to 1; equal when None.
        choose: whom to hear, for each sample: "all"; the one that is most "confident" (the largest probability, the
            first of equals); or those that are "correct" about the label, and all where none is or there is no label.
        trust: what those who are heard are worth in a sample, beside their weights: "equal"; more where their answer is
            sharper than the others' ("entropy"), or nearer to the label ("label", equal where there is none).
        classes: for each member, the student's class for each of its own, where they know different ones. A class is
            the mean of those who know it.
        dropout: the probability that a member is left out of a sample's mean, at least one stays. Who is left out
            follows from seed, sample id and view, so that a stored answer is the live one.
        seed: of the dropout.

    Raises:
        ConfigError: there is no member, one is there twice, or a setting cannot be.
    """

    def __init__(
        self,
        members: Sequence[Teaching],
        *,
        mean: Mean = "logits",
        weights: Sequence[float] | None = None,
        choose: Choose = "all",
        trust: Trust = "equal",
        classes: Sequence[Classes] | None = None,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.members = tuple(members)
        if not self.members or len({id(member) for member in self.members}) < len(self.members):
            raise ConfigError(problem("teacher", "an ensemble needs different members", "give each teacher once"))
        for name, value, known in (("mean", mean, _MEANS), ("choose", choose, _CHOICES), ("trust", trust, _TRUSTS)):
            if value not in known:
                raise ConfigError(problem(f"teacher.{name}", f"it is {value!r}", nearest(str(value), known)))
        if not 0 <= dropout < 1:
            raise ConfigError(problem("teacher.dropout", f"it is {dropout}", "give a probability from 0 to below 1"))
        given = [1.0] * len(self.members) if weights is None else [float(weight) for weight in weights]
        if len(given) != len(self.members) or not all(0 < weight < float("inf") for weight in given):
            wrong = f"weights are {given} for {len(self.members)} members"
            raise ConfigError(problem("teacher.weights", wrong, "give one number above 0 for each"))
        self.weights = tuple(weight / sum(given) for weight in given)
        self.trust, self.classes = trust, check_union(classes, len(self.members))
        self.mean, self.choose, self.dropout, self.seed = mean, choose, dropout, seed

    @property
    def offers(self) -> frozenset[str]:
        """The mean, and each member's offers behind its number."""
        own = (f"{i}.{name}" for i, member in enumerate(self.members) for name in member.offers)
        return frozenset({"logits", *own})

    @property
    def words(self) -> str:
        """Its members."""
        return f"an ensemble of {len(self.members)} ({', '.join(member.words for member in self.members)})"

    @property
    def form(self) -> Mapping[str, Any]:
        """How each member computes."""
        return {str(i): dict(member.form) for i, member in enumerate(self.members)}

    def identity(self) -> dict[str, Any]:
        """Each member's, and how they are joined."""
        return {
            "teacher": type(self).__name__,
            "members": [member.identity() for member in self.members],
            "mean": self.mean,
            "weights": list(self.weights),
            "choose": self.choose,
            **({"trust": self.trust} if self.trust != "equal" else {}),
            **({"classes": [index.tolist() for index in self.classes]} if self.classes is not None else {}),
            "dropout": self.dropout,
            "seed": self.seed if self.dropout else None,
        }

    def fingerprint(self) -> str:
        """A digest of the identity."""
        return digest_of(self.identity())

    def require(self, ids: Tensor) -> None:
        """Refuse samples that a member with data of its own has not.

        Raises:
            DataError: an id is missing.
        """
        for member in self.members:
            check = getattr(member, "require", None)
            if check is not None:
                check(ids)

    def open(
        self,
        names: Iterable[str],
        example: Named,
        *,
        applied: Normalize | None = None,
        device: torch.device | None = None,
        samples: Named | None = None,
    ) -> Named:
        """Open every member with the names that are asked of it.

        Raises:
            ModelError: a name belongs to no member, a member refuses, or their logits have different shapes.
            DataError: members are left out by sample, and the batch has no ids.
        """
        asked: dict[int, set[str]] = {i: {"logits"} for i in range(len(self.members))}
        for name in sorted(set(names) - {"logits"}):
            number, _, rest = name.partition(".")
            if not rest or not number.isdigit() or int(number) >= len(self.members):
                raise ModelError(problem("teacher", f"no member gives {name!r}", nearest(name, self.offers)))
            asked[int(number)].add(rest)
        if self.dropout and "id" not in example:
            raise DataError(problem("teacher.dropout", "the batch has no `id`", "make it with limbeck.data"))
        how: Any = {"applied": applied, "device": device}
        how |= {} if samples is None else {"samples": samples}
        answers = [member.open(asked[i], example, **how) for i, member in enumerate(self.members)]
        shapes = [tuple(answer["logits"].shape) for answer in answers]
        if len(set(shapes)) > 1 and self.classes is None:
            wrong = f"its members answer with {shapes}"
            mend = "say with `classes` which of the student's classes each has, or give them the same"
            raise ModelError(problem("teacher", wrong, mend))
        return self._joined(answers, example)

    def close(self) -> None:
        """Close every member."""
        for member in self.members:
            member.close()

    def __call__(self, batch: Named) -> Named:
        """The mean, and what each member says."""
        return self._joined([member(batch) for member in self.members], batch)

    @torch.no_grad()
    def _joined(self, answers: Sequence[Named], batch: Named) -> dict[str, Tensor]:
        each = [answer["logits"] for answer in answers]
        if self.classes is not None:
            each = placed(each, self.classes)
        weights_BM = self._weights(each, batch)
        if self.classes is not None:
            logits = mean_of_known(each, weights_BM, self.classes, of=self.mean).to(_wide(each))
        elif self.mean == "logits":
            logits = _mean_logits(each, weights_BM)
        else:
            logits = _mean_probabilities(each, weights_BM)
        own = {f"{i}.{name}": value for i, answer in enumerate(answers) for name, value in answer.items()}
        return {"logits": logits, **own}

    def _weights(self, each: Sequence[Tensor], batch: Named) -> Tensor:
        """The share that each member has in each sample, [B, M]; rows sum to 1."""
        first = each[0]
        heard_BM = torch.ones(len(first), len(each), dtype=torch.bool, device=first.device)
        if self.dropout:
            view = batch["view"] if "view" in batch else torch.zeros_like(batch["id"])
            heard_BM = kept(batch["id"], view, members=len(each), rate=self.dropout, seed=self.seed).to(first.device)
        for name, value, plain in (("choose", self.choose, "all"), ("trust", self.trust, "equal")):
            if value != plain and first.dim() != 2:
                wrong = f"answers are {tuple(first.shape)}, and it is by sample"
                raise ModelError(problem(f"teacher.{name}", wrong, f'take {name}="{plain}"'))
        if self.choose == "confident":
            sure_BM = torch.stack([logits.float().softmax(-1).amax(-1) for logits in each], 1)
            best_B = sure_BM.masked_fill(~heard_BM, -1.0).argmax(1)
            heard_BM = torch.nn.functional.one_hot(best_B, len(each)).bool()
        elif self.choose == "correct" and "y" in batch:
            y_B = batch["y"].argmax(-1) if batch["y"].dim() > 1 else batch["y"]
            right_BM = torch.stack([logits.argmax(-1) == y_B for logits in each], 1) & heard_BM
            heard_BM = torch.where(right_BM.any(1, keepdim=True), right_BM, heard_BM)
        weights_BM = heard_BM * torch.tensor(self.weights, dtype=torch.float64, device=first.device)
        if self.trust == "entropy" or (self.trust == "label" and "y" in batch):
            weights_BM = weights_BM * trusted(each, heard_BM, batch["y"] if self.trust == "label" else None)
        return weights_BM / weights_BM.sum(1, keepdim=True)


def kept(ids: Tensor, views: Tensor, *, members: int, rate: float, seed: int) -> Tensor:
    """Which members are heard, bool [B, M]: a pure function of seed, id and view; at least one for each sample.

    splitmix64 over the counter (seed, view, id, member). Source: Steele, Lea, Flood 2014, "Fast splittable
    pseudorandom number generators".
    """
    word = _mixed(np.full(len(ids), seed % 2**64, dtype=np.uint64) + _STEP)
    for part in (views, ids):
        word = _mixed((word ^ part.cpu().numpy().astype(np.uint64)) + _STEP)
    steps_M = np.arange(1, members + 1, dtype=np.uint64) * _STEP
    draw_BM = (_mixed(word[:, None] + steps_M) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    heard_BM = draw_BM >= rate
    heard_BM[np.arange(len(ids)), draw_BM.argmax(1)] = True
    return torch.from_numpy(heard_BM)


def _mixed(word: Any) -> Any:
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)


def _shares(weights_BM: Tensor, member: int, like: Tensor) -> Tensor:
    """One member's shares, with as many axes as the answers."""
    return weights_BM[:, member].view(-1, *[1] * (like.dim() - 1))


def _mean_logits(each: Sequence[Tensor], weights_BM: Tensor) -> Tensor:
    total = torch.zeros_like(each[0], dtype=torch.float64)
    for i, logits in enumerate(each):
        share = _shares(weights_BM, i, logits)
        # Who is not heard may say -inf, and 0 * -inf is no number.
        total += torch.where(share > 0, share * logits.double(), 0.0)
    return total.to(_wide(each))


def _mean_probabilities(each: Sequence[Tensor], weights_BM: Tensor) -> Tensor:
    logs = [logits.double().log_softmax(-1) + _shares(weights_BM, i, logits).log() for i, logits in enumerate(each)]
    return torch.logsumexp(torch.stack(logs), 0).to(_wide(each))


def _wide(each: Sequence[Tensor]) -> torch.dtype:
    """float32, or float64 where a member answers in it."""
    return torch.float64 if any(logits.dtype == torch.float64 for logits in each) else torch.float32


_STEP = np.uint64(0x9E3779B97F4A7C15)
_MEANS = ("logits", "probabilities")
_CHOICES = ("all", "confident", "correct")
_TRUSTS = ("equal", "entropy", "label")
