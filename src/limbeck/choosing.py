"""Which objective, if any, is better than plain training? Short trainings on the same start answer it on validation.

With N the steps of one plain run and s the share of `Auto`: the trials take at most s·N steps, what is trained in the
end takes at most N, together (1 + s)·N: at most twice a plain run where s is 1. A trial of fewer steps than an epoch
has is one pass over a part of the data, the same part for all. Where the teacher's answers are stored, which is one
pass of the teacher over the data and its views, a step of a trial costs what a step of plain training costs.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.auto import PLAIN, Auto
from limbeck.core.errors import ConfigError, DataError, NonFiniteError, problem
from limbeck.core.folder import RunFolder
from limbeck.core.processes import first, processes, wait
from limbeck.core.records import read_object, write_json
from limbeck.core.seeds import derive
from limbeck.core.still import undisturbed
from limbeck.core.taps import Reader
from limbeck.data import Batches, Source, are_numbers
from limbeck.evidence import phrase
from limbeck.job import Job, evaluation, labelled
from limbeck.member import check, train_member
from limbeck.metrics import quality
from limbeck.objectives import Label, Term
from limbeck.remembering import remember
from limbeck.search import Rung, Trial, halve, rungs
from limbeck.teachers.own import SelfTeacher
from limbeck.teachers.signal import behind
from limbeck.teachers.stored import Targets

__all__ = ["Choice", "check_auto", "choose", "choosing", "steps_of"]

_LEAST_SAMPLES = 30
"""Labelled validation samples below which students cannot be told apart."""
_LEAST_STEPS = 5
_LEAST_SHARE = 64
"""A trial has a 64th of a whole training's steps at least."""
_GROWTH = 2.0
"""A round has twice the budget of the one before: it is in the last that plain or another is chosen."""
_VIEWS = 8

Say = Callable[[str], None]


class Score(NamedTuple):
    """A trial's answers to the validation samples. Both are empty where it broke down."""

    right: Tensor
    """1 where right, 0 where wrong, [N]; without labels, where it agrees with the teacher."""
    nll: Tensor
    """Negative log-likelihood of the label, in nats, [N]; without labels, the divergence from the teacher."""

    @property
    def accuracy(self) -> float | None:
        """Share that is right."""
        return float(self.right.mean()) if len(self.right) else None

    @property
    def loss(self) -> float | None:
        """Mean of `nll`."""
        return float(self.nll.mean()) if len(self.nll) else None


@dataclass(frozen=True)
class Choice:
    """What came of the trials."""

    name: str
    """The candidate, or "plain"."""
    job: Job
    """The training that is to follow."""
    trials: list[dict[str, Any]]
    """Every trial as it stands in `evidence.json`."""
    words: str
    """What was chosen and why, in a sentence or two."""


def steps_of(job: Job) -> int:
    """Steps of a whole training."""
    return _per_epoch(job) * job.training.epochs


def _per_epoch(job: Job) -> int:
    return math.ceil(len(job.train) / job.training.batch_size)


def check_auto(auto: Auto, job: Job) -> None:
    """Refuse, before anything is trained, what cannot be chosen; every candidate is tried on two samples.

    Raises:
        ConfigError: there is no teacher, or the share is too small for one round of trials.
        DataError: validation has too few labelled samples, or labels are numbers.
        LimbeckError: a candidate does not fit the models or the data.
    """
    if job.teacher is None:
        mend = "give a teacher, or an objective of labels alone, such as limbeck.Label()"
        raise ConfigError(problem("objective", '"auto" chooses how to learn from a teacher, and there is none', mend))
    if job.stages:
        mend = "leave the stages out, or give terms of its own for each stage"
        raise ConfigError(problem("stages", '"auto" chooses what one training matches, and there are several', mend))
    if any(isinstance(member, SelfTeacher) for member in behind(job.teacher)):
        wrong = "its answers change at every step, so that trials say nothing of the training after them"
        raise ConfigError(problem("teacher", wrong, 'give terms instead of "auto", or another teacher'))
    y = next(iter(Batches(job.train, batch_size=1, shuffle=False).epoch(0))).get("y")
    if are_numbers(y):
        wrong = 'labels are real numbers, and "auto" chooses among terms for classes'
        raise DataError(problem("objective", wrong, "give the terms, such as limbeck.SquaredError()"))
    known = int((job.val.labels >= 0).sum()) if job.val.labels is not None else len(job.val) * labelled(job.val)
    with_labels = labelled(job.train)
    if (with_labels or known) and known < _LEAST_SAMPLES:
        wrong = f"{known} labelled samples cannot tell students apart"
        raise DataError(problem("val", wrong, f"give {_LEAST_SAMPLES} or more, or an objective instead of auto"))
    objectives = auto.objectives(labels=with_labels)
    _plan(auto, job, len(objectives), plain=with_labels)
    for terms in objectives.values():
        check(replace(job, student=copy.deepcopy(job.student), objective=terms))


