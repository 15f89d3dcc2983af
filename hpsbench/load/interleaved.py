"""Several participants asked in turn, one or a few requests each, so that all meet one machine.

What a noisy machine does to one it does to its neighbour in time: that is why the ratio of two
interleaved participants carries over between sessions where milliseconds do not.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from hpsbench.errors import RequestError
from hpsbench.load.interrupts import deferred_interrupt
from hpsbench.load.records import Recorder, Records, TracedRequests
from hpsbench.load.schedule import random_orders, repetitions_for, split_rounds, turns
from hpsbench.servers.endpoint import Endpoint
from hpsbench.servers.statistics import ModelStatistics
from hpsbench.servers.traces import Tracing

#: A participant that fails this often in a row is asked no more.
GIVE_UP_AFTER = 5
#: More requests than this sharpen no percentile that is judged, and only take time.
MAX_REQUESTS = 1000
#: Triton counts a request after it has answered it, so a reading may have to wait this long.
SETTLE_NS = 1_000_000_000
_SETTLE_STEP_S = 0.005
_DEATH_CHECKS, _DEATH_CHECK_STEP_S = 20, 0.05

#: A model on a server: (HTTP address, model name).
Step: TypeAlias = tuple[str, str]


def _nothing() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Participant:
    """Someone who can be asked: `send` makes one request, and raises RequestError if it failed.

    One that is served has an `endpoint`, and `statistics` that reads a model's counters by name;
    one that computes in this process has neither. `engine` is what runs it, where it tells.
    `tracing` turns its server's traces on and off, None where there are none to read. `close` is
    called when it is asked no more.
    """

    name: str
    send: Callable[[], None]
    endpoint: Endpoint | None = None
    statistics: Callable[[str], ModelStatistics] | None = None
    engine: str | None = None
    tracing: Tracing | None = None
    close: Callable[[], None] = _nothing

    @property
    def steps(self) -> tuple[Step, ...]:
        """The models whose counters make up its server times; none of one without statistics."""
        if self.endpoint is None or self.statistics is None:
            return ()
        return tuple((self.endpoint.http, model) for model in self.endpoint.timed_models)


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """One model's counters over one round, and how many requests of ours should be in them.

    Models that several participants share (one lookup model below two ensembles) count for all.
    """

    statistics: ModelStatistics
    expected: int


@dataclass(frozen=True, kw_only=True)
class ParticipantRun:
    """What was recorded of one participant: per round its requests, and the steps it went through.

    `gave_up` says why it was not asked to the end, and `traced` holds the requests of a pass of its
    own, if there was one.
    """

    name: str
    rounds: tuple[Records, ...]
    steps: tuple[Mapping[Step, StepCount], ...]
    step_multiplicity: Mapping[Step, int] = field(default_factory=dict)
    gave_up: str | None = None
    engine: str | None = None
    traced: TracedRequests | None = None

    @property
    def records(self) -> Records:
        """All rounds' requests, in order."""
        return Records.concatenate(self.rounds)


