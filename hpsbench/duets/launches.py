"""What a duet measured, and how far apart its two sides are: latencies in, log ratios out. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpsbench.ratios import STEADY, Statistic, log_ratio
from hpsbench.stages import StageProfile


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
    return log_ratio(candidate_ns, baseline_ns, statistic)
