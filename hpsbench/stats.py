"""Arrays to numbers, nothing else.

A percentile is Hyndman and Fan's definition 7 (NumPy's default): the value at rank
`q / 100 * (n - 1)` of the sorted latencies, linear between neighbours. The median of an even
number of latencies is thus the mean of the middle two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

#: Batches, and the latencies in each at least, that tell how much neighbours have in common.
MAX_BATCHES, MIN_BATCH = 40, 50


@dataclass(frozen=True, kw_only=True)
class LatencySummary:
    """What `n` latencies say, in whole nanoseconds; `stdev_ns` divides by n - 1."""

    n: int
    min_ns: int
    p10_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int
    mean_ns: int
    stdev_ns: int


def summarize(latencies_ns: npt.ArrayLike) -> LatencySummary:
    """Return the summary of int64[n] latencies; raises ValueError where there is none."""
    values = _one_or_more(latencies_ns)
    p10, p50, p90, p99 = np.percentile(values, (10, 50, 90, 99))
    return LatencySummary(
        n=len(values),
        min_ns=int(values.min()),
        p10_ns=round(p10),
        p50_ns=round(p50),
        p90_ns=round(p90),
        p99_ns=round(p99),
        max_ns=int(values.max()),
        mean_ns=round(values.mean()),
        stdev_ns=round(values.std(ddof=1)) if len(values) > 1 else 0,
    )


def percentile_ns(latencies_ns: npt.ArrayLike, q: float) -> int:
    """Return the `q`-th percentile, 0 <= q <= 100; raises ValueError where there is no latency."""
    return round(float(np.percentile(_one_or_more(latencies_ns), q)))


def percentiles_ns(latencies_ns: npt.ArrayLike, q: Sequence[float]) -> tuple[float, ...]:
    """Return the percentiles `q` in their order; raises ValueError where there is no latency."""
    return tuple(np.percentile(_one_or_more(latencies_ns), q).tolist())


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """The `q`-th percentile of open-loop latencies, nanoseconds, with its confidence interval.

    `value_ns` is None where so many requests failed that the percentile is among them. `low_ns` and
    `high_ns` are None where too few requests bound it on that side; `min_requests` of them would.
    """

    q: float
    value_ns: int | None
    low_ns: int | None
    high_ns: int | None
    min_requests: int


def min_requests(q: float, confidence: float) -> int:
    """Return how many independent latencies it takes to bound the `q`-th percentile on both sides.

    With fewer, even their extremes are exceeded too often. Raises ValueError unless 0 < q < 100.
    """
    if not 0 < q < 100:
        raise ValueError(f"no number of requests bounds the {q}-th percentile")
    rarer = min(q, 100 - q) / 100
    return math.ceil(math.log((1 - confidence) / 2) / math.log1p(-rarer))


def open_loop_percentile(
    latencies_ns: npt.ArrayLike, q: float, *, failed: int = 0, confidence: float = 0.95
) -> Percentile:
    """Return a percentile of int64[n] latencies in the order the requests were due, and its bounds.

    The bounds are order statistics, so they hold for any distribution. Neighbours in a queue are
    slow together: the fewer independent groups of latencies there are, the wider the bounds
    (`_independent`). The `failed` requests count as slower than every other. Raises ValueError
    where there is no request at all.
    """
    answered = np.asarray(latencies_ns, np.int64)
    requests = len(answered) + failed
    if not requests:
        raise ValueError("no request was made")
    ordered = np.sort(answered)

    def at(rank: float) -> int | None:
        below, above = math.floor(rank), math.ceil(rank)
        if below < 0 or above >= len(ordered):
            return None
        part = rank - below
        return round(float(ordered[below] * (1 - part) + ordered[above] * part))

    value = at(q / 100 * (requests - 1))
    share = _independent(answered, value) if value is not None else 1.0
    low, high = _bounding_ranks(requests * share, q / 100, confidence)
    return Percentile(
        q=q,
        value_ns=value,
        low_ns=None if low is None else at(math.floor(low / share)),
        high_ns=None if high is None else at(math.ceil(high / share)),
        min_requests=math.ceil(min_requests(q, confidence) / share),
    )


def _bounding_ranks(n: float, p: float, confidence: float) -> tuple[int | None, int | None]:
    """Return ranks, from 0, of the order statistics around a quantile of `n` latencies."""
    tail, count = (1 - confidence) / 2, max(1, math.floor(n))
    ranks = np.arange(count)
    # As many as rank + 1 latencies lie below the quantile with this probability, or fewer.
    at_most = bdtr(ranks, count, p)
    low = np.flatnonzero(at_most <= tail)
    high = np.flatnonzero(at_most >= 1 - tail)
    return (
        int(low[-1]) if len(low) else None,
        int(high[0]) + 1 if len(high) and high[0] + 1 < count else None,
    )


def _independent(latencies: npt.NDArray[np.int64], quantile: int) -> float:
    """Return which share of the latencies counts as independent, as to what exceeds a quantile.

    That of the variance which independent latencies would have, in how many of each batch exceed
    it.
    """
    batches = min(MAX_BATCHES, len(latencies) // MIN_BATCH)
    if batches < 2:
        return 1.0
    length = len(latencies) // batches
    exceeds = (latencies[: batches * length] > quantile).reshape(batches, length)
    p = exceeds.mean()
    expected = length * p * (1 - p)
    seen = exceeds.sum(axis=1).var(ddof=1)
    return float(min(1.0, expected / seen)) if seen > 0 else 1.0


def _one_or_more(values: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"need one dimension with at least one value, not shape {array.shape}")
    return array
