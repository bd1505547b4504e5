"""A run folder as one self-contained page, as sentences and as a table. Reads plain records; never imports torch."""

from limbeck.report.page import render
from limbeck.report.summary import lines, table

__all__ = ["lines", "render", "table"]
