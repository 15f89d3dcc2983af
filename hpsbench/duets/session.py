"""Measure duets: fresh pairs of servers, on each of which every benchmark is asked in turn.

All benchmarks share the launches, in an order of chance, and each is decided by itself. Those that
show a change are asked again on a second session's fresh pairs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from hpsbench.duets.benchmarks import DuetBenchmark
from hpsbench.duets.decision import BASELINE, CANDIDATE, DuetPolicy, needs_confirmation
from hpsbench.duets.launches import DuetLaunch, DuetSession
from hpsbench.errors import RequestError, ServerDied, ServerError
from hpsbench.load.interleaved import (
    Interleaved,
    Participant,
    ParticipantRun,
    look_for_death,
    no_garbage_collection,
)
from hpsbench.measurements import observe
from hpsbench.session import run_participants
from hpsbench.stages import profile
from hpsbench.telemetry import Watch, unwatched

#: Traced pairs of requests in each launch of a second session: 100 in all, for medians.
TRACED = 10

# A duet counts requests, so the time that the loop would fill beyond them is none.
_NO_TIME_S = 1e-9


class PairLaunch(Protocol):
    """A fresh pair of servers with every benchmark's model, as long as its context lasts."""

    def participants(self, benchmark: DuetBenchmark) -> Sequence[Participant]:
        """Return BASELINE and CANDIDATE, to be asked for this; the session closes them."""

    def check_alive(self) -> None:
        """Raise ServerDied unless both servers still run."""


P = TypeVar("P", bound=PairLaunch)

#: The fresh pair of servers of the launch with this number (from 1).
Pair = Callable[[int], AbstractContextManager[P]]


@dataclass(frozen=True, kw_only=True)
class LaunchDone:
    """A launch of a session, and what was measured of each benchmark on it.

    `measure_s` is the seconds that asking each took, without the start of the servers.
    """

    session: int
    launch: int
    measured: Mapping[DuetBenchmark, DuetLaunch]
    measure_s: Mapping[DuetBenchmark, float]


@dataclass(frozen=True, kw_only=True)
class SessionDone:
    """A session of each benchmark that was asked, and those that need another to confirm."""

    session: int
    measured: Mapping[DuetBenchmark, DuetSession]
    confirm: tuple[DuetBenchmark, ...]


