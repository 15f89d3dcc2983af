"""Many duets as text: a line per launch, a table per session, and the verdicts, worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpsbench.duets.benchmarks import DuetBenchmark
from hpsbench.duets.decision import DuetPolicy
from hpsbench.duets.session import LaunchDone, SessionDone
from hpsbench.ratios import Statistic
from hpsbench.report import notation
from hpsbench.report.duet import FIGURES, figures, how
from hpsbench.verdict import Verdict


class ManyDuets:
    """The lines of a comparison of several benchmarks, all launches of each together."""

    def __init__(self, benchmarks: Sequence[DuetBenchmark]) -> None:
        self._benchmarks = benchmarks
        self._launches = 0
        self._width = max(len("benchmark"), *(len(b.name) for b in benchmarks))

    def introduction(self, policy: DuetPolicy, *, baseline: str, candidate: str) -> list[str]:
        """Return what is compared, and how."""
        self._launches = policy.launches
        return [
            f"benchmarks {len(self._benchmarks)}: {_names(self._benchmarks)}",
            f"baseline   {baseline}",
            f"candidate  {candidate}",
            how(policy, of_each=" of each"),
        ]

    def answers(self, benchmark: DuetBenchmark, text: str, *, same: bool) -> list[str]:
        """Return what was found of both sides' answers, where they are not the same."""
        return [] if same else [f"{benchmark.name}: {text}"]

    def launch(self, done: LaunchDone) -> list[str]:
        """Return how far apart the sides were, over all benchmarks of one launch."""
        changes = [measured.ratio(Statistic.P10) - 1 for measured in done.measured.values()]
        return [
            f"session {done.session}, launch {done.launch} of {self._launches}: "
            f"{len(changes)} asked in {sum(done.measure_s.values()):.1f} s, "
            f"p10 {min(changes):+.1%} to {max(changes):+.1%}"
        ]

    def session(self, done: SessionDone) -> list[str]:
        """Return a table of a session, by benchmark, and which of them are to be confirmed."""
        valid = {b: s for b, s in done.measured.items() if s.invalid is None}
        rows = [f"{b.name:<{self._width}}{figures(session)}" for b, session in valid.items()]
        lines = ["", f"{'benchmark':<{self._width}}{FIGURES}", *rows] if rows else []
        if done.confirm:
            lines += [
                "",
                f"a change may show in {_names(done.confirm)}: a second session, of fresh servers, "
                "has to show it as well",
            ]
        return lines

    def verdicts(
        self, verdicts: Sequence[Verdict], measure_s: Mapping[DuetBenchmark, float]
    ) -> list[str]:
        """Return each verdict, what to do about each kind, how many of each, and what it took."""
        groups = notation.by_outcome(verdicts)
        lines = []
        for outcome, group in groups.items():
            lines += [f"{outcome.value} {verdict.text}" for verdict in group]
            hints = dict.fromkeys(verdict.hint for verdict in group if verdict.hint)
            lines += [f"hint: {hint}" for hint in hints]
        counts = ", ".join(f"{len(group)} {outcome.value}" for outcome, group in groups.items())
        took_s = measure_s.values()
        return [
            *lines,
            f"verdicts: {counts}",
            f"requests took {sum(took_s):.1f} s, of one decision {max(took_s):.1f} s at most",
        ]


def _names(benchmarks: Sequence[DuetBenchmark]) -> str:
    return ", ".join(benchmark.name for benchmark in benchmarks)
