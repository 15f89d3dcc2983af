"""A duet as text: a line per launch as it is measured, a line per session, and the verdict."""

from __future__ import annotations

import math

from hpsbench import stats
from hpsbench.duets.decision import DuetPolicy, DuetSession
from hpsbench.verdict import Verdict

_PERCENTILES = (10, 50, 99)
HEADER = "session  launch  baseline p10, ms  candidate p10, ms      p10      p50      p99"
CONFIRMING = "a change shows: a second session, of fresh servers, has to confirm it by itself"


def introduction(policy: DuetPolicy, *, model: str, baseline: str, candidate: str) -> list[str]:
    """Return what is compared, and how."""
    plural = "" if policy.launches == 1 else "es"
    return [
        f"model      {model}",
        f"baseline   {baseline}",
        f"candidate  {candidate}",
        f"{policy.launches} launch{plural} of {policy.pairs} pairs of requests, after "
        f"{policy.warm_up} to warm up; limits: p10 {policy.limit_p10:.1%}, "
        f"p50 {policy.limit_p50:.1%}",
    ]


def launch_line(session: int | str, launch: int | str, measured: DuetSession) -> str:
    """Return the line of one launch, or of several together; changes are the candidate's."""
    baseline, candidate = (
        stats.percentile_ns(latencies_ns, 10) / 1e6
        for latencies_ns in (measured.baseline_ns, measured.candidate_ns)
    )
    changes = (f"{math.expm1(measured.shift(q)):+.1%}" for q in _PERCENTILES)
    return (
        f"{session:>7}  {launch:>6}  {baseline:>16.3f}  {candidate:>17.3f}"
        f"{''.join(f'{change:>9}' for change in changes)}"
    )


def verdict_lines(verdict: Verdict) -> list[str]:
    """Return the verdict, and what to do."""
    lines = [f"{verdict.outcome.value} {verdict.text}"]
    return [*lines, f"hint: {verdict.hint}"] if verdict.hint else lines
