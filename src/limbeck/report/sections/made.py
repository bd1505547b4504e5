"""Where it all comes from: the story, the objectives, every training, the recipe and the environment."""

from __future__ import annotations

from limbeck.report import numbers
from limbeck.report.looks import styles
from limbeck.report.reading import Run, arms, finite, found_at, primary, text
from limbeck.report.sections.blocks import Block, Cell, Code, Folded, Head, Pairs, Section, Table

__all__ = ["section"]


def section(run: Run) -> Section | None:
    """What was trained, how, with what and where."""
    blocks: list[Block] = []
    made = [(arm.label, " · ".join(arm.objective), arm.describe) for arm in arms(run.scores)
            if arm.describe or arm.objective]  # fmt: skip
    if made:
        blocks.append(Pairs(made, wide=True))
    trainings = _trainings(run)
    if trainings.rows:
        blocks.append(Folded("Every training", trainings))
    if run.recipe.strip():
        blocks.append(Folded("Recipe", Code(run.recipe.rstrip())))
    if run.environment:
        blocks.append(Folded("Environment", Pairs(_environment(run))))
    story = text(run.scores.get("story"))
    return Section("made", "How it was made", "How it was made", story, blocks) if blocks or story else None


def _trainings(run: Run) -> Table:
    """A row for each single training: arm, seed, headline metric, epochs, steps, duration, why it stopped."""
    chosen, coloured, rows = primary(run.scores), styles(run.scores), []
    for arm in arms(run.scores):
        for one in arm.runs:
            value = finite(found_at(one, "scores", chosen.key)) if chosen else None
            counts = [finite(one.get(key)) for key in ("epochs", "steps")]
            took = finite(one.get("seconds"))
            rows.append([
                Cell(arm.label, style=coloured.get(arm.name, "")),
                Cell(text(one.get("seed")) or numbers.DASH, finite(one.get("seed"))),
                Cell(chosen.show(value) if chosen else numbers.DASH, value),
                *(Cell(numbers.number(count, 0), count) for count in counts),
                Cell(numbers.seconds(took), took),
                Cell(text(one.get("stopped_by")) or numbers.DASH),
            ])  # fmt: skip
    head = [Head("Model"), Head("Seed"), Head(chosen.label if chosen else "Score"), Head("Epochs"), Head("Steps"),
            Head("Time"), Head("Stopped by", left=True)]  # fmt: skip
    return Table("Every training", head, rows)


def _environment(run: Run) -> list[tuple[str, str, str]]:
    """Name and value of everything that is known about where the run was made."""
    return [
        (str(key).replace("_", " "), numbers.seconds(finite(value)) if key == "seconds" else text(value), "")
        for key, value in run.environment.items()
    ]
