from __future__ import annotations

import itertools
import json
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.report import charts
from limbeck.report.charts.scale import logarithmic

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
    found = ET.fromstring(svg).findall(".//polyline")
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
        charts.dot_chart([charts.DotRow(EVIL * 5, [charts.Dot(0.5, "s1", EVIL, EVIL)], EVIL)], title=EVIL, unit=EVIL),
        charts.heat_map(
            [[0.5, None], [0.1, 0.9]],
            [EVIL * 5, EVIL],
            title=EVIL,
            tip=lambda i, j: EVIL,
            shade=lambda i, j, v: "heat better",
        ),
        charts.scatter_chart(
            [charts.Spot(EVIL, "s1", 2.0, (1.0, 3.0), [(EVIL, 0.5), ("1", 0.6)], EVIL)],
            title=EVIL,
            axis=EVIL,
            show=lambda v: EVIL,
            value=lambda v: EVIL,
        ),
        charts.reliability_chart([charts.Bin(0.5, 0.4, 3)], "s1", title=EVIL),
        charts.box_chart(
            [charts.Batch(EVIL, "s1", [1.0, 2.0], 1.0, 1.5, 2.0, None, None, EVIL)], title=EVIL, show=lambda v: EVIL
        ),
    ]
    for svg in drawn:
        assert ET.fromstring(svg).find(".//b") is None
        assert re.search(r"<b\b", svg) is None
        assert not any(name.startswith("on") for each in ET.fromstring(svg).iter() for name in each.attrib)


def test_nothing_to_draw_is_an_empty_text():
    assert charts.line_chart([], title="t") == charts.interval_chart([], title="t") == ""
    assert charts.dot_chart([], title="t") == charts.dot_chart([charts.DotRow("a", [])], title="t") == ""
    assert charts.heat_map([], [], title="t", tip=lambda i, j: "", shade=lambda i, j, v: "") == ""
    assert charts.reliability_chart([], "s1", title="t") == charts.box_chart([], title="t", show=str) == ""
    assert charts.scatter_chart([], title="t", axis="x", show=str, value=str) == ""


def test_small_steps_along_the_axis_are_told_apart():
    svg = charts.line_chart([charts.Line("a", "s1", [[(0.01, 1.0), (0.02, 2.0)]])], title="t")
    for tick in ("0.010", "0.012", "0.018", "0.020"):
        assert f">{tick}<" in svg


def test_what_a_line_chart_draws_is_kept_with_it_as_numbers():
    seeds = [[(0, 0.25), (10, 1.0)], [(0, 0.75), (10, 0.5)]]
    svg = charts.line_chart([charts.Line("a", "s1", seeds, ["3", "7"])], title="t", axis="epoch", fraction=True)
    held = json.loads(ET.fromstring(svg).attrib["data-lines"])
    [line] = held["lines"]
    assert line["mean"] == [0, 0.5, 10, 0.75]
    assert line["seeds"] == [["3", [0, 0.25, 10, 1.0]], ["7", [0, 0.75, 10, 0.5]]]
    assert (held["axis"], held["fraction"], held["across"]) == ("epoch", True, [0, 10])
    drawn = ET.fromstring(svg).find(".//polyline[@class='mean s1']").attrib["points"].split()
    left, _, right, bottom = held["box"]
    (x0, y0), (x1, _) = (map(float, point.split(",")) for point in drawn)
    low, high = held["down"]
    assert (x0, x1) == pytest.approx((left, right), abs=0.1)
    assert y0 == pytest.approx(bottom + (0.5 - low) / (high - low) * (held["box"][1] - bottom), abs=0.1)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_an_axis_of_ratios_keeps_order_and_marks_three_values_within(values):
    axis = logarithmic(values, (10.0, 350.0), show=str)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(10 <= place <= 350 for place in places)
    assert len(axis.marks) >= 3
    assert all(10 <= axis.at(mark) <= 350 for mark, _ in axis.marks)
    assert axis.at(math.sqrt(axis.low * axis.high)) == pytest.approx(180)


