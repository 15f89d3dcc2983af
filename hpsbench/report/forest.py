"""A verdict's change and its interval as one mark, and the axis above a column of them."""

from __future__ import annotations

from collections.abc import Iterable

from hpsbench.report import notation
from hpsbench.report.elements import Element, element
from hpsbench.report.panels import (
    Scale,
    bar,
    change_span,
    line,
    linear_scale,
    marker,
    percent_ticks,
    text_width,
    words,
)
from hpsbench.verdict import Verdict

_FOREST_WIDTH = 168.0


def forest_span(verdicts: Iterable[Verdict]) -> float:
    """Return the change at the edges of `forest`, one for all verdicts that stand together."""
    figures = [(v.low or 0.0, v.high or 0.0, v.limit or 0.0) for v in verdicts]
    return change_span(abs(figure) for of_verdict in figures for figure in of_verdict)


def forest(verdict: Verdict, span: float) -> Element | None:
    """Return a verdict's change with its interval, on the band of its limit; None of no figures."""
    if verdict.change is None or verdict.limit is None:
        return None
    middle = 10.0
    x = _forest_axis(span)

    def clipped(change: float | None) -> float:
        return x(max(-span, min(span, change or 0.0)))

    tip = f"{notation.change(verdict.change)}, {notation.interval(verdict.low, verdict.high)}"
    return element(
        "svg",
        element("title", f"{tip}, limit {notation.limit(verdict.limit)}"),
        bar(clipped(-verdict.limit), 1, clipped(verdict.limit), 19, class_="band"),
        line(x(0), 0, x(0), 20, class_="zero"),
        line(clipped(verdict.low), middle, clipped(verdict.high), middle, class_="whisker"),
        marker(0, clipped(verdict.change), middle, 4.2, class_="estimate"),
        view_box=f"0 0 {_FOREST_WIDTH:g} 20",
        class_=f"forest {verdict.outcome.value.lower()}",
        role="img",
    )


def forest_scale(span: float) -> Element:
    """Return the axis above a column of `forest`."""
    x = _forest_axis(span)
    labels = percent_ticks(span, most=4)
    outer = [labels[0], (0.0, "0"), labels[-1]]
    placed = [(text, text_width(text) / 2, x(value)) for value, text in outer]
    return element(
        "svg",
        [
            words(text, max(half, min(_FOREST_WIDTH - half, at)), 12, anchor="middle")
            for text, half, at in placed
        ],
        view_box=f"0 0 {_FOREST_WIDTH:g} 16",
        class_="forest",
        aria_hidden="true",
    )


def _forest_axis(span: float) -> Scale:
    return linear_scale(-span, span, 6, _FOREST_WIDTH - 6)