@dataclass(frozen=True, kw_only=True)
class Interleaved:
    """How to measure participants together: rounds of turns, each in random order of participants.

    A turn is `in_a_row` requests to each. One finds out what other servers' work costs a request;
    many are what a benchmark of one server alone would see. `measure_s` is the time per
    participant, bounded by `min_requests` and `max_requests` of each. Warm-up requests are not
    recorded; at least one is sent, because it tells what requests cost.
    """

    rounds: int
    warmup_requests: int
    min_requests: int
    measure_s: float
    seed: int
    in_a_row: int = 1
    max_requests: int = MAX_REQUESTS
    clock_ns: Callable[[], int] = time.perf_counter_ns
    sleep: Callable[[float], None] = time.sleep

    def run(
        self,
        participants: Sequence[Participant],
        check_alive: Callable[[], None] = _nothing,
    ) -> dict[str, ParticipantRun]:
        """Ask all participants and return what was recorded of each, by name.

        Failed requests are recorded. `check_alive` is called after each of them and between
        rounds; what it raises ends the run. Raises ValueError where two participants share a name.
        """
        names = [p.name for p in participants]
        if len(set(names)) != len(names):
            raise ValueError(f"participants must have different names, not {names}")
        asked = [_Asked(p) for p in participants]
        counters = _Counters(asked, self.clock_ns, self.sleep)
        with no_garbage_collection():
            costs = self._warm_up(asked, check_alive)
            repetitions = repetitions_for(
                costs,
                budget_ns=int(self.measure_s * 1e9) * len(asked),
                min_requests=self.min_requests,
                max_requests=self.max_requests,
            )
            orders = iter(random_orders(len(asked), repetitions, seed=self.seed).tolist())
            counters.next_reading()
            for count in split_rounds(repetitions, self.rounds):
                for requests in turns(count, self.in_a_row):
                    for index in next(orders):
                        for _ in range(requests):
                            self._ask(asked[index], check_alive)
                for each in asked:
                    each.end_round()
                check_alive()
                counters.end_round()
        return {a.participant.name: a.run(counters.rounds) for a in asked}

    def _warm_up(self, asked: Sequence[_Asked], check_alive: Callable[[], None]) -> list[int]:
        latencies: list[list[int]] = [[] for _ in asked]
        for _ in range(max(1, self.warmup_requests)):
            for each, seen in zip(asked, latencies, strict=True):
                took_ns = self._ask(each, check_alive)
                if took_ns is not None:
                    seen.append(took_ns)
        for each in asked:
            each.forget_warm_up()
        # The first of a batch size are compiled for, which may take as long as a hundred others.
        later = [seen[len(seen) // 2 :] for seen in latencies]
        return [int(statistics.median(seen)) if seen else 0 for seen in later]

    def _ask(self, asked: _Asked, check_alive: Callable[[], None]) -> int | None:
        """Make one request and record it; return its nanoseconds, None unless it succeeded."""
        if asked.gave_up is not None:
            return None
        send, clock_ns = asked.participant.send, self.clock_ns
        sent_ns = clock_ns()
        try:
            send()
        except RequestError as error:
            asked.add(sent_ns, clock_ns(), error.problem)
            check_alive()
            if asked.gave_up is not None:
                look_for_death(check_alive, self.sleep)
            return None
        received_ns = clock_ns()
        asked.add(sent_ns, received_ns, None)
        return received_ns - sent_ns


class _Asked:
    """A participant while it is being asked."""

    def __init__(self, participant: Participant) -> None:
        self.participant = participant
        self.successes = 0
        self.gave_up: str | None = None
        self._failures_in_a_row = 0
        self._recorder = Recorder()
        self._rounds: list[Records] = []

    def add(self, sent_ns: int, received_ns: int, error: str | None) -> None:
        self._recorder.add(sent_ns, sent_ns, received_ns, error)
        if error is None:
            self.successes += 1
            self._failures_in_a_row = 0
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= GIVE_UP_AFTER:
            self.gave_up = f"{GIVE_UP_AFTER} requests in a row failed: {error}"

    def forget_warm_up(self) -> None:
        self._recorder = Recorder()

    def end_round(self) -> None:
        self._rounds.append(self._recorder.records())
        self._recorder = Recorder()

    def run(self, rounds: Sequence[Mapping[Step, StepCount]]) -> ParticipantRun:
        steps = self.participant.steps
        return ParticipantRun(
            name=self.participant.name,
            rounds=tuple(self._rounds),
            steps=tuple({s: counts[s] for s in steps} for counts in rounds) if steps else (),
            step_multiplicity=Counter(steps),
            gave_up=self.gave_up,
            engine=self.participant.engine,
        )


class _Counters:
    """The servers' counters, read at the boundaries of rounds, each model once."""

    def __init__(
        self,
        asked: Sequence[_Asked],
        clock_ns: Callable[[], int],
        sleep: Callable[[float], None],
    ) -> None:
        self.rounds: list[Mapping[Step, StepCount]] = []
        self._asked = [a for a in asked if a.participant.steps]
        self._clock_ns, self._sleep = clock_ns, sleep
        self._readers: dict[Step, Callable[[], ModelStatistics]] = {}
        for each in self._asked:
            for step in each.participant.steps:
                self._readers.setdefault(step, _reader(each.participant, step))
        if self._readers:
            # Whatever was asked just before, a readiness check for one, is counted by then.
            sleep(_SETTLE_STEP_S)
        self._first = {step: read() for step, read in self._readers.items()}
        self._last, self._last_sent = self._first, self._sent()

    def next_reading(self) -> None:
        """Start a round here."""
        self._last, self._last_sent = self._settled()

    def end_round(self) -> None:
        """Keep what was counted since the round's start, and start the next."""
        reading, sent = self._settled()
        self.rounds.append(
            {
                step: StepCount(
                    statistics=reading[step] - self._last[step],
                    expected=sent[step] - self._last_sent[step],
                )
                for step in self._readers
            }
        )
        self._last, self._last_sent = reading, sent

    def _sent(self) -> Counter[Step]:
        sent: Counter[Step] = Counter()
        for each in self._asked:
            for step in each.participant.steps:
                sent[step] += each.successes
        return sent

    def _settled(self) -> tuple[dict[Step, ModelStatistics], Counter[Step]]:
        sent = self._sent()
        deadline_ns = self._clock_ns() + SETTLE_NS
        reading = {}
        for step, read in self._readers.items():
            reading[step] = read()
            expected = self._first[step].success_count + sent[step]
            while reading[step].success_count < expected and self._clock_ns() < deadline_ns:
                self._sleep(_SETTLE_STEP_S)
                reading[step] = read()
        return reading, sent


def _reader(participant: Participant, step: Step) -> Callable[[], ModelStatistics]:
    read = participant.statistics
    assert read is not None  # a participant without statistics has no steps
    return lambda: read(step[1])


def look_for_death(check_alive: Callable[[], None], sleep: Callable[[float], None]) -> None:
    """Call `check_alive` for a while: connections break before a killed process is found dead."""
    for _ in range(_DEATH_CHECKS):
        sleep(_DEATH_CHECK_STEP_S)
        check_alive()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now, and not again before the context ends; within another it changes nothing."""
    if not gc.isenabled():
        yield
        return
    with deferred_interrupt(lambda: None):  # a collection calls many finalizers
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
