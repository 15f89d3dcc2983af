"""What a duet measured, and how far apart its two sides are: latencies in, log ratios out. Pure.

Two statistics can tell small changes, and which one does depends on the machine. The fastest tenth
of all requests is steady where disturbances come and go, for it has those that met none. Where the
processor itself changes its speed from request to request, as beside other machines on the same
cores, the fastest tenth is luck; requests of a pair, asked one behind the other, met the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np

from hpsbench import stats
from hpsbench.stages import StageProfile

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


@dataclass(frozen=True, kw_only=True)
class DuetLaunch:
    """The nanoseconds of the answered requests of one fresh pair of servers, pair by pair.

    Raises ValueError for none, or unless both sides have as many. The stages are of a traced pass
    afterwards, None without one.
    """

    baseline_ns: tuple[int, ...]
    candidate_ns: tuple[int, ...]
    baseline_stages: StageProfile | None = None
    candidate_stages: StageProfile | None = None

    def __post_init__(self) -> None:
        if not self.baseline_ns or len(self.baseline_ns) != len(self.candidate_ns):
            raise ValueError("a launch needs an answered request of each side, and as many of both")

    def ratio(self, statistic: Statistic) -> float:
        """Return the candidate over the baseline."""
        return math.exp(self.shift(statistic))

    def shift(self, statistic: Statistic) -> float:
        """Return the log of that ratio."""
        return _shift([self], statistic)


@dataclass(frozen=True, kw_only=True)
class DuetSession:
    """The launches of one session; `invalid` says why they must not count."""

    launches: tuple[DuetLaunch, ...]
    invalid: str | None = None

    @cached_property
    def baseline_ns(self) -> tuple[int, ...]:
        """The baseline's latencies of all launches."""
        return tuple(itertools.chain.from_iterable(ln.baseline_ns for ln in self.launches))

    @cached_property
    def candidate_ns(self) -> tuple[int, ...]:
        """The candidate's latencies of all launches."""
        return tuple(itertools.chain.from_iterable(ln.candidate_ns for ln in self.launches))

    def shift(self, statistic: Statistic) -> float:
        """Return the log ratio of all launches together."""
        return _shift(self.launches, statistic)

    @cached_property
    def steadiest(self) -> Statistic:
        """The one of `STEADY` that depends least on which servers happened to be launched."""
        if len(self.launches) < 2:
            return STEADY[0]
        return min(STEADY, key=self.error)

    def error(self, statistic: Statistic) -> float:
        """Return the standard error of `shift`, of two launches or more.

        By the jackknife: each launch is left out in turn. Latencies of one launch have its servers
        in common, so that their own spread would tell too little.
        """
        count = len(self.launches)
        without = [
            _shift(self.launches[:left_out] + self.launches[left_out + 1 :], statistic)
            for left_out in range(count)
        ]
        return math.sqrt((count - 1) * float(np.var(without)))


def pooled(sessions: Sequence[DuetSession]) -> DuetSession:
    """Return one session of all launches; `invalid` if one of them is."""
    return DuetSession(
        launches=tuple(launch for session in sessions for launch in session.launches),
        invalid=next((s.invalid for s in sessions if s.invalid is not None), None),
    )


def _shift(launches: Sequence[DuetLaunch], statistic: Statistic) -> float:
    baseline_ns = np.concatenate([launch.baseline_ns for launch in launches])
    candidate_ns = np.concatenate([launch.candidate_ns for launch in launches])
    if statistic is Statistic.PAIRS:
        ratios = np.sort(np.log(candidate_ns) - np.log(baseline_ns))
        trimmed = int(TRIMMED * len(ratios))
        return float(ratios[trimmed : len(ratios) - trimmed].mean())
    q = [_PERCENTILES[statistic]]
    (candidate,), (baseline,) = (stats.percentiles_ns(x, q) for x in (candidate_ns, baseline_ns))
    return math.log(candidate / baseline)
