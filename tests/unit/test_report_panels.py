"""Scales and ticks of the charts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsbench.report.elements import element
from hpsbench.report.panels import linear_scale, linear_ticks, log_scale, log_ticks, marker

POSITIVE = st.floats(min_value=1e-6, max_value=1e6)
SPREAD = st.floats(min_value=1.02, max_value=1e6)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.6, 40, [1, 2, 5, 10, 20]),
        (1, 9, [1, 2, 5]),
        (0.9, 1200, [1, 3, 10, 30, 100, 300, 1000]),
        (1.0, 2.0, [1, 1.5, 2]),
        (1.7, 1.9, [1.7, 1.8, 1.9]),
    ],
)
def test_logarithmic_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    found = log_ticks(low, high)
    assert set(ticks) <= {round(t, 9) for t in found}
    assert len(found) <= 7


@given(POSITIVE, SPREAD)
def test_logarithmic_ticks_are_few_and_inside(low: float, spread: float) -> None:
    ticks = log_ticks(low, low * spread)
    assert 1 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert all(low * 0.998 <= tick <= low * spread * 1.002 for tick in ticks)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(4, 8))
def test_linear_ticks_are_few_and_inside(low: float, span: float, most: int) -> None:
    ticks = linear_ticks(low, low + span, most=most)
    assert 1 <= len(ticks) <= most + 1
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in ticks)


def test_scales_meet_their_ends() -> None:
    logarithmic, linear = log_scale(1, 100, 10, 30), linear_scale(-1, 1, 0, 50)
    assert [logarithmic(v) for v in (1, 10, 100)] == pytest.approx([10, 20, 30])
    assert [linear(v) for v in (-1, 0, 1)] == pytest.approx([0, 25, 50])


def test_a_scale_of_one_value_has_no_hole() -> None:
    assert math.isfinite(log_scale(5, 5, 0, 1)(5))
    assert math.isfinite(linear_scale(5, 5, 0, 1)(5))


def test_markers_differ_in_shape() -> None:
    drawn = {(m.tag, m.get("points")) for m in (marker(i, 0, 0, 1, class_="") for i in range(6))}
    assert len(drawn) == 6


def test_an_element_takes_texts_elements_and_nothing() -> None:
    built = element("p", "a", element("b", "c"), "d", None, ["e", element("i")], x=1.5, y=None)
    assert "".join(built.itertext()) == "acde"
    assert built.attrib == {"x": "1.5"}
