"""How far a session's launches are from those stored: ratios in, a change with its limit out. Pure.

A launch is one observation, and launches of one session share a shift; so do sessions one behind
the other, which count as one (`Baseline.occasions`). So with m launches in the candidate's session
and S stored sessions of k launches, the change of the mean log ratio has the variance

    tau^2 * (1 + 1/S)  +  sigma^2 * (1/m + mean(1/k)/S)

sigma is pooled over the launches within sessions. tau, the spread between sessions, is not visible
in one stored session: it starts from `SESSION_SPREAD`, which counts as `SESSION_SPREAD_DOF`
degrees of freedom, and is outvoted by what the stored sessions show. They are few, because
benchmarks differ: those of preset laptop were 0 to 5% apart from one part of a day to another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from scipy.special import stdtrit

from hpsbench.ratios import Statistic

#: Standard deviation of the log ratio between sessions before any was seen.
SESSION_SPREAD = {Statistic.P10: 0.015, Statistic.PAIRS: 0.015, Statistic.P50: 0.03}
SESSION_SPREAD_DOF = 5


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of the mean log ratio, and the half width of its interval; `noise` is a log too."""

    value: float
    margin: float
    noise: float

    @property
    def limit(self) -> float:
        """What the change must exceed to count."""
        return max(self.noise, self.margin)

    @property
    def doubtful(self) -> float:
        """What a change that does not count may reach without a doubt: noise, or half the limit."""
        return max(self.noise, self.margin / 2)

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.value - self.margin

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.value + self.margin


def compare(
    candidate: Sequence[float],
    baseline: Sequence[Sequence[float]],
    *,
    confidence: float,
    noise_threshold: float,
    session_spread: float,
) -> Change:
    """Return the change from `baseline` (ratios of launches, by session) to `candidate`'s ratios.

    Raises ValueError unless some session, or the candidate, has two launches.
    """
    sessions = [[math.log(r) for r in session] for session in baseline]
    launches = [math.log(r) for r in candidate]
    means = [fmean(s) for s in sessions]
    num_sessions = len(sessions)

    within = [s for s in (*sessions, launches) if len(s) > 1]
    launch_dof = sum(len(s) - 1 for s in within)
    if not launch_dof:
        raise ValueError("no session has two launches, so their spread is unknown")
    launch_var = sum(variance(s) * (len(s) - 1) for s in within) / launch_dof

    inverse_launches = fmean(1 / len(s) for s in sessions)
    session_dof = SESSION_SPREAD_DOF + num_sessions - 1
    session_var = session_spread**2 * SESSION_SPREAD_DOF
    if num_sessions > 1:
        seen = max(0.0, variance(means) - launch_var * inverse_launches)
        session_var += seen * (num_sessions - 1)
    session_var /= session_dof

    between = session_var * (1 + 1 / num_sessions)
    inside = launch_var * (1 / len(launches) + inverse_launches / num_sessions)
    # Satterthwaite: the degrees of freedom of a sum of two estimated variances.
    dof = (between + inside) ** 2 / (between**2 / session_dof + inside**2 / launch_dof)
    margin = float(stdtrit(dof, (1 + confidence) / 2)) * math.sqrt(between + inside)
    return Change(
        value=fmean(launches) - fmean(means), margin=margin, noise=math.log1p(noise_threshold)
    )
