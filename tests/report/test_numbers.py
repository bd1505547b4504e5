from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.report import numbers


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (numbers.percent(0.7361), "73.6 %"), (numbers.percent(None), "–"), (numbers.points(0.0162), "+1.6 points"),
        (numbers.points(-0.0031), "−0.3 points"), (numbers.signed(-0.01), "0.0"), (numbers.signed(0.01), "0.0"),
        (numbers.number(-0.0001), "0.000"), (numbers.number(1e12), "1.00e+12"),
        (numbers.ratio(283, 1000), "28 %"), (numbers.ratio(34.1, 1000), "3.4 %"),
        (numbers.ratio(0.41, 1000), "0.041 %"),
        (numbers.ratio(1, 0), "–"), (numbers.ratio(None, 3), "–"), (numbers.ratio(3, 3), "100 %"),
        (numbers.count(60362), "60.4 k"), (numbers.count(5_600_000), "5.6 M"), (numbers.count(999), "999"),
        (numbers.count(999_600), "1 M"), (numbers.count(200), "200"), (numbers.size(241448), "241 kB"),
        (numbers.size(0), "0 B"), (numbers.seconds(0.0012), "1.2 ms"), (numbers.seconds(63.1), "1 min 3 s"),
        (numbers.seconds(4020), "1 h 7 min"), (numbers.seconds(59.99), "1 min 0 s"), (numbers.seconds(0), "0 µs"),
        (numbers.seconds(7170), "2 h 0 min"),
    ],
)  # fmt: skip
def test_numbers_look_as_promised(made, said):
    assert made == said


@given(st.floats(1, 9e14))
def test_a_count_reads_back_within_half_a_percent(value):
    digits, _, unit = numbers.count(value).partition(" ")
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert float(digits) * scale == pytest.approx(value, rel=0.006)
    assert len(re.sub(r"\D", "", digits)) <= 3


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_a_sign_is_never_lost_nor_invented_where_the_decimals_show_it(a, b):
    digits = numbers.decimals(a, b)
    for value in (a, b):
        shown = float(numbers.signed(value, digits).replace("−", "-"))
        assert shown * value >= 0
        assert abs(shown - value) <= 0.5 * 10**-digits + 1e-9
        assert shown != 0 or value == 0 or digits == 3
