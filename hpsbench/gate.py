"""The gate of one session: every measurement recorded and judged, and nothing passing silently."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from hpsbench.baselines import Baseline, Baselines
from hpsbench.config import Suite
from hpsbench.measurements import Measurement
from hpsbench.runs import LoadMeasurement, Result, Run
from hpsbench.verdict import Outcome, Verdict, judge, vanished
from hpsbench.workload import split_row, workload_of

EXIT_PASSED = 0
EXIT_REGRESSED = 1
EXIT_USAGE = 4
EXIT_NO_VERDICT = 10

#: The outcomes that fail the test that measured them, strict or not.
FAILING = (Outcome.REGRESSED, Outcome.INVALID)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the user asked for, so that what is missing can be told from what was left out.

    `prefixes` are the collected places as pytest nodes (`tests/benchmarks`). `whole` is False
    where the user narrowed them down (-k, --lf, ...) or the session ended early. `variants` and
    `batch_sizes` are None unless the user chose some. `failed` are the nodes of failed tests.
    """

    prefixes: Sequence[str]
    whole: bool
    variants: Collection[str] | None
    batch_sizes: Collection[int] | None
    failed: Collection[str]

    def wants(self, baseline: Baseline) -> bool:
        """Return whether the benchmark was to be measured, and no failed test says why not."""
        return (
            self.whole
            and any(_below(baseline.test, prefix) for prefix in self.prefixes)
            and (self.variants is None or split_row(baseline.variant)[0] in self.variants)
            and (self.batch_sizes is None or baseline.batch_size in self.batch_sizes)
            and baseline.test not in self.failed
        )


class SessionGate:
    """Judges one session's measurements against `baselines`, and keeps them for the run file."""

    def __init__(self, suite: Suite, baselines: Baselines, run: Run) -> None:
        self._suite = suite
        self._baselines = baselines
        self._run = run
        self._results: list[Result] = []
        self._loads: list[LoadMeasurement] = []

    @property
    def run(self) -> Run:
        """The run as it began, without results."""
        return self._run

    @property
    def stored(self) -> Mapping[str, Baseline]:
        """The baselines that it judges against, by benchmark."""
        return self._baselines.here

    def resumed(self, recorded_at: str) -> None:
        """Note that the run goes on with an interrupted session that began then."""
        self._run = dataclasses.replace(self._run, resumed=recorded_at)

    def judge(self, test: str, measurement: Measurement) -> Verdict:
        """Record what `test`, a pytest node, measured, and return the verdict on it."""
        benchmark = measurement.benchmark
        _, keys = split_row(measurement.variant)
        workload = workload_of(self._suite, keys) if keys else None
        verdict = judge(
            measurement,
            self._baselines.here.get(benchmark),
            self._suite.gate,
            workload=workload or self._run.workload,
            under_test={**self._run.under_test, **measurement.under_test},
            machine=self._baselines.machine,
            elsewhere=self._baselines.elsewhere.get(benchmark, ()),
        )
        self._results.append(
            Result(test=test, measurement=measurement, verdict=verdict, workload=workload)
        )
        return verdict

    def record_load(self, load: LoadMeasurement) -> None:
        """Keep what was measured under open-loop load for the run file."""
        self._loads.append(load)

    def finish(self, selection: Selection) -> Run:
        """Return the run, with a VANISHED for each baseline that should have been measured."""
        measured = {r.measurement.benchmark for r in self._results}
        workloads = [workload_of(self._suite, keys) for keys in ("", *self._suite.load.also_keys)]
        missing = (
            baseline
            for name, baseline in sorted(self._baselines.here.items())
            if name not in measured
            and baseline.preset == self._suite.preset
            and baseline.workload in workloads
            and selection.wants(baseline)
        )
        return dataclasses.replace(
            self._run,
            results=tuple(self._results),
            vanished=tuple(map(vanished, missing)),
            loads=tuple(self._loads),
        )


def exit_code(verdicts: Iterable[Verdict], *, strict: bool, other_failures: bool) -> int:
    """Return the session's exit status: the worst verdict decides, after any failed test."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if other_failures or Outcome.REGRESSED in outcomes:
        return EXIT_REGRESSED
    undecided = {outcome for outcome in outcomes if not outcome.decided}
    if Outcome.INVALID in undecided or (strict and undecided):
        return EXIT_NO_VERDICT
    return EXIT_PASSED


class BenchmarkFixture(Protocol):
    """The part of pytest-benchmark's fixture that a replay needs."""

    extra_info: dict[str, Any]
    group: str | None

    def pedantic(self, target: Any, *, rounds: int, iterations: int) -> Any: ...


class RecordedClock:
    """A timer that lets recorded time pass, for pytest-benchmark to measure what was measured."""

    def __init__(self) -> None:
        self._latencies_ns: Iterator[int] = iter(())
        self._passed_ns = 0

    def load(self, latencies_ns: Iterable[int]) -> None:
        """Set the latencies that the next calls of `play` take, in nanoseconds."""
        self._latencies_ns = iter(latencies_ns)

    def seconds(self) -> float:
        """Return the seconds that passed since the reading before."""
        passed_ns, self._passed_ns = self._passed_ns, 0
        return passed_ns / 1e9

    def play(self) -> None:
        """Let the next recorded latency pass. Raises LookupError when none is left."""
        latency_ns = next(self._latencies_ns, None)
        if latency_ns is None:
            raise LookupError("no recorded latency is left")
        self._passed_ns = latency_ns


def replay(
    benchmark: BenchmarkFixture, clock: RecordedClock, measurement: Measurement, verdict: Verdict
) -> None:
    """Hand a measurement to pytest-benchmark, whose `timer` must be `clock.seconds`."""
    latencies_ns = [ns for launch in measurement.launches for ns in launch.latencies_ns]
    if not latencies_ns:
        replay_nothing(benchmark, clock)
        return
    benchmark.group = benchmark.group or f"batch size {measurement.batch_size}"
    benchmark.extra_info.update(
        benchmark=measurement.benchmark,
        variant=measurement.variant,
        batch_size=measurement.batch_size,
        reference=measurement.reference,
        outcome=verdict.outcome.value,
        statistic=verdict.statistic,
        change=verdict.change,
        limit=verdict.limit,
        launches=[
            {
                "p10_ns": launch.p10_ns,
                "p50_ns": launch.p50_ns,
                "ratio_p10": launch.ratio_p10,
                "ratio_pairs": launch.ratio_pairs,
                "ratio_p50": launch.ratio_p50,
                "server": dataclasses.asdict(launch.server) if launch.server else None,
            }
            for launch in measurement.launches
        ],
    )
    clock.load(latencies_ns)
    benchmark.pedantic(clock.play, rounds=len(latencies_ns), iterations=1)


def replay_nothing(benchmark: BenchmarkFixture, clock: RecordedClock) -> None:
    """Let pytest-benchmark see a benchmark that failed, which it neither reports nor misses."""
    with suppress(LookupError):
        benchmark.pedantic(clock.play, rounds=1, iterations=1)


def _below(node: str, prefix: str) -> bool:
    if prefix in ("", "."):
        return True
    return node == prefix or node.startswith((f"{prefix}/", f"{prefix}::", f"{prefix}["))
