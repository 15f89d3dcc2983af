"""The text of a curve."""

from __future__ import annotations

import dataclasses

from hpsbench.load_curve import Knee, LoadCurve, LoadPoint
from hpsbench.report.load import closing_lines, header, point_line
from hpsbench.stats import Percentile

MS = 1_000_000


def percentile(q: float, ms: float | None, *, bounded: bool = True) -> Percentile:
    value = None if ms is None else round(ms * MS)
    return Percentile(
        q=q,
        value_ns=value,
        low_ns=None if value is None else value - MS // 2,
        high_ns=value + MS // 2 if value is not None and bounded else None,
        min_requests=3688,
    )


POINT = LoadPoint(
    asked_hz=200,
    offered_hz=201.5,
    achieved_hz=200.25,
    duration_s=10,
    requests=2015,
    failed=2,
    timed_out=1,
    unsent=0,
    delayed_by_server=1,
    delayed_by_client=3,
    max_delay_ns=2 * MS,
    percentiles=(
        percentile(50, 2.5), percentile(90, 5), percentile(95, 6), percentile(99, 9.25),
        percentile(99.9, 14, bounded=False),
    ),
    saturated=False,
    within_slo=2000,
)  # fmt: skip
CURVE = LoadCurve(
    arrivals="poisson",
    unloaded_ns=2 * MS,
    capacity_hz=450.04,
    slo_ns=10 * MS,
    points=(POINT,),
    knee=Knee(rate_hz=200, next_hz=283, limit_ns=10 * MS, is_slo=True),
)


def test_a_point_stands_below_its_heads() -> None:
    assert [header(10 * MS), point_line(POINT, 10 * MS)] == [
        "offered/s  answered/s      p50      p90      p99    p99.9  p99 95% interval  in 10 ms"
        "  late  failed   (times in ms)",
        "    201.5       200.2    2.500    5.000    9.250   14.000     8.750 - 9.750     99.3%"
        "     4       2",
    ]


def test_without_an_slo_its_column_is_left_out() -> None:
    point = dataclasses.replace(POINT, within_slo=None)
    assert "in 10 ms" not in header(None)
    assert "%" not in point_line(point, None)


def test_a_percentile_among_failures_and_bad_points_say_so() -> None:
    failed = dataclasses.replace(POINT, percentiles=(
        *POINT.percentiles[:3], percentile(99, None), percentile(99.9, None),
    ))  # fmt: skip
    assert "failed" in point_line(failed, None)
    assert "? - ?" in point_line(failed, None)
    assert point_line(dataclasses.replace(POINT, saturated=True), None).endswith("  saturated")
    assert point_line(dataclasses.replace(POINT, invalid="x"), None).endswith("  INVALID")


def test_the_end_tells_the_knee_and_which_percentiles_need_more_requests() -> None:
    assert closing_lines(CURVE) == [
        "unloaded   2.000 ms (median of one client alone)",
        "capacity   450.0 answers/s of closed-loop clients",
        "knee       200.0/s: up to there p99 is within the SLO, 10 ms; at 283.0/s not",
        "p99.9 needs at least 3688 requests for its 95% interval: too few at 200.0/s",
    ]


def test_a_knee_outside_of_the_rates_is_told_as_such() -> None:
    def knee(rate_hz: float | None, next_hz: float | None) -> str:
        found = Knee(rate_hz=rate_hz, next_hz=next_hz, limit_ns=20 * MS, is_slo=False)
        return closing_lines(dataclasses.replace(CURVE, knee=found))[2]

    assert knee(None, 50) == (
        "knee       below 50.0/s: p99 is beyond its limit (10 x unloaded, 20 ms) at every rate"
    )
    assert knee(400, None) == (
        "knee       beyond 400.0/s: p99 is within its limit (10 x unloaded, 20 ms) at every rate"
    )


def test_an_invalid_point_is_explained() -> None:
    spoiled = dataclasses.replace(POINT, invalid="the client was the limit")
    lines = closing_lines(dataclasses.replace(CURVE, points=(spoiled,), knee=None))
    assert lines[-1] == "at 200.0/s: the client was the limit"
