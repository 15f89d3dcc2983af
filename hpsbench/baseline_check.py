"""What a stored baseline can tell: each of its runs judged by the others, as it was and slower.

Nothing is measured for it. Runs that are all of one occasion say nothing of how far the machine is
apart at other times, which the limit allows for (`session_change`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hpsbench.baselines import Baseline, BaselineLaunch, BaselineRun
from hpsbench.config import GateConfig
from hpsbench.verdict import Outcome, enough_launches, judge_launches

#: By how much slower each run is made; 0 is the run as it was.
SHARES = (0.0, 0.05, 0.10, 0.20)


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one baseline's runs say of each other.

    `judged` counts those that could be judged: with launches enough, of them and of the others.
    `regressed` are how many of them are, by the share that they were made slower; of 0 these are
    false alarms. `limit` is the median of what a change had to exceed, None where none was judged.
    """

    benchmark: str
    runs: int
    occasions: int
    judged: int
    limit: float | None
    regressed: Mapping[float, int]


def check(baseline: Baseline, policy: GateConfig) -> Check:
    """Return what `policy` makes of each run, by the baseline without it."""
    enough = [
        (run.launches, others)
        for run in baseline.runs
        if (others := _without(baseline, run)) is not None
        and enough_launches(run.launches, others, policy)
    ]
    as_it_was = [judge_launches(launches, others, policy) for launches, others in enough]
    return Check(
        benchmark=baseline.benchmark,
        runs=len(baseline.runs),
        occasions=len(baseline.occasions),
        judged=len(enough),
        limit=median(math.expm1(j.steadiest.limit) for j in as_it_was) if as_it_was else None,
        regressed={
            share: sum(
                judge_launches(_slower(launches, share), others, policy).outcome
                is Outcome.REGRESSED
                for launches, others in enough
            )
            for share in SHARES
        },
    )


def _without(baseline: Baseline, run: BaselineRun) -> Baseline | None:
    others = tuple(other for other in baseline.runs if other is not run)
    return dataclasses.replace(baseline, runs=others) if others else None


def _slower(launches: Sequence[BaselineLaunch], share: float) -> list[BaselineLaunch]:
    by = 1 + share
    return [
        dataclasses.replace(
            launch,
            ratio_p10=launch.ratio_p10 * by,
            ratio_p50=launch.ratio_p50 * by,
            ratio_pairs=None if launch.ratio_pairs is None else launch.ratio_pairs * by,
        )
        for launch in launches
    ]
