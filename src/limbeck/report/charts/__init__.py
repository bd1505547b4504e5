"""Drawings as inline SVG, from numbers alone: lines, dots, scatters, heat maps, distributions.

A drawing is 360 units wide (a small one less), so that its text stays readable at the width of a telephone. Colours are
CSS classes of the page (`teacher`, `plain`, `s1` … `s5`), so that both themes hold. All text is escaped where it is
drawn. What a reader can point at carries its words in `data-t`, and whose it is in `data-series`.
"""

from limbeck.report.charts.boxes import Batch, box_chart
from limbeck.report.charts.dots import Dot, DotRow, Interval, dot_chart, interval_chart
from limbeck.report.charts.heat import heat_map
from limbeck.report.charts.limits import Met, limits_chart
from limbeck.report.charts.lines import Line, line_chart, mean_line, thin
from limbeck.report.charts.reliability import Bin, reliability_chart
from limbeck.report.charts.scale import Point, ticks
from limbeck.report.charts.scatter import Spot, scatter_chart

__all__ = [
    "Batch", "Bin", "Dot", "DotRow", "Interval", "Line", "Met", "Point", "Spot", "box_chart", "dot_chart", "heat_map",
    "interval_chart", "limits_chart", "line_chart", "mean_line", "reliability_chart", "scatter_chart", "thin", "ticks",
]  # fmt: skip
