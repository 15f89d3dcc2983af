"""A comparison from its first launch to its exit code: measured, said, judged and stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hpsbench.duets import comparisons
from hpsbench.duets.answers import TOLERANCE, AnswerDifference, Answers, answer_difference
from hpsbench.duets.benchmarks import DuetBenchmark
from hpsbench.duets.comparisons import ComparedBenchmark, StoredComparison, compared_launches
from hpsbench.duets.decision import BASELINE, CANDIDATE, DuetPolicy, judge_duet
from hpsbench.duets.launches import DuetSession
from hpsbench.duets.session import LaunchDone, Pair, PairLaunch, SessionDone, run_duets
from hpsbench.errors import InputsDiffer, RequestError
from hpsbench.gate import exit_code
from hpsbench.load.interleaved import look_for_death
from hpsbench.machine import this_machine
from hpsbench.report import notation
from hpsbench.report.duet import OneDuet
from hpsbench.report.duets import ManyDuets
from hpsbench.telemetry import Watch, unwatched
from hpsbench.verdict import Outcome, Verdict


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, in words, and how."""

    benchmarks: tuple[DuetBenchmark, ...]
    baseline: str
    candidate: str
    policy: DuetPolicy
    fresh: bool = True
    answer_tolerance: float = TOLERANCE


class AnsweringPair(PairLaunch, Protocol):
    """A fresh pair of servers that also tells what it answers."""

    def answers(self, benchmark: DuetBenchmark) -> Mapping[str, Answers]:
        """Return what BASELINE and CANDIDATE answer to the same requests."""


class DuetLines(Protocol):
    """What is said while a comparison goes on, a list of lines for each step."""

    def introduction(self, policy: DuetPolicy, *, baseline: str, candidate: str) -> list[str]: ...

    def answers(self, benchmark: DuetBenchmark, text: str, *, same: bool) -> list[str]: ...

    def launch(self, done: LaunchDone) -> list[str]: ...

    def session(self, done: SessionDone) -> list[str]: ...

    def verdicts(
        self, verdicts: Sequence[Verdict], measure_s: Mapping[DuetBenchmark, float]
    ) -> list[str]: ...


def compare(
    comparison: Comparison,
    pair: Pair[AnsweringPair],
    say: Callable[[str], None],
    *,
    store: Callable[[StoredComparison], None] = lambda _: None,
    watch: Watch = unwatched,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Measure the duets on `pair`, say what is found line by line, and return the exit code.

    The first launch's servers are asked whether they answer the same before anything is measured;
    a benchmark of which they do not is INVALID and not measured. `store` is given the result, and
    `watch` tells what the machine did meanwhile. Raises what `run_duets` raises.
    """
    asked = comparison.benchmarks
    lines: DuetLines = OneDuet(asked[0]) if len(asked) == 1 else ManyDuets(asked)
    answers = _AnswerCheck(comparison.answer_tolerance, lines, say, sleep)
    took_s = dict.fromkeys(asked, 0.0)

    def on_launch(done: LaunchDone) -> None:
        for benchmark, seconds in done.measure_s.items():
            took_s[benchmark] += seconds
        _say_all(say, lines.launch(done))

    introduction = lines.introduction(
        comparison.policy, baseline=comparison.baseline, candidate=comparison.candidate
    )
    if not comparison.fresh:
        introduction.append(
            "a server that runs already is the same in every launch: what its own start decided "
            "counts as a change"
        )
    _say_all(say, [*introduction, ""])
    measured = run_duets(
        pair,
        asked,
        comparison.policy,
        examine=answers.problem,
        on_launch=on_launch,
        on_session=lambda done: _say_all(say, lines.session(done)),
        watch=watch,
        clock_ns=clock_ns,
        sleep=sleep,
    )
    verdicts = {
        b: answers.refusals.get(b) or judge_duet(sessions, comparison.policy, name=b.name)
        for b, sessions in measured.items()
    }
    _say_all(say, ["", *lines.verdicts(list(verdicts.values()), took_s)])
    store(_stored(comparison, measured, verdicts, answers.found, took_s))
    return exit_code(verdicts.values(), strict=True, other_failures=False)


class _AnswerCheck:
    """Compares both sides' answers, benchmark by benchmark, and keeps what was found."""

    def __init__(
        self,
        tolerance: float,
        lines: DuetLines,
        say: Callable[[str], None],
        sleep: Callable[[float], None],
    ) -> None:
        self._tolerance, self._lines, self._say, self._sleep = tolerance, lines, say, sleep
        self.found: dict[DuetBenchmark, str] = {}
        self.refusals: dict[DuetBenchmark, Verdict] = {}

    def problem(self, launched: AnsweringPair, benchmark: DuetBenchmark) -> str | None:
        """Return why a benchmark must not be measured, None where it may.

        Raises ServerDied where one was killed by what it was asked.
        """
        try:
            answers = launched.answers(benchmark)
        except RequestError as error:
            look_for_death(launched.check_alive, self._sleep)
            # The requests that are measured meet the same, and tell whose it is.
            text = f"answers cannot be compared: {error.problem}"
            _say_all(self._say, self._lines.answers(benchmark, text, same=False))
            return None
        except InputsDiffer as error:
            self.refusals[benchmark] = _refused(benchmark, error.problem, error.hint)
            return error.problem
        found = answer_difference(answers[BASELINE], answers[CANDIDATE], tolerance=self._tolerance)
        self.found[benchmark] = found.text
        if found.problem is None:
            same = found.relative == 0
            _say_all(self._say, self._lines.answers(benchmark, found.text, same=same))
            return None
        self.refusals[benchmark] = other_answers(found, name=benchmark.name)
        return found.text


def other_answers(difference: AnswerDifference, *, name: str) -> Verdict:
    """Return the verdict on a candidate that does not answer as the baseline does."""
    return Verdict(
        outcome=Outcome.INVALID,
        benchmark=name,
        text=f"{name}: {difference.text}; a candidate that answers otherwise is not measured",
        hint="mend the candidate, or allow for more with --answer-tolerance",
    )


def _refused(benchmark: DuetBenchmark, problem: str, hint: str) -> Verdict:
    return Verdict(
        outcome=Outcome.INVALID,
        benchmark=benchmark.name,
        text=f"{benchmark.name}: {problem}",
        hint=hint,
    )


def _stored(
    comparison: Comparison,
    measured: Mapping[DuetBenchmark, Sequence[DuetSession]],
    verdicts: Mapping[DuetBenchmark, Verdict],
    answers: Mapping[DuetBenchmark, str],
    took_s: Mapping[DuetBenchmark, float],
) -> StoredComparison:
    comparison_id, recorded_at = comparisons.new_id()
    by_name = {
        b.name: ComparedBenchmark(
            model=b.model,
            batch_size=b.batch_size,
            launches=compared_launches(sessions),
            verdict=verdicts[b],
            answers=answers.get(b),
            measure_s=round(took_s[b], 3),
        )
        for b, sessions in measured.items()
    }
    ordered = notation.by_outcome(verdicts.values())
    return StoredComparison(
        comparison_id=comparison_id,
        recorded_at=recorded_at,
        machine=this_machine().cls,
        baseline=comparison.baseline,
        candidate=comparison.candidate,
        policy=comparison.policy,
        benchmarks=tuple(by_name[v.benchmark] for group in ordered.values() for v in group),
    )


def _say_all(say: Callable[[str], None], lines: Sequence[str]) -> None:
    for line in lines:
        say(line)
