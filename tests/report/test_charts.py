from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.report import charts

number = st.floats(-1e6, 1e6, allow_nan=False)
EVIL = "<b onclick='x'>\"&"


@given(number, number, st.integers(2, 8))
def test_ticks_enclose_and_are_even_and_few(a, b, about):
    low, high = sorted((a, b))
    found = charts.ticks(low, high, about)
    gaps = {round((y - x) / (found[1] - found[0]), 6) for x, y in itertools.pairwise(found)}
    slack = 1e-6 * (found[1] - found[0])
    assert found[0] <= low + slack
    assert high - slack <= found[-1]
    assert gaps == {1.0}
    assert 2 <= len(found) <= about + 3


def test_ticks_are_round():
    assert charts.ticks(0.0, 1.0, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert charts.ticks(3.0, 3.0, 4)[0] < 3 < charts.ticks(3.0, 3.0, 4)[-1]


@given(st.lists(number, min_size=1, max_size=2000), st.integers(4, 200))
def test_thinning_keeps_ends_and_extremes_and_never_exceeds(values, most):
    points = list(enumerate(values))
    kept = charts.thin(points, most)
    assert len(kept) <= most
    assert kept == sorted(kept, key=lambda p: p[0])
    assert set(kept) <= set(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert max(y for _, y in kept) == max(values)
    assert min(y for _, y in kept) == min(values)


def test_the_mean_ends_where_the_first_seed_ends():
    assert charts.mean_line([[(1, 2.0), (2, 4.0), (3, 9.0)], [(1, 4.0), (2, 0.0)]]) == [(1, 3.0), (2, 2.0)]


@given(st.lists(st.lists(st.tuples(number, number), max_size=30), max_size=4))
def test_lines_stay_inside_the_drawing(seeds):
    svg = charts.line_chart([charts.Line("a", "s1", seeds)], title="t")
    if not any(seeds):
        assert svg == ""
        return
    drawing = ET.fromstring(svg)
    _, _, width, height = map(float, drawing.attrib["viewBox"].split())
    for line in drawing.iter("polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_a_higher_value_is_drawn_higher_and_a_mean_is_strong():
    svg = charts.line_chart([charts.Line("a", "s1", [[(0, 0.0), (1, 1.0)], [(0, 0.5), (1, 1.0)]])], title="t")
    found = ET.fromstring(svg).findall("polyline")
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in found[0].attrib["points"].split())
    assert x1 > x0
    assert y1 < y0
    assert [line.attrib["class"] for line in found] == ["seed s1", "seed s1", "mean s1"]


def test_intervals_stand_where_their_numbers_say():
    rows = [charts.Interval("a", "better", 1.0, 0.5, 2.0, "+1"), charts.Interval("b", "same", -1.0, None, None, "−1")]
    drawing = ET.fromstring(charts.interval_chart(rows, title="t"))
    first, second = (float(dot.attrib["cx"]) for dot in drawing.findall("circle"))
    zero = next(float(line.attrib["x1"]) for line in drawing.findall("line") if line.attrib["class"] == "zero")
    [whisker] = [line for line in drawing.findall("line") if "whisker" in line.attrib["class"]]
    low, high = float(whisker.attrib["x1"]), float(whisker.attrib["x2"])
    assert 0 <= low < high <= float(drawing.attrib["viewBox"].split()[2])
    assert first - zero == pytest.approx(zero - second, abs=0.2)
    assert (low - zero) / (first - zero) == pytest.approx(0.5, abs=0.01)
    assert (high - zero) / (first - zero) == pytest.approx(2, abs=0.01)


def test_text_is_escaped_in_every_chart():
    drawn = [
        charts.line_chart([charts.Line(EVIL, "s1", [[(0, 1.0), (1, 2.0)]])], title=EVIL),
        charts.interval_chart([charts.Interval(EVIL * 5, "same", 1.0, 0.0, 2.0, EVIL)], title=EVIL),
        charts.class_chart([(EVIL, [("s1", 0.5)]), (EVIL * 5, [("s1", 0.7), ("plain", 0.2)])], title=EVIL),
    ]
    for svg in drawn:
        assert ET.fromstring(svg).find(".//b") is None
        assert re.search(r"<b\b", svg) is None


def test_nothing_to_draw_is_an_empty_text():
    assert charts.line_chart([], title="t") == charts.interval_chart([], title="t") == ""
    assert charts.class_chart([], title="t") == charts.class_chart([("a", [])], title="t") == ""


def test_small_steps_along_the_axis_are_told_apart():
    svg = charts.line_chart([charts.Line("a", "s1", [[(0.01, 1.0), (0.02, 2.0)]])], title="t")
    for tick in ("0.010", "0.012", "0.018", "0.020"):
        assert f">{tick}<" in svg
