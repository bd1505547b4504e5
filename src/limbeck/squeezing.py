"""`lb.squeeze`: a model made smaller until it fits a budget; each step is scored, and undone if it breaks something."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck import report
from limbeck.compress import Plan
from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, ModelError, nearest, problem
from limbeck.core.extras import need
from limbeck.core.folder import RunFolder
from limbeck.core.keras import as_module
from limbeck.core.seeds import derive
from limbeck.core.setting import as_plain
from limbeck.core.taps import Inputs, Outputs, Reader
from limbeck.data import Augmentation, as_source, split
from limbeck.data import describe as describe_augmentation
from limbeck.evaluation.study import document
from limbeck.evidence import arm, describe, footprints
from limbeck.examining import Subject
from limbeck.export import save_model
from limbeck.export.onnx import OnnxModel
from limbeck.job import Job
from limbeck.levers import Step, steps
from limbeck.objectives import KL, Label, Term, as_objective
from limbeck.remembering import remember
from limbeck.search import Attempt, Budget, Found, find
from limbeck.teachers import teacher as make_teacher
from limbeck.train import Optimizer, Training
from limbeck.workshop import Candidate, Workshop, first_of

__all__ = ["Squeezed", "squeeze"]

Say = Callable[[str], None]

_UNITS = {"parameters": "parameters", "bytes": "bytes", "macs": "multiply-accumulates", "latency": "seconds a call"}


@dataclass
class Squeezed:
    """What `squeeze` gives back."""

    model: nn.Module
    """The best model met, in floats. It may be trained and changed further."""
    file: OnnxModel | None
    """Where a chain ends in 8-bit numbers and that held: the model as such a file, to be called like the module."""
    met: bool
    """Whether the whole budget is met."""
    words: Sequence[str]
    """What came out, in sentences; what was missed and by how much among them."""
    attempts: Sequence[Mapping[str, Any]]
    """Every model that was met: the step, its strength, costs, scores, whether it held, and what became of it."""
    scores: Mapping[str, Mapping[str, Any]]
    """Of "original" and "model", on the test samples, or on the validation samples where there are none."""
    costs: Mapping[str, Mapping[str, float]]
    """Of "original" and "model": parameters, bytes, macs, and seconds where latency was budgeted."""
    plans: Sequence[Plan]
    """What was done to the original, in order; `limbeck.compress.replay` does it to another of its kind."""
    document: Mapping[str, Any]
    evidence: Mapping[str, Any]
    folder: RunFolder

    def report(self) -> Path:
        """Write the page and return its path.

        Raises:
            ConfigError: there is no folder.
        """
        if self.folder.path is None:
            raise ConfigError(problem("report", "this search has no folder", "pass out= to squeeze"))
        return report.render(self.folder.path)


def squeeze(
    model: nn.Module,
    *,
    train: Any,
    budget: Budget,
    val: Any = None,
    test: Any = None,
    ops: Sequence[Any] | None = None,
    objective: Term | Sequence[Term] | None = None,
    epochs: int = 1,
    views: int | None = None,
    tries: int = 3,
    latency_batch: int = 1,
    latency_threads: int | None = None,
    augment: Augmentation | None = None,
    batch_size: int = 128,
    seed: int = 0,
    inputs: Inputs = None,
    outputs: Outputs = None,
    workers: int = 0,
    out: str | Path | None = None,
    title: str | None = None,
    say: Say = lambda _: None,
    progress: bool = True,
    **training: Any,
) -> Squeezed:
    """Make `model` smaller until it fits `budget`, and give back the best model that was met.

    A chain of operations is gone through. Each is set by bisection to the least that the costs ask for; the changed
    model is trained to match the original (whose answers are kept once for the whole search) and scored on the
    validation samples. What breaks a score is weakened by bisection or undone, and so is a training that makes things
    worse. The original is left bit-identical. There is always a result: where the budget cannot be met, the nearest
    model whose scores hold, and `met`, `words` say what was missed.

    Args:
        model: any module that can be traced on a batch.
        train: as `distill` takes it: what repairs are trained on, and operations read.
        budget: what is asked for, see `Budget`.
        val: what every attempt is scored on; a tenth of `train` when None.
        test: what original and result are scored on in the end, once; `val` when None.
        ops: operations or their names, in order; a setting begins with the strength that it states ("half of the
            units" is `Prune(ratio=0.5)`), a name with what the costs ask for. None takes "prune", and with a budget of
            bytes or latency "quantize" after it.
        objective: of the repair; soft answers at T = 2 and labels, half each, when None.
        epochs: passes over `train` of each repair; 0 leaves repairs out.
        views: augmented versions of each sample that the original's answers are kept for; as many as there are epochs,
            up to 4, when None.
        tries: how often an operation is weakened.
        latency_batch: samples a call where latency counts.
        latency_threads: that a call is timed on; as many as torch has when None.
        augment: of the images in repairs.
        batch_size: samples a step of repairs.
        seed: of whatever is drawn.
        inputs: which columns the model takes; None finds out.
        outputs: names for what it returns; None finds out.
        workers: processes that read a map-style dataset.
        out: the folder. The same call on the same folder goes on where a killed one stopped.
        title: of the page and the card; the folder's name when None.
        say: hears a line on each attempt.
        progress: show bars where stderr is a terminal.
        **training: any other field of `limbeck.Training` for repairs.

    Raises:
        LimbeckError: the input is at fault; told before anything is trained.
        KeyboardInterrupt: Ctrl-C, after the step was finished and saved.
    """
    original = as_module(model)
    if not isinstance(original, nn.Module):
        raise ModelError(problem("squeeze", f"{type(model).__name__} is no torch.nn.Module", "give a module"))
    whole("tries", tries, least=0)
    whole("epochs", epochs, least=0)
    whole("latency_batch", latency_batch)
    if latency_threads is not None:
        whole("latency_threads", latency_threads)
    chain = steps(ops, budget)
    if any(step.op.kind == "quantize" for step in chain):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need(package, extra="onnx", why="8-bit numbers")
    settings = _training(epochs=max(1, epochs), batch_size=batch_size, **training)
    source = as_source(train, where="train")
    if val is None:
        source, held_out = split(source, 0.1, derive(seed, "split"))
    else:
        held_out = as_source(val, where="val", classes=source.classes)
    final = as_source(test, where="test", classes=source.classes) if test is not None else held_out
    job = Job(student=copy.deepcopy(original), teacher=None, train=source, val=held_out, test=held_out,
              objective=as_objective(objective or (KL(temperature=2.0, weight=0.5), Label(weight=0.5))),
              training=settings, augment=augment, seed=seed, inputs=inputs, outputs=outputs, workers=workers,
              show=progress)  # fmt: skip
    asked = _recipe(original, job, budget, chain, epochs=epochs)
    if timed := "latency" in budget.costs:
        asked["latency"] = {"batch": latency_batch, "threads": latency_threads}
    _try(job)
    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder(Path(out) if out is not None else None, asked, device=settings.device))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = time.perf_counter()
        shop = Workshop(job, chain, folder, scratch=scratch, batch=latency_batch, threads=latency_threads, timed=timed)
        budget.limits(shop.weigh(shop.original), shop.score(shop.original))  # refused before the teacher is asked
        if epochs:
            shop.job = replace(job, teacher=_taught(original, job, folder, views=views, progress=progress))
        found = find(
            shop.original, [step.lever for step in chain], budget, change=shop.change, weigh=shop.weigh,
            score=shop.score, repair=shop.repair if epochs else None, tries=tries, hear=lambda a: say(told(a)),
        )  # fmt: skip
        named = title or (folder.path.name if folder.path else "squeeze")
        return _finished(shop, found, final, title=named, split="test" if test is not None else "validation",
                         seconds=time.perf_counter() - started)  # fmt: skip


def _training(**given: Any) -> Training:
    known = [f.name for f in fields(Training)]
    for name in given:
        if name not in known:
            raise ConfigError(problem("squeeze", f"there is no setting {name!r}", nearest(name, known)))
    # A fifth of the usual rate: the model is not new, and a large step would undo what it knows.
    return Training(**{"optimizer": Optimizer(rate=0.02), **given})


def _try(job: Job) -> None:
    """Call the model once on real samples.

    Raises:
        ModelError: it cannot be called, or has no logits.
    """
    reader = Reader(job.student, inputs=job.inputs, outputs=job.outputs)
    try:
        reader.probe(first_of(job.train, 2), ("logits",))
    finally:
        reader.close()


def _taught(original: nn.Module, job: Job, folder: RunFolder, *, views: int | None, progress: bool) -> Any:
    """The original as a teacher; in a folder, its answers, asked for once."""
    master = make_teacher(copy.deepcopy(original), inputs=job.inputs, outputs=job.outputs)
    needs = frozenset[str]().union(*(term.needs().teacher for term in job.objective))
    if folder.path is None or not needs or any("@" in name or name != "logits" for name in needs):
        return master
    count = 1 if job.augment is None else views or min(4, job.training.epochs)
    return remember(master, job.train, out=folder.path / "targets", views=count, augment=job.augment, seed=job.seed,
                    device=job.training.device, progress=progress)  # fmt: skip


def _recipe(model: nn.Module, job: Job, budget: Budget, chain: Sequence[Step], *, epochs: int) -> dict[str, Any]:
    """What makes this search this search; a folder refuses any other."""
    return {
        "squeeze": as_plain(budget),
        "ops": [as_plain(step.op) | {"begins": step.lever.first} for step in chain],
        "model": {"class": describe(model), "weights": make_teacher(model).fingerprint()},
        "data": {name: getattr(job, name).fingerprint() for name in ("train", "val")},
        "objective": as_plain(job.objective),
        "training": {**as_plain(job.training), "epochs": epochs},
        "augment": describe_augmentation(job.augment),
        "seed": job.seed,
    }


def told(attempt: Attempt) -> str:
    """An attempt in one line."""
    strength = "" if attempt.strength is None else f" {attempt.strength:.3f}"
    shown = [f"{name} {value:.4f}" for name, value in attempt.scores.items() if isinstance(value, float)][:1]
    kept = "kept" if attempt.kept else "left"
    repaired = ", repaired" if attempt.repaired else ""
    return f"{attempt.number:>3}  {attempt.lever}{strength}{repaired}: {', '.join(shown)}; {kept}: {attempt.why}"


def _finished(
    shop: Workshop, found: Found[Candidate], final: Any, *, title: str, split: str, seconds: float
) -> Squeezed:
    """Score original and result once on the final samples, and write what a finished run holds."""
    best, folder, job = found.model, shop.folder, shop.job
    scores = {"original": shop.scored(shop.original, final), "model": shop.scored(best, final)}
    costs = {"original": dict(shop.weigh(shop.original)), "model": dict(found.best.costs)}
    words = [*_words(found, scores, costs), *_timed(shop, costs)]
    doubts = [*_doubts(found)]
    sizes = footprints({"teacher": Subject(shop.original.model, job.inputs, job.outputs),
                        "student": Subject(best.model, job.inputs, job.outputs)}, job.val)  # fmt: skip
    arms = {
        "teacher": arm("teacher", "Original", describe(shop.original.model),
                       runs=[{"seed": job.seed, "scores": scores["original"]}], footprint=sizes.get("teacher")),
        "student": arm("distilled", "Squeezed", " · ".join(plan.op["kind"] for plan in best.plans) or "unchanged",
                       runs=[{"seed": job.seed, "scores": scores["model"], "validation": dict(found.best.scores)}],
                       footprint=sizes.get("student"),
                       objective=job.objective),
    }  # fmt: skip
    chain = ", then ".join(name.replace("_", " ") for name in shop.steps)
    said = document(title=title, story=f"Made smaller: {chain}.", split=split, arms=arms,
                    classes=job.train.class_names, notes=doubts)  # fmt: skip
    said |= {"kind": "squeeze", "said": words}  # the page and the terminal then speak of a budget, not of a student
    words = [*words, *doubts]
    attempts = [as_plain(attempt) for attempt in found.attempts]
    evidence = {
        "format": 1,
        "attempts": attempts,
        "limits": {"ceilings": dict(found.limits.ceilings), "floors": dict(found.limits.floors),
                   "lids": dict(found.limits.lids)},
        "best": found.best.number,
        "costs_of_best": costs,
        **({"calls": {"batch": shop.batch, "threads": _threads(shop)}} if shop.timed else {}),
    }  # fmt: skip
    file = best.file
    if folder.path is not None:
        file = _saved(folder.path, best, words, said)
        folder.finish(said, seconds, evidence=evidence)
        report.render(folder.path)
    return Squeezed(best.model, file, found.met, words, attempts, scores, costs, best.plans, said,
                    evidence, folder)  # fmt: skip


def _saved(home: Path, best: Candidate, words: Sequence[str], said: Mapping[str, Any]) -> OnnxModel | None:
    """The result in `student/`: weights, lineage and card, and the file of 8-bit numbers where there is one."""
    lineage = {"base": {"class": describe(best.model)}}
    card = "\n".join([f"# {said['title']}", "", *words, "", "Load it with `limbeck.load(folder, into=model)`, where",
                      "`model` is the original's class; its shapes are those of `lineage.json`.", ""])  # fmt: skip
    save_model(home / "student", best.model, lineage=lineage, card=card, operations=best.plans)
    if best.file is None:
        return None
    path = home / "student" / "model.int8.onnx"
    return best.file.copy_to(path)


def _words(
    found: Found[Candidate], scores: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    """What came out, in sentences."""
    shares = [f"{costs['model'][name] / costs['original'][name]:.1%} of the {_UNITS[name]}"
              for name in _UNITS if name in costs["model"]]  # fmt: skip
    lead = "The whole budget is met" if found.met else "The budget is not met; this is the nearest that holds"
    yield f"{lead}: {', '.join(shares)}."
    for name in ("accuracy", "macro_recall", "macro_f1", "r2"):
        if name in scores["model"]:
            before, after = scores["original"][name], scores["model"][name]
            yield f"{name.replace('_', ' ').capitalize()}: {after:.4f}, the original's {before:.4f}."
    for name, factor in found.missed.items():
        most = found.limits.ceilings[name]
        has = found.best.costs[name]
        yield f"Missed: {has:.4g} {_UNITS[name]} where {most:.4g} were asked for, {factor:.2f} times as much."


def _timed(shop: Workshop, costs: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What a call is, where calls were timed."""
    if shop.timed:
        before, after = (1e3 * costs[name]["latency"] for name in ("original", "model"))
        threads = _threads(shop)
        yield (
            f"A call of {shop.batch} sample{'s' * (shop.batch > 1)} on {threads} thread{'s' * (threads > 1)} takes "
            f"{after:.3g} ms, the original's {before:.3g} ms."
        )


def _threads(shop: Workshop) -> int:
    return shop.threads or torch.get_num_threads()


def _doubts(found: Found[Candidate]) -> Iterator[str]:
    """What stands between the scores and their reading."""
    if found.attempts[0].scores.get("accuracy") == 1.0:
        yield (
            "The original is right on every validation sample: it probably was trained on them. A model that lost "
            "something elsewhere may show no loss there; choose by samples that the original has not seen."
        )
