"""The report of what a student has from its teacher."""

from __future__ import annotations

from collections.abc import Mapping

from limbeck.core.setting import setting

__all__ = ["Inherited", "Tensor"]


@setting
class Tensor:
    """One parameter or buffer of the student.

    Attributes:
        name: in the student.
        sources: the teacher's tensors that it is made of; several are averaged.
        how: "copied", "sliced" (units cut), "averaged" (of several), "projected" (units cut, and what they said taken
            over by the others), "pca", or "left" as the student had it.
        numbers: how many numbers it holds.
        parameter: whether it is trained; buffers do not count in `share`.
        why: why it was left.
    """

    name: str
    sources: tuple[str, ...]
    how: str
    numbers: int
    parameter: bool = True
    why: str = ""


@setting
class Inherited:
    """What a student has from its teacher.

    Attributes:
        tensors: one row each, in the student's order.
        blocks: for a container of blocks, for each block of the student the numbers of the teacher's blocks.
        units: for a group of coupled units, which of the teacher's stayed.
        notes: what was done otherwise than asked, in words.
    """

    tensors: tuple[Tensor, ...]
    blocks: Mapping[str, tuple[tuple[int, ...], ...]]
    units: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the student's parameters, the share that comes from the teacher."""
        return self._numbers(True) / max(1, self._numbers(False))

    @property
    def left(self) -> Mapping[str, str]:
        """The parameters that stayed as they were, and why."""
        return {row.name: row.why for row in self.tensors if row.how == "left" and row.parameter}

    def _numbers(self, carried: bool) -> int:
        return sum(t.numbers for t in self.tensors if t.parameter and not (carried and t.how == "left"))

    def __str__(self) -> str:
        """A table for people."""
        lines = [f"{self.share:.1%} of {self._numbers(False):,} parameters inherited"]
        for path, sources in self.blocks.items():
            lines.append(f"  blocks of {path}: " + ", ".join("+".join(map(str, source)) for source in sources))
        for row in self.tensors:
            origin = " + ".join(row.sources)
            from_ = f" from {origin}" if row.sources and origin != row.name else ""
            lines.append(f"  {row.how:9} {row.numbers:>12,}  {row.name}{from_}" + (f" ({row.why})" if row.why else ""))
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
