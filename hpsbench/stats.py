"""Arrays to numbers, nothing else.

A percentile is Hyndman and Fan's definition 7 (NumPy's default): the value at rank
`q / 100 * (n - 1)` of the sorted latencies, linear between neighbours. The median of an even
number of latencies is thus the mean of the middle two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


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


def _one_or_more(values: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"need one dimension with at least one value, not shape {array.shape}")
    return array
