"""Latency over load as a chart: percentiles of each rate, the knee, and the limit that made it."""

from __future__ import annotations

from collections.abc import Sequence

from hpsbench.load_results import LoadResult
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

LEAD = (
    "Curves of `hpsbench load` on this class of machine, newest first: requests leave at their "
    "times whatever came back, and latency counts from then. Filled marks are p99, hollow ones "
    "p50; rates that the server did not keep up with have none. The upright line is the knee, the "
    "highest rate whose p99 is within the limit (the level line)."
)
_HEIGHT = 300.0
_SHOWN = ((50.0, "stored"), (99.0, "dot"))


def load_panels(results: Sequence[LoadResult]) -> list[Element]:
    """Return a panel per curve, with its knee in words below the chart."""
    return [_panel(result) for result in results]


def _panel(result: LoadResult) -> Element:
    curve = result.curve
    lines = {
        kind: [
            (point.offered_hz, value_ns / 1e6)
            for point in curve.points
            if not point.saturated and (value_ns := point.percentile(q).value_ns) is not None
        ]
        for q, kind in _SHOWN
    }
    caption = element("figcaption", f"{result.model}, batch {result.batch_size}")
    drawn = _chart(result, lines) if any(lines.values()) else None
    knee = curve.knee
    found = "no knee was found"
    if knee is not None and knee.rate_hz is not None:
        limit = f"p99 within {notation.milliseconds(knee.limit_ns)} ms"
        found = f"up to {knee.rate_hz:.0f} requests/s: {limit}{', the SLO' if knee.is_slo else ''}"
    said = (
        f"{found}; {curve.arrivals} arrivals over {result.protocol}, alone "
        f"{notation.milliseconds(curve.unloaded_ns)} ms"
    )
    where = f"{result.source}, {result.recorded_at[:16].replace('T', ' ')}"
    return element(
        "figure",
        caption,
        drawn,
        element("p", said, class_="said"),
        element("p", where, class_="said"),
        class_="panel",
    )


def _chart(result: LoadResult, lines: dict[str, list[tuple[float, float]]]) -> Element:
    knee = result.curve.knee
    rates = [point.offered_hz for point in result.curve.points]
    values_ms = [ms for drawn in lines.values() for _, ms in drawn]
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
        points = [(x(rate), y(ms)) for rate, ms in lines[kind]]
        if points:
            marks.append(path(points, class_="own line v1"))
        for (left, top), (rate, ms) in zip(points, lines[kind], strict=True):
            tip = f"{rate:.0f} requests/s, p{q:g} {notation.significant(ms)} ms"
            marks.append(marker(0, left, top, 3.8, class_=f"{kind} v1", tip=tip))
    return element(
        "svg",
        element("title", f"latency of {result.model} over requests per second"),
        marks,
        view_box=f"0 0 {WIDTH:g} {_HEIGHT:g}",
        role="img",
    )
