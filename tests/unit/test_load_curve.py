"""Curves and knees from made-up points, and one of a queue that is simulated."""

from __future__ import annotations

import numpy as np
import pytest

from hpsbench.load.open_loop import OpenLoopRun
from hpsbench.load.records import Records
from hpsbench.load.schedule import poisson_arrivals
from hpsbench.load_curve import (
    KNEE_FACTOR,
    LOWEST_SHARE,
    STEP,
    LoadPoint,
    knee_of,
    next_rate,
    point_of,
)

MS = 1_000_000


def run_of(
    latencies_ms: list[float],
    *,
    failed: int = 0,
    unsent: int = 0,
    by_server: int = 0,
    by_client: int = 0,
    gap_ms: int = 10,
) -> OpenLoopRun:
    """Return a run of requests due every `gap_ms`; the last `failed` of them failed."""
    scheduled = np.arange(len(latencies_ms), dtype=np.int64) * gap_ms * MS
    return OpenLoopRun(
        records=Records(
            scheduled_ns=scheduled,
            sent_ns=scheduled,
            received_ns=scheduled + (np.array(latencies_ms) * MS).astype(np.int64),
            ok=np.arange(len(latencies_ms)) < len(latencies_ms) - failed,
            messages=("refused",) if failed else (),
        ),
        due_ns=len(latencies_ms) * gap_ms * MS,
        connections=8,
        delayed_by_server=by_server,
        delayed_by_client=by_client,
        max_delay_ns=5 * MS,
        timed_out=0,
        unsent=unsent,
        client_cpu=0.1,
    )


def point_from(run: OpenLoopRun, *, duration_s: float = 1.0, slo_ms: float = 10) -> LoadPoint:
    return point_of(run, asked_hz=100, duration_s=duration_s, slo_ns=round(slo_ms * MS))


def test_goodput_counts_what_was_answered_in_time_of_all_that_was_due() -> None:
    point = point_from(run_of([5.0] * 60 + [20.0] * 20 + [1.0] * 10, failed=10, unsent=10))
    assert (point.requests, point.failed, point.unsent) == (100, 10, 10)
    assert point.within_slo == 60
    assert point.goodput_share == 0.6
    assert point.goodput_hz == 60
    assert (point.offered_hz, point.achieved_hz) == (100, 80)
    # A fifth failed or was not sent, so p90 is one of those.
    assert point.percentile(50).value_ns == 5 * MS
    assert point.percentile(90).value_ns is None


def test_without_an_slo_there_is_no_goodput() -> None:
    point = point_of(run_of([5.0] * 100), asked_hz=100, duration_s=1, slo_ns=None)
    assert (point.goodput_share, point.goodput_hz) == (None, None)


def test_answers_that_come_after_the_end_lower_the_rate_that_was_achieved() -> None:
    steady = point_from(run_of([5.0] * 100))
    assert steady.achieved_hz == steady.offered_hz == 100
    assert not steady.saturated
    behind = point_from(run_of([10.0 * i for i in range(100)]))
    assert behind.achieved_hz == pytest.approx(100 / 1.98)
    assert behind.saturated


def test_delays_make_a_point_invalid_and_by_the_server_saturated() -> None:
    assert point_from(run_of([5.0] * 100, by_client=5)).invalid is None
    late = point_from(run_of([5.0] * 100, by_client=6))
    assert late.invalid is not None
    assert not late.saturated
    waiting = point_from(run_of([5.0] * 100, by_server=2))
    assert waiting.saturated
    assert waiting.invalid is not None


def point(rate_hz: float, p99_ms: float, *, saturated: bool = False) -> LoadPoint:
    run = run_of([p99_ms] * 50, by_server=50 if saturated else 0)
    return point_of(run, asked_hz=rate_hz, duration_s=0.5, slo_ns=None)


RISING = [point(100, 2), point(200, 4), point(400, 12), point(300, 30), point(500, 40)]


