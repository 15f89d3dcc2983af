"""Who is asked when, and how often: pure functions of seeds, costs, rates and budgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hpsbench.load.records import Nanoseconds

#: The part of a spike schedule, in its middle, that has the higher rate.
SPIKE_SHARE = 0.1


def random_orders(participants: int, repetitions: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return int64[repetitions, participants]; each row is a random order of 0..participants-1.

    Rows are independent: whatever one participant leaves behind in caches meets each of the
    others equally often. Raises ValueError for a negative count.
    """
    if participants < 0 or repetitions < 0:
        raise ValueError(f"negative count: {participants} participants, {repetitions} repetitions")
    rows = np.tile(np.arange(participants, dtype=np.int64), (repetitions, 1))
    return np.random.default_rng(seed).permuted(rows, axis=1)


def repetitions_for(
    costs_ns: Sequence[int], *, budget_ns: int, min_requests: int, max_requests: int
) -> int:
    """Return how often each participant is asked, so that all of them together fill the budget.

    `costs_ns` is what one request costs each participant, `budget_ns` the time for all of them.
    `min_requests` holds even where the budget does not allow it; `max_requests` yields to it.
    """
    wanted = budget_ns // max(1, sum(costs_ns))
    return max(min_requests, min(wanted, max_requests))


def split_rounds(repetitions: int, rounds: int) -> list[int]:
    """Return the repetitions of each round: `rounds` numbers that differ by one at most.

    No round is empty: with fewer repetitions than rounds there are fewer rounds.
    """
    rounds = min(rounds, repetitions)
    return [repetitions // rounds + (i < repetitions % rounds) for i in range(rounds)]


def turns(repetitions: int, in_a_row: int) -> list[int]:
    """Return how many requests in a row each turn of a round has: `in_a_row`, the last ones fewer.

    As few turns as there can be, whose numbers differ by one at most.
    """
    count = -(-repetitions // in_a_row)
    return [repetitions // count + (i < repetitions % count) for i in range(count)]


def constant_arrivals(rate_hz: float, duration_s: float) -> Nanoseconds:
    """Return int64[n] nanoseconds from the start, one every 1 / `rate_hz`, below `duration_s`.

    The first is at 0. Raises ValueError unless both are positive.
    """
    _require_positive(rate_hz=rate_hz, duration_s=duration_s)
    count = int(np.ceil(rate_hz * duration_s - 1e-9))
    return _nanoseconds(np.arange(count) / rate_hz, duration_s)


def poisson_arrivals(rate_hz: float, duration_s: float, *, seed: int) -> Nanoseconds:
    """Return int64[n] nanoseconds from the start, increasing, below `duration_s`.

    Users who know nothing of each other arrive so: the intervals are independent and exponential.
    Raises ValueError unless rate and duration are positive. Source: MLPerf LoadGen, Server
    scenario.
    """
    _require_positive(rate_hz=rate_hz, duration_s=duration_s)
    rng = np.random.default_rng(seed)
    mean = rate_hz * duration_s
    # Given their number, the arrivals of a Poisson process are uniform.
    return _nanoseconds(np.sort(rng.random(rng.poisson(mean))) * duration_s, duration_s)


def spike_arrivals(rate_hz: float, duration_s: float, *, factor: float, seed: int) -> Nanoseconds:
    """Return Poisson arrivals whose rate is `factor` times as high in the middle tenth.

    `rate_hz` is the mean over all of `duration_s`. Raises ValueError unless all are positive.
    """
    _require_positive(rate_hz=rate_hz, duration_s=duration_s, factor=factor)
    rng = np.random.default_rng(seed)
    share = SPIKE_SHARE * factor / (1 - SPIKE_SHARE + SPIKE_SHARE * factor)
    count = rng.poisson(rate_hz * duration_s)
    inside = rng.random(count) < share
    position = rng.random(count)
    begin, end = (1 - SPIKE_SHARE) / 2, (1 + SPIKE_SHARE) / 2
    spike = begin + SPIKE_SHARE * position
    outside = (1 - SPIKE_SHARE) * position
    outside = np.where(outside < begin, outside, outside + end - begin)
    return _nanoseconds(np.sort(np.where(inside, spike, outside)) * duration_s, duration_s)


def recorded_arrivals(
    intervals_ns: npt.ArrayLike, duration_s: float, *, rate_hz: float | None = None
) -> Nanoseconds:
    """Return arrivals with these intervals, which start over after the last, below `duration_s`.

    The first is one interval after the start. `rate_hz` stretches the intervals to that mean rate.
    Raises ValueError for a negative interval, or where all are 0.
    """
    _require_positive(duration_s=duration_s)
    intervals = np.asarray(intervals_ns, np.float64)
    if not len(intervals) or intervals.min() < 0 or not intervals.sum():
        raise ValueError("recorded intervals must not be negative, and not all of them 0")
    if rate_hz is not None:
        _require_positive(rate_hz=rate_hz)
        intervals = intervals * (1e9 / rate_hz / intervals.mean())
    repetitions = int(np.ceil(duration_s * 1e9 / intervals.sum())) + 1
    return _nanoseconds(np.cumsum(np.tile(intervals, repetitions)) / 1e9, duration_s)


def _nanoseconds(seconds: npt.NDArray[np.float64], duration_s: float) -> Nanoseconds:
    arrivals: Nanoseconds = np.rint(seconds[seconds < duration_s] * 1e9).astype(np.int64)
    return arrivals


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, and must be positive")