def run_duets(
    pair: Pair[P],
    benchmarks: Sequence[DuetBenchmark],
    policy: DuetPolicy,
    *,
    seed: int = 0,
    examine: Callable[[P, DuetBenchmark], str | None] | None = None,
    on_launch: Callable[[LaunchDone], None] = lambda _: None,
    on_session: Callable[[SessionDone], None] = lambda _: None,
    watch: Watch = unwatched,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[DuetBenchmark, list[DuetSession]]:
    """Return each benchmark's session on `policy.launches` fresh pairs, and its confirming one.

    `examine` is asked about each on the first pair, before anything is measured; what it returns
    keeps a benchmark from being measured. That, a failed request, and a machine that `watch` finds
    unfit end one benchmark, whose session is then `invalid`, and the others go on. So does the one
    that was asked when a server died: the rest of that launch gets another pair. A server that dies
    before it is asked ends them all. Raises whatever else starting one raises.
    """
    found: dict[DuetBenchmark, list[DuetSession]] = {b: [] for b in benchmarks}
    asked: Sequence[DuetBenchmark] = benchmarks
    for number in (1, 2):
        session = _Session(
            pair=pair,
            policy=policy,
            number=number,
            # Sessions have seeds that are neighbours.
            seed=1000 * (seed + number),
            examine=examine if number == 1 else None,
            watch=watch,
            clock_ns=clock_ns,
            sleep=sleep,
        )
        measured = session.run(asked, on_launch)
        for benchmark, of_session in measured.items():
            found[benchmark].append(of_session)
        asked = tuple(
            b for b, s in measured.items() if number == 1 and needs_confirmation(s, policy)
        )
        on_session(SessionDone(session=number, measured=measured, confirm=tuple(asked)))
        if not asked:
            break
    return found


class _Session(Generic[P]):
    """One session while it is measured."""

    def __init__(
        self,
        *,
        pair: Pair[P],
        policy: DuetPolicy,
        number: int,
        seed: int,
        examine: Callable[[P, DuetBenchmark], str | None] | None,
        watch: Watch,
        clock_ns: Callable[[], int],
        sleep: Callable[[float], None],
    ) -> None:
        self._pair, self._policy, self._number, self._seed = pair, policy, number, seed
        self._examine, self._watch = examine, watch
        self._clock_ns, self._sleep = clock_ns, sleep
        self._launches: dict[DuetBenchmark, list[DuetLaunch]] = {}
        self._invalid: dict[DuetBenchmark, str] = {}
        self._unexamined: list[DuetBenchmark] = []

    def run(
        self, benchmarks: Sequence[DuetBenchmark], on_launch: Callable[[LaunchDone], None]
    ) -> dict[DuetBenchmark, DuetSession]:
        """Return the session of each benchmark."""
        self._launches = {b: [] for b in benchmarks}
        self._unexamined = list(benchmarks)
        for launch in range(1, self._policy.launches + 1):
            done = self._run_launch(launch, [b for b in benchmarks if b not in self._invalid])
            if done.measured:
                on_launch(done)
        return {
            b: DuetSession(launches=tuple(launches), invalid=self._invalid.get(b))
            for b, launches in self._launches.items()
        }

    def _run_launch(self, launch: int, benchmarks: Sequence[DuetBenchmark]) -> LaunchDone:
        chance = random.Random(self._seed + launch)
        waiting = chance.sample(benchmarks, len(benchmarks))
        took_s: dict[DuetBenchmark, float] = {}
        while waiting:
            number = (self._number - 1) * self._policy.launches + launch
            try:
                # Once for all of a launch: a collection takes as long as ten requests.
                with self._pair(number) as launched, no_garbage_collection():
                    self._examine_all(launched, waiting)
                    while waiting:
                        benchmark = waiting.pop(0)
                        with self._ending(benchmark, launch, launched):
                            took_s[benchmark] = self._ask(launched, benchmark, launch, chance)
            except _AnotherPair:
                continue
            except ServerDied as dead:
                # Nobody was asked yet, so no other pair would do better.
                for benchmark in waiting:
                    self._end(benchmark, f"launch {launch}: {dead.problem}")
                break
        measured = {b: self._launches[b][-1] for b in took_s if b not in self._invalid}
        return LaunchDone(
            session=self._number,
            launch=launch,
            measured=measured,
            measure_s={b: took_s[b] for b in measured},
        )

    def _examine_all(self, launched: P, waiting: list[DuetBenchmark]) -> None:
        """Take whatever does not pass out of those that wait."""
        while self._examine is not None and self._unexamined:
            benchmark = self._unexamined.pop(0)
            problem: str | None = ""
            try:
                with self._ending(benchmark, 1, launched):
                    problem = self._examine(launched, benchmark)
            finally:
                if problem is not None:
                    waiting.remove(benchmark)
            if problem:
                self._end(benchmark, problem)

    def _ask(
        self, launched: P, benchmark: DuetBenchmark, launch: int, chance: random.Random
    ) -> float:
        pairs = self._policy.pairs
        loop = Interleaved(
            rounds=1,
            warmup_requests=self._policy.warm_up,
            min_requests=pairs,
            max_requests=pairs,
            measure_s=_NO_TIME_S,
            seed=chance.randrange(2**32),
            clock_ns=self._clock_ns,
            sleep=self._sleep,
        )
        # Where the time goes is asked only once there is a change to explain; all is warm by then.
        traced = replace(loop, warmup_requests=1, min_requests=TRACED, max_requests=TRACED)
        with self._watch() as watched:
            asked = launched.participants(benchmark)
            begun_ns = self._clock_ns()
            try:
                run = run_participants(
                    loop, asked, launched.check_alive, traced=traced if self._number > 1 else None
                )
            finally:
                for participant in asked:
                    participant.close()
            took_s = (self._clock_ns() - begun_ns) / 1e9
        problem = observe(
            launch,
            run,
            variant=CANDIDATE,
            reference=BASELINE,
            min_requests=pairs,
            telemetry=watched.telemetry,
        ).problem
        if problem is not None:
            self._end(benchmark, problem)
        else:
            self._launches[benchmark].append(_launch(run))
        return took_s

    @contextmanager
    def _ending(self, benchmark: DuetBenchmark, launch: int, launched: P) -> Iterator[None]:
        """Let what breaks meanwhile end this benchmark alone; raise _AnotherPair once one died."""
        try:
            try:
                yield
            except (ServerError, RequestError) as error:
                if not isinstance(error, ServerDied):
                    look_for_death(launched.check_alive, self._sleep)
                if not isinstance(error, RequestError):
                    raise
                self._end(benchmark, f"launch {launch}: {error.problem}")
        except ServerDied as dead:
            self._end(benchmark, f"launch {launch}: {dead.problem}")
            raise _AnotherPair from dead

    def _end(self, benchmark: DuetBenchmark, problem: str) -> None:
        where = "" if self._number == 1 else "confirming session, "
        self._invalid[benchmark] = where + problem


class _AnotherPair(Exception):
    """A server died while a benchmark was asked; the others need a fresh pair."""


def _launch(run: Mapping[str, ParticipantRun]) -> DuetLaunch:
    baseline, candidate = run[BASELINE], run[CANDIDATE]
    traced = (
        None
        if baseline.traced is None or candidate.traced is None
        else (
            profile(baseline.traced, baseline.traced),
            profile(candidate.traced, baseline.traced),
        )
    )
    return DuetLaunch(
        baseline_ns=tuple(baseline.records.latencies_ns.tolist()),
        candidate_ns=tuple(candidate.records.latencies_ns.tolist()),
        baseline_stages=None if traced is None else traced[0],
        candidate_stages=None if traced is None else traced[1],
    )
