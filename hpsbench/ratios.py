"""How two servers' latencies become one ratio: latencies in, a log ratio out. Pure.

Two statistics can tell small changes, and which one does depends on the machine. The fastest tenth
of all requests is steady where disturbances come and go, for it has those that met none. Where the
processor itself changes its speed from request to request, as beside other machines on the same
cores, the fastest tenth is luck; requests of a pair, asked one behind the other, met the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpsbench import stats

#: The share of pairs left out at either end, where one of the two was disturbed.
TRIMMED = 0.2


class Statistic(str, Enum):
    """How two sides' latencies become one ratio.

    A percentile's is that of both sides' percentiles. Of pairs it is the mean over the middle three
    fifths of their log ratios.
    """

    P10 = "p10"
    PAIRS = "pairs"
    P50 = "p50"
    P99 = "p99"


#: Those that may tell a small change, the first where they are equally steady.
STEADY = (Statistic.P10, Statistic.PAIRS)
_PERCENTILES = {Statistic.P10: 10, Statistic.P50: 50, Statistic.P99: 99}


class LaunchLike(Protocol):
    """A launch whose ratios are known, that of pairs None where requests could not be paired."""

    @property
    def ratio_p10(self) -> float: ...
    @property
    def ratio_pairs(self) -> float | None: ...
    @property
    def ratio_p50(self) -> float: ...


def log_ratio(own_ns: npt.ArrayLike, other_ns: npt.ArrayLike, statistic: Statistic) -> float:
    """Return the log of int64[n] latencies over others.

    Of pairs they must be as many, the requests of a pair at the same index. Raises ValueError
    where one side has none, or they cannot be paired.
    """
    own, other = np.asarray(own_ns), np.asarray(other_ns)
    if statistic is Statistic.PAIRS:
        if len(own) != len(other) or not len(own):
            raise ValueError(f"{len(own)} and {len(other)} latencies are no pairs")
        ratios = np.sort(np.log(own) - np.log(other))
        trimmed = int(TRIMMED * len(ratios))
        return float(ratios[trimmed : len(ratios) - trimmed].mean())
    q = [_PERCENTILES[statistic]]
    (of_own,), (of_other,) = (stats.percentiles_ns(x, q) for x in (own, other))
    return math.log(of_own / of_other)


def ratios_of(launches: Iterable[LaunchLike], statistic: Statistic) -> list[float] | None:
    """Return the ratio of each launch; None where one of them does not have it."""
    found = [_ratio(launch, statistic) for launch in launches]
    known = [ratio for ratio in found if ratio is not None]
    return known if len(known) == len(found) else None


def ratios_alike(
    sessions: Iterable[Sequence[LaunchLike]], statistic: Statistic
) -> tuple[Statistic, list[list[float]]]:
    """Return the ratios of every session's launches, of p10 unless all have the `statistic`."""
    sessions = list(sessions)
    found = [ratios_of(launches, statistic) for launches in sessions]
    known = [ratios for ratios in found if ratios is not None]
    if len(known) == len(found):
        return statistic, known
    return Statistic.P10, [[launch.ratio_p10 for launch in launches] for launches in sessions]


def _ratio(launch: LaunchLike, statistic: Statistic) -> float | None:
    if statistic is Statistic.P10:
        return launch.ratio_p10
    return launch.ratio_pairs if statistic is Statistic.PAIRS else launch.ratio_p50
