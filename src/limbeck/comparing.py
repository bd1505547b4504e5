"""Several runs on one page: their records joined, and every student beside one that all are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from limbeck import report
from limbeck.core.errors import CheckpointError, problem
from limbeck.core.folder import RunFolder
from limbeck.core.records import write_json, write_lines
from limbeck.evaluation.study import document
from limbeck.report.compare import Joined, held, join, names

__all__ = ["Comparison", "beside", "compare"]


class Finished(Protocol):
    """What `limbeck.distill` gives back, as far as it is read here: a run that knows its folder."""

    @property
    def folder(self) -> RunFolder:
        """Where it is kept."""
        ...


class Comparison(NamedTuple):
    """What `compare` gives back: all of it as plain data, as in `scores.json`; its folder, and its page there."""

    document: Mapping[str, Any]
    folder: Path
    page: Path


def compare(runs: Sequence[str | Path | Finished], *, out: str | Path, baseline: str | None = None) -> Comparison:
    """Put finished runs beside each other in a folder of their own, with one page; the runs are only read.

    Every student is compared with one of them, in pairs of equal seeds. The folder is one of a run itself: it can be
    reported and compared again, and the same call on it writes it anew.

    Args:
        runs: two or more, as their folders or as what `limbeck.distill` gave back.
        out: a new folder, or that of the same comparison.
        baseline: the arm that the others are compared with, as `run/arm`; by default the student trained alone of the
            first run that has one.

    Raises:
        ConfigError: fewer than two runs, one of them twice, or no arm is called as `baseline` says.
        CheckpointError: a run has not ended or is damaged, or the folder holds something else.
        DataError: the runs were scored on different test data.
    """
    joined = _joined(runs, baseline)
    with RunFolder(Path(out), joined.recipe) as folder:
        return _written(joined, folder)


def beside(runs: Sequence[str | Path | Finished], folder: RunFolder, *, title: str, story: str) -> Comparison:
    """The same in a folder that is open already, under a title and a story of its own.

    Raises:
        LimbeckError: as `compare`; or the folder is only in memory.
    """
    joined = _joined(runs, None)
    return _written(joined._replace(scores={**joined.scores, "title": title, "story": story}), folder)


def _joined(runs: Sequence[str | Path | Finished], baseline: str | None) -> Joined:
    folders = [_folder(run) for run in runs]
    called = names(folders)
    return join([held(folder, name) for folder, name in zip(folders, called, strict=True)], baseline=baseline)


def _written(joined: Joined, folder: RunFolder) -> Comparison:
    home = folder.path
    if home is None:
        raise CheckpointError(problem("compare", "the folder is only in memory", "give it a path"))
    said, evidence = _document(joined), _evidence(joined)
    write_lines(home / "metrics.jsonl", joined.lines)
    if evidence:
        write_json(home / "evidence.json", evidence)
    else:
        (home / "evidence.json").unlink(missing_ok=True)
    own = {key: folder.environment[key] for key in ("limbeck", "started", "command")}
    write_json(home / "environment.json", {**joined.environment, **own})
    write_json(home / "scores.json", said)
    return Comparison(said, home, report.render(home))


def _folder(run: str | Path | Finished) -> Path:
    if isinstance(run, str | Path):
        return Path(run)
    if run.folder.path is None:
        mend = 'pass out= to distill, or write it first: run.report("runs/first")'
        raise CheckpointError(problem("compare", "one of the runs has no folder", mend))
    return run.folder.path


def _document(joined: Joined) -> dict[str, Any]:
    """The content of `scores.json`: every student is compared, whatever it learned from."""
    scores, arms = joined.scores, joined.scores["arms"]
    roles = {name: "plain" if name == joined.baseline else "distilled" for name in arms}
    cast = {name: arm if arm["role"] == "teacher" else {**arm, "role": roles[name]} for name, arm in arms.items()}
    said = document(
        title=scores["title"],
        story=scores["story"],
        split=scores["split"],
        arms=cast,
        classes=scores["classes"],
        baseline=joined.baseline,
    )
    # `document` speaks of distillation in its notes, and here a student may differ from the baseline in anything.
    return {**said, **scores}


def _evidence(joined: Joined) -> dict[str, Any]:
    """The content of `evidence.json`, with the differences to the common baseline."""
    if not joined.evidence:
        return {}
    from limbeck.findings import findings  # noqa: PLC0415 - imports torch

    found = {name: rows for name, rows in joined.evidence.get("arms", {}).items()
             if joined.scores["arms"][name]["role"] != "teacher"}  # fmt: skip
    rows = findings(found, baseline=joined.baseline).get("comparisons", [])
    known = {(row["arm"], row["measure"]) for row in rows}
    # What is computed from answers, which are not in a run folder, is taken over where the baseline is the run's own.
    kept = [row for row in joined.evidence.get("comparisons", [])
            if row["baseline"] == joined.baseline and (row["arm"], row.get("measure")) not in known]  # fmt: skip
    both = [*rows, *kept]
    rest = {key: value for key, value in joined.evidence.items() if key != "comparisons"}
    return {**rest, "comparisons": both} if both else rest