def test_the_knee_is_the_last_rate_before_the_first_beyond_the_limit() -> None:
    knee = knee_of(RISING, unloaded_ns=2 * MS, slo_ns=None)
    assert knee is not None
    # 400/s was within it again, by chance: its users have met 300/s on the way.
    assert (knee.rate_hz, knee.next_hz) == (200, 300)
    assert knee.limit_ns == KNEE_FACTOR * 2 * MS
    assert not knee.is_slo


def test_an_slo_is_the_limit_where_there_is_one() -> None:
    knee = knee_of(RISING, unloaded_ns=2 * MS, slo_ns=3 * MS)
    assert knee is not None
    assert (knee.rate_hz, knee.next_hz, knee.is_slo) == (100, 200, True)


def test_a_saturated_rate_is_beyond_every_limit() -> None:
    points = [point(100, 2), point(200, 2, saturated=True)]
    knee = knee_of(points, unloaded_ns=2 * MS, slo_ns=None)
    assert knee is not None
    assert (knee.rate_hz, knee.next_hz) == (100, 200)


def test_a_knee_may_lie_outside_of_what_was_measured() -> None:
    below = knee_of([point(100, 50)], unloaded_ns=2 * MS, slo_ns=None)
    beyond = knee_of([point(100, 2)], unloaded_ns=2 * MS, slo_ns=None)
    assert below is not None
    assert beyond is not None
    assert (below.rate_hz, below.next_hz) == (None, 100)
    assert (beyond.rate_hz, beyond.next_hz) == (100, None)
    assert knee_of([], unloaded_ns=1, slo_ns=None) is None


def simulated(rate_hz: float, service_ms: float = 2.0) -> LoadPoint:
    """Return the point of a queue with one server and a fixed service time."""
    arrivals = poisson_arrivals(rate_hz, 20, seed=5)
    done = np.empty_like(arrivals)
    free = 0
    for i, due in enumerate(arrivals.tolist()):
        free = max(free, due) + round(service_ms * MS)
        done[i] = free
    run = run_of([0.0] * len(arrivals))
    records = Records(
        scheduled_ns=arrivals,
        sent_ns=arrivals,
        received_ns=done,
        ok=np.ones(len(arrivals), np.bool_),
    )
    return point_of(
        OpenLoopRun(**{**vars(run), "records": records}),
        asked_hz=rate_hz,
        duration_s=20,
        slo_ns=None,
    )


def test_a_sweep_goes_up_to_saturation_and_closes_in_on_the_knee() -> None:
    points: list[LoadPoint] = []
    while rate := next_rate(points, capacity_hz=500, unloaded_ns=2 * MS, slo_ns=None):
        points.append(simulated(rate))
        assert len(points) < 15
    rates = [p.asked_hz for p in points]
    assert rates[0] == LOWEST_SHARE * 500
    upwards = [r for r in rates if rates.index(r) <= rates.index(max(rates))]
    assert np.diff(np.log(upwards)) == pytest.approx(np.log(STEP))
    assert [p.saturated for p in sorted(points, key=lambda p: p.asked_hz)][-2:] == [False, True]
    knee = knee_of(points, unloaded_ns=2 * MS, slo_ns=None)
    assert knee is not None
    assert knee.rate_hz is not None
    assert knee.next_hz is not None
    # As the docstring has it: at 78% of the capacity.
    assert knee.rate_hz <= 0.78 * 500 * 1.05
    assert knee.next_hz >= 0.78 * 500 * 0.95
    assert knee.next_hz / knee.rate_hz < 1.1


def test_a_sweep_that_never_saturates_ends_all_the_same() -> None:
    points: list[LoadPoint] = []
    while rate := next_rate(points, capacity_hz=100, unloaded_ns=2 * MS, slo_ns=None):
        points.append(point(rate, 2))
        assert len(points) < 15
    assert max(p.asked_hz for p in points) >= 200
