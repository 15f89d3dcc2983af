"""Latency over load as a chart: percentiles of each rate, the knee, and the limit that made it."""

from __future__ import annotations

from typing import TypeAlias

from hpsbench.load_curve import LoadCurve
from hpsbench.report import notation
from hpsbench.report.elements import Element, element
from hpsbench.report.panels import (
    WIDTH,
    Frame,
    line,
    log_scale,
    log_ticks,
    marker,
    path,
    words,
    x_axis,
    y_axis,
)
from hpsbench.stats import Percentile

#: What is drawn of each percentile: requests due per second, and the percentile at that rate.
_Lines: TypeAlias = dict[str, list[tuple[float, Percentile]]]

_HEIGHT = 300.0
_SHOWN = ((50.0, "stored"), (99.0, "dot"))


def load_chart(title: str, curve: LoadCurve) -> Element | None:
    """Return the chart of a curve, None where every rate was saturated."""
    kept = [point for point in curve.points if not point.saturated]
    lines = {
        kind: [
            (point.offered_hz, percentile)
            for point in kept
            if (percentile := point.percentile(q)).value_ns is not None
        ]
        for q, kind in _SHOWN
    }
    return _drawn(title, curve, lines) if any(lines.values()) else None


def _drawn(title: str, curve: LoadCurve, lines: _Lines) -> Element:
    knee = curve.knee
    rates = [point.offered_hz for point in curve.points]
    values_ms = [
        ns / 1e6
        for drawn in lines.values()
        for _, p in drawn
        for ns in (p.value_ns, p.low_ns, p.high_ns)
        if ns is not None
    ]
    if knee is not None:
        values_ms.append(knee.limit_ns / 1e6)
    frame = Frame(left=50, right=WIDTH - 14, top=30, bottom=_HEIGHT - 42)
    x = log_scale(min(rates) / 1.1, max(rates) * 1.1, frame.left, frame.right)
    low, high = min(values_ms) / 1.15, max(values_ms) * 1.15
    y = log_scale(low, high, frame.bottom, frame.top)
    ticks = [(t, f"{t:g}") for t in log_ticks(min(rates) / 1.1, max(rates) * 1.1)]
    marks = [
        *y_axis(frame, y, [(t, f"{t:g}") for t in log_ticks(low, high)], "latency, ms"),
        *x_axis(frame, x, ticks, "requests due per second"),
    ]
    if knee is not None:
        limit = y(knee.limit_ns / 1e6)
        marks.append(line(frame.left, limit, frame.right, limit, class_="zero"))
        if knee.rate_hz is not None:
            at = x(knee.rate_hz)
            marks.append(line(at, frame.top, at, frame.bottom, class_="zero"))
            marks.append(words("knee", at + 4, frame.bottom - 6))
    for q, kind in _SHOWN:
        places = [(x(rate), y((p.value_ns or 0) / 1e6), p) for rate, p in lines[kind]]
        for left, _, p in places:
            if p.low_ns is not None and p.high_ns is not None:
                ends = y(p.high_ns / 1e6), y(p.low_ns / 1e6)
                marks.append(line(left, ends[0], left, ends[1], class_="bound v1"))
        if places:
            marks.append(path([(left, top) for left, top, _ in places], class_="own line v1"))
        for (left, top, p), (rate, _) in zip(places, lines[kind], strict=True):
            tip = f"{rate:.0f} requests/s, p{q:g} {notation.milliseconds(p.value_ns)} ms"
            marks.append(marker(0, left, top, 3.8, class_=f"{kind} v1", tip=tip))
    return element(
        "svg",
        element("title", f"latency of {title} over requests per second"),
        marks,
        view_box=f"0 0 {WIDTH:g} {_HEIGHT:g}",
        role="img",
    )
