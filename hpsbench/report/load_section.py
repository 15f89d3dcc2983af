"""Open-loop load in the HTML report: a chart of each curve, and all of its figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpsbench.load_curve import PERCENTILES, LoadCurve, LoadPoint
from hpsbench.load_results import LoadResult
from hpsbench.report import load, notation
from hpsbench.report.elements import Content, Element, element
from hpsbench.report.load_chart import load_chart
from hpsbench.report.tables import facts, plain_table
from hpsbench.runs import LoadMeasurement
from hpsbench.stats import Percentile


@dataclass(frozen=True, kw_only=True)
class ShownCurve:
    """A curve with what it is of, and how and when it was measured."""

    title: str
    measured: str
    curve: LoadCurve


def lead(*, of_run: bool) -> str:
    """Return what the curves are and how to read them; some are `of_run`, or all of the command."""
    whose = "of this run's variants, and of" if of_run else "curves of"
    return (
        "Requests leave at their times whatever came back, and latency counts from then: "
        f"{whose} `hpsbench load` on this class of machine, newest first. Filled marks are p99, "
        "hollow ones p50, each with its 95% interval; rates that the server did not keep up with "
        "have none. The upright line is the knee, the highest rate whose p99 is within the limit "
        "(the level line)."
    )


def shown_curves(
    measured: Iterable[LoadMeasurement], results: Iterable[LoadResult]
) -> list[ShownCurve]:
    """Return the curves of a run, then those of `hpsbench load`."""
    return [
        *(
            ShownCurve(
                title=f"{m.variant}, batch {m.batch_size}",
                measured=f"{m.curve.arrivals} arrivals, this run",
                curve=m.curve,
            )
            for m in measured
        ),
        *(
            ShownCurve(
                title=f"{r.model}, batch {r.batch_size}",
                measured=f"{r.curve.arrivals} arrivals over {r.protocol}, {r.source}, "
                f"{r.recorded_at[:16].replace('T', ' ')}",
                curve=r.curve,
            )
            for r in results
        ),
    ]


def load_panels(curves: Sequence[ShownCurve]) -> list[Element]:
    """Return a panel per curve, with its knee in words below the chart."""
    return [_panel(shown) for shown in curves]


def load_tables(curves: Sequence[ShownCurve]) -> list[Element]:
    """Return every figure of each curve, folded."""
    return [
        element(
            "details",
            element("summary", "Figures of ", element("b", shown.title), f", {shown.measured}"),
            _table(shown),
            facts(load.summary(shown.curve)),
            [element("p", text, class_="said") for text in load.remarks(shown.curve, PERCENTILES)],
            class_="fold",
        )
        for shown in curves
    ]


def _panel(shown: ShownCurve) -> Element:
    curve, knee = shown.curve, shown.curve.knee
    found = "no knee was found"
    if knee is not None and knee.rate_hz is not None:
        limit = f"p99 within {notation.milliseconds(knee.limit_ns)} ms"
        found = f"up to {knee.rate_hz:.0f} requests/s: {limit}{', the SLO' if knee.is_slo else ''}"
    said = f"{found}; alone {notation.milliseconds(curve.unloaded_ns)} ms"
    bad = [point for point in curve.points if load.standing(point) == "INVALID"]
    if bad:
        rates = ", ".join(f"{point.asked_hz:.0f}" for point in bad)
        said += f"; INVALID at {rates} requests/s, see its figures"
    return element(
        "figure",
        element("figcaption", shown.title),
        load_chart(shown.title, curve),
        element("p", said, class_="said"),
        element("p", shown.measured, class_="said"),
        class_="panel",
    )


def _table(shown: ShownCurve) -> Element:
    slo_ns = shown.curve.slo_ns
    names = [
        "due/s",
        "answered/s",
        *(f"p{q:g}, ms" for q in PERCENTILES),
        *([] if slo_ns is None else [f"in {slo_ns / 1e6:g} ms"]),
        "requests",
        "late",
        "failed",
    ]
    rows = [_row(point) for point in shown.curve.points]
    return plain_table(f"Load of {shown.title}", names, rows, left=0)


def _row(point: LoadPoint) -> list[Content]:
    late, failed = point.delayed_by_server + point.delayed_by_client, point.failed + point.unsent
    share, good_hz = point.goodput_share, point.goodput_hz
    worst = f"{notation.milliseconds(point.max_delay_ns)} ms at most"
    return [
        _noted(f"{point.offered_hz:.1f}", load.standing(point)),
        f"{point.achieved_hz:.1f}",
        *(_bounded(point.percentile(q)) for q in PERCENTILES),
        *([] if share is None else [_noted(f"{share:.1%}", f"{good_hz:.1f}/s")]),
        str(point.requests),
        _noted(str(late), worst if late else ""),
        _noted(str(failed), f"{point.timed_out} timed out" if point.timed_out else ""),
    ]


def _bounded(percentile: Percentile) -> Content:
    """Return a percentile with its 95% interval below; a side that nothing bounds is a question."""
    if percentile.value_ns is None:
        return "failed"
    low, high = (
        "?" if ns is None else notation.milliseconds(ns)
        for ns in (percentile.low_ns, percentile.high_ns)
    )
    value = notation.milliseconds(percentile.value_ns)
    return _noted(value, f"{low} {notation.DASH} {high}")


def _noted(text: str, note: str) -> Content:
    """Return a cell with a note in smaller type below its figure, if there is one."""
    return [text, element("span", note, class_="note") if note else None]
