"""One duet as text: a line per launch as it is measured, a line per session, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hpsbench import stats
from hpsbench.duets.benchmarks import DuetBenchmark
from hpsbench.duets.decision import DuetPolicy
from hpsbench.duets.launches import DuetSession, pooled
from hpsbench.duets.session import LaunchDone, SessionDone
from hpsbench.ratios import Statistic
from hpsbench.verdict import Verdict

#: The columns of `figures`.
FIGURES = "  baseline p10, ms  candidate p10, ms     p10   pairs     p50     p99"
HEADER = f"session  launch{FIGURES}"
CONFIRMING = "a change may show: a second session, of fresh servers, has to show it as well"


class OneDuet:
    """The lines of a comparison of one benchmark, every launch on its own."""

    def __init__(self, benchmark: DuetBenchmark) -> None:
        self._benchmark = benchmark
        self._sessions: list[DuetSession] = []
        self._headed = False

    def introduction(self, policy: DuetPolicy, *, baseline: str, candidate: str) -> list[str]:
        """Return what is compared, and how."""
        return [
            f"model      {self._benchmark.model}",
            f"baseline   {baseline}",
            f"candidate  {candidate}",
            how(policy),
        ]

    def answers(self, benchmark: DuetBenchmark, text: str, *, same: bool) -> list[str]:
        """Return what was found of both sides' answers."""
        return [text]

    def launch(self, done: LaunchDone) -> list[str]:
        """Return the line of one launch."""
        one = DuetSession(launches=(done.measured[self._benchmark],))
        header = [] if self._headed else [HEADER]
        self._headed = True
        return [*header, _line(done.session, done.launch, one)]

    def session(self, done: SessionDone) -> list[str]:
        """Return the line of a session, and of both together."""
        self._sessions.append(done.measured[self._benchmark])
        if self._sessions[-1].invalid is not None:
            return []
        lines = [_line(done.session, "all", self._sessions[-1])]
        if len(self._sessions) > 1:
            lines.append(_line("both", "all", pooled(self._sessions)))
        return [*lines, CONFIRMING] if done.confirm else lines

    def verdicts(
        self, verdicts: Sequence[Verdict], measure_s: Mapping[DuetBenchmark, float]
    ) -> list[str]:
        """Return the verdict, and what to do."""
        (verdict,) = verdicts
        lines = [f"{verdict.outcome.value} {verdict.text}"]
        return [*lines, f"hint: {verdict.hint}"] if verdict.hint else lines


def how(policy: DuetPolicy, of_each: str = "") -> str:
    """Return a policy in a line."""
    plural = "" if policy.launches == 1 else "es"
    return (
        f"{policy.launches} launch{plural} of {policy.pairs} pairs of requests{of_each}, after "
        f"{policy.warm_up} to warm up; limits: "
        f"{policy.limit:.1%}, of p50 {policy.limit_p50:.1%}"
    )


def figures(measured: DuetSession) -> str:
    """Return the cells below `FIGURES`; changes are the candidate's."""
    baseline, candidate = (
        stats.percentile_ns(latencies_ns, 10) / 1e6
        for latencies_ns in (measured.baseline_ns, measured.candidate_ns)
    )
    changes = (f"{math.expm1(measured.shift(statistic)):+.1%}" for statistic in Statistic)
    return f"  {baseline:>16.3f}  {candidate:>17.3f}{''.join(f'{c:>8}' for c in changes)}"


def _line(session: int | str, launch: int | str, measured: DuetSession) -> str:
    return f"{session:>7}  {launch:>6}{figures(measured)}"