def test_a_spot_stands_at_its_cost_and_value_and_its_seeds_above_it():
    spots = [charts.Spot("a", "s1", 10.0, None, [("0", 0.2), ("1", 0.4)], "a"),
             charts.Spot("b", "s2", 1000.0, (500.0, 2000.0), [("0", 0.8)], "b")]  # fmt: skip
    drawing = ET.fromstring(charts.scatter_chart(spots, title="t", axis="x", show=str, value=str))
    large = [dot for dot in drawing.iter("circle") if dot.attrib["r"] == "6"]
    (ax, ay), (bx, by) = ((float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in large)
    small = [dot for dot in drawing.iter("circle") if dot.attrib["r"] == "2.5"]
    assert ax < bx
    assert ay > by
    assert [float(dot.attrib["cx"]) for dot in small] == [ax, ax]
    assert sum(float(dot.attrib["cy"]) for dot in small) / 2 == pytest.approx(ay, abs=0.1)
    assert [dot.attrib["data-t"] for dot in small] == ["a\nSeed 0: 0.2", "a\nSeed 1: 0.4"]
    bar = next(line for line in drawing.iter("line") if line.attrib["class"] == "bar s2")
    middle = (float(bar.attrib["x1"]) + float(bar.attrib["x2"])) / 2
    assert middle == pytest.approx(bx, abs=0.1), "half and twice are equally far in ratios"


def test_names_of_spots_at_one_place_do_not_cover_each_other():
    spots = [charts.Spot(f"model {i}", "s1", 10.0, None, [("0", 0.5)], "t") for i in range(4)]
    drawing = ET.fromstring(charts.scatter_chart(spots, title="t", axis="x", show=str, value=str))
    heights = sorted(float(t.attrib["y"]) for t in drawing.iter("text") if t.attrib["class"] == "name halo")
    assert all(b - a >= 12 for a, b in itertools.pairwise(heights))


def test_a_heat_map_has_a_cell_for_each_number_and_darkens_with_it():
    shares = [[0.64, None], [0.16, 1.0]]
    svg = charts.heat_map(shares, ["a", "b"], title="t", tip=lambda i, j: f"{i}{j}",
                          shade=lambda i, j, _: "heat better" if i == j else "heat worse")  # fmt: skip
    drawing = ET.fromstring(svg)
    found = {cell.attrib["data-t"]: cell.attrib for cell in drawing.iter("rect")}
    assert {key: float(cell["fill-opacity"]) for key, cell in found.items()} == {"00": 0.8, "10": 0.4, "11": 1.0}
    assert found["10"]["class"] == "heat worse"
    assert float(found["11"]["x"]) > float(found["10"]["x"])
    assert float(found["10"]["y"]) > float(found["00"]["y"])


def test_an_honest_bin_lies_on_the_dashed_line_and_more_answers_are_a_larger_dot():
    bins = [charts.Bin(0.25, 0.25, 10), charts.Bin(0.75, 0.5, 90)]
    drawing = ET.fromstring(charts.reliability_chart(bins, "s1", title="t"))
    [dashed] = [line.attrib for line in drawing.iter("line") if line.attrib["class"] == "zero"]
    x1, y1, x2, y2 = (float(dashed[key]) for key in ("x1", "y1", "x2", "y2"))
    honest, sure = ({k: float(dot.attrib[k]) for k in ("cx", "cy", "r")} for dot in drawing.iter("circle"))
    assert honest["cy"] == pytest.approx(y1 + (honest["cx"] - x1) / (x2 - x1) * (y2 - y1), abs=0.1)
    assert sure["cy"] > y1 + (sure["cx"] - x1) / (x2 - x1) * (y2 - y1) + 10, "too sure is beneath"
    assert sure["r"] > honest["r"]


def test_a_box_reaches_from_the_tenth_to_the_ninetieth_percentile():
    row = charts.Batch("a", "s1", [1.0, 2.0, 4.0, 8.0], 1.0, 2.0, 4.0, 1.5, 3.0, "tip")
    drawing = ET.fromstring(charts.box_chart([row], title="t", show=str))
    strokes = [float(line.attrib["x1"]) for line in drawing.iter("line") if line.attrib["class"].startswith("stroke")]
    box, dot = drawing.find(".//rect").attrib, drawing.find(".//circle").attrib
    assert len(strokes) == 4
    assert float(box["x"]) == pytest.approx(strokes[0], abs=0.1)
    assert float(box["x"]) + float(box["width"]) == pytest.approx(strokes[2], abs=0.2)
    assert float(dot["cx"]) == pytest.approx(strokes[1], abs=0.1)
