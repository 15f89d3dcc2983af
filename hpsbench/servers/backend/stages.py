"""Where a request's time goes inside a model: nanoseconds per stage, as a metric of Triton's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

#: Called with the name of each stage as it ends.
Mark: TypeAlias = Callable[[str], None]


def ignore(stage: str) -> None:
    """Take no time: what a request does where nobody asked for stages."""


class StageClock:
    """Measures the stages of one request after another.

    `wait` returns when the device has finished what it was given, so that a stage's work on a GPU
    is in its own time; stages that would overlap then do not.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self._wait = wait
        self._stage_ns: dict[str, int] = {}
        self._last_ns = 0

    def start(self) -> None:
        """Begin a request."""
        self._stage_ns = {}
        self._last_ns = time.perf_counter_ns()

    def mark(self, stage: str) -> None:
        """End a stage here; several of one name add up."""
        self._wait()
        now_ns = time.perf_counter_ns()
        self._stage_ns[stage] = self._stage_ns.get(stage, 0) + now_ns - self._last_ns
        self._last_ns = now_ns

    @property
    def stage_ns(self) -> dict[str, int]:
        """The stages of the request so far, in order."""
        return dict(self._stage_ns)
