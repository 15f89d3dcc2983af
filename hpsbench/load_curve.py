"""Latency over load: what became of each rate, and the knee beyond which requests pile up. Pure.

The knee is the highest measured rate at which p99, and that of every lower rate, is within a limit:
the SLO where there is one, else `KNEE_FACTOR` times the unloaded latency. A server that answers one
request at a time, each in the same time, gets there at 78% of its capacity (M/D/1). The limit is in
the user's terms, and one more measured rate moves the knee by a step at most; methods that look
for the curve's bend (Kneedle) depend on how far the sweep went.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpsbench import stats
from hpsbench.load.open_loop import OpenLoopRun
from hpsbench.stats import Percentile

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
KNEE_PERCENTILE = 99.0
KNEE_FACTOR = 10.0
#: A server that answers less than this share of what is due is saturated.
KEPT_UP = 0.95
#: A sweep goes from this share of the capacity up, by this factor.
LOWEST_SHARE, STEP = 0.125, math.sqrt(2)
#: How often the gap between the last rate within the limit and the first beyond it is halved.
REFINEMENTS = 2


@dataclass(frozen=True, kw_only=True)
class LoadPoint:
    """One rate: requests due and answered per second, latency from when they were due, and counts.

    `asked_hz` is the rate that was asked for, `offered_hz` that of the requests that were due in
    `duration_s`. `achieved_hz` counts answers until the last one. Failed requests, of which some
    `timed_out`, and those `unsent` count as slower than every other. `within_slo` is None without
    an SLO. `invalid` says why the figures must not count as the server's.
    """

    asked_hz: float
    offered_hz: float
    achieved_hz: float
    duration_s: float
    requests: int
    failed: int
    timed_out: int
    unsent: int
    delayed_by_server: int
    delayed_by_client: int
    max_delay_ns: int
    percentiles: tuple[Percentile, ...]
    saturated: bool
    within_slo: int | None = None
    invalid: str | None = None

    def percentile(self, q: float) -> Percentile:
        """Return one of `PERCENTILES`."""
        return next(p for p in self.percentiles if p.q == q)

    @property
    def goodput_share(self) -> float | None:
        """The share of all requests due that were answered within the SLO."""
        return None if self.within_slo is None else self.within_slo / max(1, self.requests)

    @property
    def goodput_hz(self) -> float | None:
        """Requests answered within the SLO, per second."""
        return None if self.within_slo is None else self.within_slo / self.duration_s


@dataclass(frozen=True, kw_only=True)
class Knee:
    """The highest rate within `limit_ns` of p99; None where even the lowest was beyond it.

    `is_slo` tells whether the limit is the user's. `next_hz` is the lowest rate beyond it, None
    where every rate was within.
    """

    rate_hz: float | None
    next_hz: float | None
    limit_ns: int
    is_slo: bool


@dataclass(frozen=True, kw_only=True)
class LoadCurve:
    """Points by increasing rate; `capacity_hz` is what closed loops got at most, if asked.

    `unloaded_ns` is the median latency of one client alone.
    """

    arrivals: str
    unloaded_ns: int
    capacity_hz: float | None
    slo_ns: int | None
    points: tuple[LoadPoint, ...]
    knee: Knee | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why rates must not count; that some of a sweep are saturated is what it is for."""
        return tuple(
            f"at {p.asked_hz:.1f}/s: {p.invalid}"
            for p in self.points
            if p.invalid is not None and not (p.saturated and self.capacity_hz is not None)
        )


def point_of(
    run: OpenLoopRun, *, asked_hz: float, duration_s: float, slo_ns: int | None
) -> LoadPoint:
    """Return what a run says of its rate, whose requests were due within `duration_s`.

    Raises ValueError where none was due.
    """
    records, lost = run.records, run.records.failed + run.unsent
    requests = len(records) + run.unsent
    latencies_ns = records.latencies_ns
    answered = len(latencies_ns)
    last_ns = (
        int(records.received_ns[records.ok].max() - records.scheduled_ns[0]) if answered else 0
    )
    achieved_hz = answered / max(duration_s, last_ns / 1e9)
    offered_hz = requests / duration_s
    # Few requests come in bursts; by chance, the last of them may be a little late.
    saturated = run.saturated or achieved_hz < KEPT_UP * offered_hz
    return LoadPoint(
        asked_hz=asked_hz,
        offered_hz=offered_hz,
        achieved_hz=achieved_hz,
        duration_s=duration_s,
        requests=requests,
        failed=records.failed,
        timed_out=run.timed_out,
        unsent=run.unsent,
        delayed_by_server=run.delayed_by_server,
        delayed_by_client=run.delayed_by_client,
        max_delay_ns=run.max_delay_ns,
        percentiles=tuple(
            stats.open_loop_percentile(latencies_ns, q, failed=lost) for q in PERCENTILES
        ),
        saturated=saturated,
        within_slo=None if slo_ns is None else int(np.count_nonzero(latencies_ns <= slo_ns)),
        invalid=run.invalid,
    )


def knee_of(points: Sequence[LoadPoint], *, unloaded_ns: int, slo_ns: int | None) -> Knee | None:
    """Return the knee of points in any order; None of none."""
    if not points:
        return None
    limit_ns = round(KNEE_FACTOR * unloaded_ns) if slo_ns is None else slo_ns
    within: LoadPoint | None = None
    beyond: LoadPoint | None = None
    for point in sorted(points, key=lambda p: p.asked_hz):
        value_ns = point.percentile(KNEE_PERCENTILE).value_ns
        if point.saturated or value_ns is None or value_ns > limit_ns:
            beyond = point
            break
        within = point
    return Knee(
        rate_hz=None if within is None else within.asked_hz,
        next_hz=None if beyond is None else beyond.asked_hz,
        limit_ns=limit_ns,
        is_slo=slo_ns is not None,
    )


def next_rate(
    points: Sequence[LoadPoint], *, capacity_hz: float, unloaded_ns: int, slo_ns: int | None
) -> float | None:
    """Return the rate that a sweep measures after `points`, None where it is done.

    It goes up by `STEP` until a rate is saturated or the limit of the knee is passed, then halves
    the gap around the knee `REFINEMENTS` times.
    """
    knee = knee_of(points, unloaded_ns=unloaded_ns, slo_ns=slo_ns)
    if knee is None:
        return LOWEST_SHARE * capacity_hz
    highest = max(points, key=lambda p: p.asked_hz)
    if not highest.saturated and highest.asked_hz < 2 * capacity_hz:
        return highest.asked_hz * STEP
    if knee.rate_hz is None or knee.next_hz is None:
        return None
    gap = STEP ** (0.5**REFINEMENTS)
    if knee.next_hz / knee.rate_hz <= gap * (1 + 1e-6):
        return None
    return math.sqrt(knee.rate_hz * knee.next_hz)
