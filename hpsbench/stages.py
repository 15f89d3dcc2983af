"""Where requests spend their time, by stage: percentiles, and parts that add up. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from hpsbench import stats
from hpsbench.load.records import TracedRequests
from hpsbench.servers.traces import STAGES

_PERCENTILES = (10, 50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """Nanoseconds that requests spent in one stage, or in all of them together.

    `typical_ns` is the mean over the half of the requests whose whole latency lies in the middle
    (between its quartiles). Unlike percentiles, those of all stages add up to the whole.
    """

    typical_ns: int
    p10_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int


@dataclass(frozen=True, kw_only=True)
class StageProfile:
    """What `requests` traced requests were made of; `stages` by the names in `STAGES`.

    `whole` is the client's latency, and `reference_ns` the typical one of the reference that was
    asked in turn with it, which tells how fast the machine was meanwhile.
    """

    requests: int
    reference_ns: int
    whole: StageSummary
    stages: Mapping[str, StageSummary]


def profile(own: TracedRequests, reference: TracedRequests) -> StageProfile | None:
    """Return the profile of a traced run, None where it was not traced or nothing was answered."""
    if own.stages_ns is None or not len(reference.latencies_ns):
        return None
    middle = _middle_half(own.latencies_ns)
    middle_of_reference = _middle_half(reference.latencies_ns)
    return StageProfile(
        requests=len(own.latencies_ns),
        reference_ns=round(float(reference.latencies_ns[middle_of_reference].mean())),
        whole=_summary(own.latencies_ns, middle),
        stages={
            stage: _summary(own.stages_ns[:, column], middle) for column, stage in enumerate(STAGES)
        },
    )


def mean_profile(profiles: Sequence[StageProfile]) -> StageProfile | None:
    """Return the mean profile of several launches, each counting the same; None of none."""
    if not profiles:
        return None
    return StageProfile(
        requests=sum(p.requests for p in profiles),
        reference_ns=round(fmean(p.reference_ns for p in profiles)),
        whole=_mean([p.whole for p in profiles]),
        stages={stage: _mean([p.stages[stage] for p in profiles]) for stage in STAGES},
    )


def _middle_half(latencies_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    low, high = stats.percentiles_ns(latencies_ns, (25, 75))
    return (latencies_ns >= low) & (latencies_ns <= high)


def _summary(times_ns: npt.NDArray[np.int64], middle: npt.NDArray[np.bool_]) -> StageSummary:
    p10, p50, p90, p99 = stats.percentiles_ns(times_ns, _PERCENTILES)
    # Two requests have nobody between their quartiles.
    chosen = times_ns[middle] if middle.any() else times_ns
    return StageSummary(
        typical_ns=round(float(chosen.mean())),
        p10_ns=round(p10),
        p50_ns=round(p50),
        p90_ns=round(p90),
        p99_ns=round(p99),
    )


def _mean(summaries: Sequence[StageSummary]) -> StageSummary:
    names = StageSummary.__dataclass_fields__
    return StageSummary(**{n: round(fmean(getattr(s, n) for s in summaries)) for n in names})