def _plan(auto: Auto, job: Job, candidates: int, *, plain: bool) -> list[Rung]:
    full = steps_of(job)
    mixes = Batches(job.train, batch_size=1, augment=job.augment).partners_depend_on is not None
    # Where samples are mixed, partners come from the set that is trained on, and stored answers are for the whole.
    least = max(_LEAST_STEPS, full // _LEAST_SHARE, _per_epoch(job) if mixes else 1)
    budget = math.floor(auto.share * full)
    return rungs(candidates, budget=budget, most=full, carried=plain, keep=auto.keep, growth=_GROWTH, least=least)


@contextmanager
def choosing(auto: Auto, job: Job, folder: RunFolder, *, say: Say = lambda _: None) -> Iterator[Choice]:
    """`choose`, with the teacher's answers kept until what was chosen has been trained."""
    with tempfile.TemporaryDirectory() as scratch:
        yield choose(auto, _with_answers(auto, job, folder, Path(scratch) / "targets"), folder, say=say)


def _with_answers(auto: Auto, job: Job, folder: RunFolder, scratch: Path) -> Job:
    """The same with the teacher's answers kept on disk, so that it is asked once for all trials."""
    if auto.views == 0 or job.teacher is None or isinstance(job.teacher, Targets):
        return job
    if processes() > 1 and (folder.path is None or getattr(job.teacher, "shard", False)):
        return job  # there is no place that all of them can write to, or a teacher in parts, whom all must ask alike
    name = f"{job.folder_name}-{job.seed}" if job.folder_name else "auto"
    home = folder.path / "targets" / name if folder.path is not None else scratch
    objectives = auto.objectives(labels=labelled(job.train))
    names = {name for terms in objectives.values() for term in terms for name in term.needs().teacher}
    views = 1 if job.augment is None else auto.views or min(_VIEWS, job.training.epochs)
    answers = remember(
        job.teacher, job.train, out=home, views=views, outputs=sorted(names), augment=job.augment, seed=job.seed,
        workers=job.workers, device=job.training.device, progress=job.show,
    )  # fmt: skip
    return replace(job, teacher=answers)


def choose(auto: Auto, job: Job, folder: RunFolder, *, say: Say = lambda _: None) -> Choice:
    """Try what `auto` names beside plain training, and say what to train.

    Every trial has the same initial weights, seed and order of samples, is a training of its own with its own folder
    below `checkpoints/`, and is scored on validation. A call on the folder of a killed one reads what is finished.

    Raises:
        NonFiniteError: every trial broke down.
        KeyboardInterrupt: Ctrl-C, after the step was finished and saved.
    """
    with_labels = labelled(job.train)
    objectives = auto.objectives(labels=with_labels)
    plan = _plan(auto, job, len(objectives), plain=with_labels)
    asked = {PLAIN: (Label(),), **objectives} if with_labels else objectives

    def run(rung: int, name: str, steps: int) -> Score:
        return _tried(shortened(job, asked[name], steps), f"{rung + 1}-{name}", folder, judged=not labelled(job.val))

    trials = halve(list(objectives), plan, run=run, rank=_rank, carried=PLAIN if with_labels else None,
                   hear=lambda trial: say(_line(trial)))  # fmt: skip
    best = next(trial for trial in reversed(trials) if trial.kept and trial.arm != PLAIN)
    plain = next((trial for trial in reversed(trials) if trial.arm == PLAIN), None)
    if best.score.accuracy is None and (plain is None or plain.score.accuracy is None):
        mend = "lower the learning rate, or clip gradients"
        raise NonFiniteError(problem("objective", "every trial broke down", mend))
    better = plain is None or ahead(best.score, plain.score, auto.margin)
    name = best.arm if better else PLAIN
    told = [_told(trial, job, asked[trial.arm]) for trial in trials]
    return Choice(name, shortened(job, asked[name], steps_of(job)), told, _words(best, plain, better=better))


def shortened(job: Job, objective: tuple[Term, ...], steps: int) -> Job:
    """The training with this objective in at most so many steps; all of one length see the same samples.

    The plain student sees labelled samples alone, as often as it takes.
    """
    whole_steps, per_epoch, training = steps_of(job), _per_epoch(job), job.training
    train, epochs = job.train, steps // per_epoch
    taught = any(term.needs().teacher for term in objective)
    known = (train.labels >= 0).nonzero().flatten() if train.labels is not None else None
    size = training.batch_size
    if not taught and known is not None and len(known) < len(train):
        exact = epochs * per_epoch if epochs else steps
        train, size = train.subset(known), min(size, len(known))
        epochs = exact // math.ceil(len(known) / size)
    if not epochs:
        some = torch.randperm(len(train), generator=torch.Generator().manual_seed(derive(job.seed, "trial")))
        train, epochs = train.subset(some[: steps * size].sort().values), 1
    part = min(1.0, steps / whole_steps)
    training = replace(
        training, epochs=epochs, batch_size=size,
        # A moving average and a limit of time are those of the whole training, to scale.
        ema=None if training.ema is None else training.ema ** (1 / part),
        max_seconds=None if training.max_seconds is None else training.max_seconds * part,
    )  # fmt: skip
    return replace(job, teacher=job.teacher if taught else None, train=train, objective=objective, training=training)


def _tried(job: Job, name: str, folder: RunFolder, *, judged: bool) -> Score:
    """One trial, trained on a copy of the student, or read from its folder."""
    base = job.folder_name or "auto"
    val, seen = job.val, _glance(job, judged=judged)
    job = replace(job, student=copy.deepcopy(job.student), val=seen, test=seen, arm=f"{job.arm}@{name}",
                  folder_name=f"{base}@{name}", score_teacher=False)  # fmt: skip
    home = folder.checkpoints(job.folder_name, job.seed)
    broken = home / "diverged.json" if home is not None else None
    nothing = Score(torch.empty(0), torch.empty(0))
    if broken is not None and broken.exists():
        read_object(broken, "said")
        return nothing
    try:
        result = train_member(job, folder)
    except NonFiniteError as error:
        if broken is not None and first():
            write_json(broken, {"said": str(error)})
        wait()
        return nothing
    if judged:
        told = result.scores
        return Score(torch.tensor([told["agreement"]]), torch.tensor([told["teacher_kl"]]))
    return answers(replace(job, student=result.student, val=val))


def _glance(job: Job, *, judged: bool) -> Source:
    """What a trial is scored on while it is trained: all of validation only where training goes by it.

    What decides is read once, at the end; passes over validation would be a good part of what a short trial costs.
    """
    labels = job.val.labels
    if judged or labels is None or job.training.keep == "best" or job.training.patience is not None:
        return job.val
    return job.val.subset((labels >= 0).nonzero().flatten()[:_LEAST_SAMPLES])


def answers(job: Job) -> Score:
    """The student's answers to the labelled validation samples."""
    reader = Reader(job.student, inputs=job.inputs, outputs=job.outputs)
    device = next(job.student.parameters()).device
    right, nll = [], []
    try:
        with undisturbed(job.student):
            for batch in evaluation(job.val, job.workers).epoch(0):
                logits = reader({name: value.to(device) for name, value in batch.items()})["logits"].cpu().float()
                y = batch["y"].argmax(1) if batch["y"].dim() > 1 else batch["y"]
                known = y >= 0
                logits, y = logits[known], y[known]
                right.append((logits.argmax(1) == y).double())
                nll.append(quality.negative_log_likelihood_per_sample(logits, y))
    finally:
        reader.close()
    return Score(torch.cat(right), torch.cat(nll))


def _rank(score: Score) -> tuple[float, float]:
    """More right answers; of equally many, the likelier labels."""
    if score.accuracy is None or score.loss is None:
        return -1.0, -math.inf
    return score.accuracy, -score.loss


def ahead(best: Score, plain: Score, margin: float) -> bool:
    """Whether a candidate beat plain: by more than `margin` standard errors of the paired difference in accuracy.

    With few samples accuracy moves in large steps. So a candidate that is ahead by less, or level, is asked for a
    cross-entropy that is lower by more than that.
    """
    if best.accuracy is None or plain.accuracy is None:
        return best.accuracy is not None
    gain, error = _paired(best.right - plain.right)
    if gain > margin * error:
        return True
    less, error = _paired(plain.nll - best.nll)
    return gain >= 0 and less > margin * error


def _paired(gap: Tensor) -> tuple[float, float]:
    """The mean of differences, and its standard error."""
    return float(gap.mean()), float(gap.std(unbiased=True)) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf


def _told(trial: Trial[Score], job: Job, objective: tuple[Term, ...]) -> dict[str, Any]:
    score, share = trial.score, round(trial.steps / steps_of(job), 4)
    return {
        "arm": job.arm, "seed": job.seed, "candidate": trial.arm, "objective": [phrase(term) for term in objective],
        "round": trial.rung + 1, "steps": trial.steps, "share": share, "accuracy": score.accuracy, "nll": score.loss,
        "samples": len(score.right), "kept": trial.kept, "why": trial.why,
    }  # fmt: skip


def _line(trial: Trial[Score]) -> str:
    said = "broke down" if trial.score.accuracy is None else f"{100 * trial.score.accuracy:.2f} % on validation"
    return f"  round {trial.rung + 1}  {trial.arm}: {said} after {trial.steps} steps; {trial.why}"


def _words(best: Trial[Score], plain: Trial[Score] | None, *, better: bool) -> str:
    if plain is None:
        return (
            f"Chosen among objectives without labels: {best.arm}. No sample has a label, so there is no plain student."
        )
    n, steps = len(plain.score.right), best.steps
    sides = [
        f"{t.score.accuracy:.1%}" if t.score.accuracy is not None else "nothing (it broke down)" for t in (best, plain)
    ]
    told = (
        f"after trials of {steps} steps it had {sides[0]} of {n} validation samples right, the plain student {sides[1]}"
    )
    if better:
        return f"Chosen on validation: {best.arm}; {told}."
    return f"The plain student was kept: nothing beat it. The best of the others was {best.arm}; {told}."
