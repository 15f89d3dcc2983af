"""Pairs of servers that a comparison can ask, without servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from hpsbench.duets.answers import Answers
from hpsbench.duets.benchmarks import DuetBenchmark
from hpsbench.duets.decision import BASELINE, CANDIDATE
from hpsbench.errors import RequestError, ServerDied
from hpsbench.load.interleaved import Participant

MS = 1_000_000


class FakePairs:
    """Pairs of servers under a clock that moves only when one of them is asked."""

    def __init__(self, *candidate_ms: float, baseline_ms: float = 2.0) -> None:
        """`candidate_ms` are the costs of a request by launch, the last of all that follow."""
        self.candidate_ms, self.baseline_ms = candidate_ms, baseline_ms
        self.now_ns = 0
        self.asked: list[list[str]] = []
        self.numbers: list[int] = []
        self.dies_in = self.fails_in = 0
        self.answers_apart = 0.0
        self.refuses = False
        self.open = 0

    def clock_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)

    def answers(self, benchmark: DuetBenchmark) -> dict[str, Answers]:
        if self.refuses:
            raise RequestError("model dlrm answered with status 400: no", hint="none")
        ones = np.ones((benchmark.batch_size, 1), np.float32)
        return {BASELINE: [{"y": ones}], CANDIDATE: [{"y": ones + self.answers_apart}]}

    @contextmanager
    def pair(self, number: int) -> Iterator[FakePairs]:
        self.numbers.append(number)
        self.asked.append([])
        self.open += 1
        yield self
        self.open -= 1

    def check_alive(self) -> None:
        if len(self.numbers) == self.dies_in:
            raise ServerDied("triton (process 7) was killed by signal 9", hint="read its log")

    def participants(self, benchmark: DuetBenchmark) -> Sequence[Participant]:
        launch = len(self.numbers)
        candidate_ms = self.candidate_ms[min(launch, len(self.candidate_ms)) - 1]
        costs_ms = {BASELINE: self.baseline_ms, CANDIDATE: candidate_ms}
        return [
            self._participant(name, cost * benchmark.batch_size) for name, cost in costs_ms.items()
        ]

    def _participant(self, name: str, cost_ms: float) -> Participant:
        def send() -> None:
            self.asked[-1].append(name)
            self.now_ns += round(cost_ms * MS)
            if name == CANDIDATE and len(self.numbers) == self.fails_in:
                raise RequestError("model dlrm answered with status 500: full", hint="none")

        return Participant(name=name, send=send)
