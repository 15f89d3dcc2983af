"""Stages asked in turn, round after round, so that whatever the machine does meets them all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpsbench.profiling.batches import Batch, take

#: Turns of each stage; with few iterations, one for each.
ROUNDS = 10
#: Keys that are held ready; where a turn needs more, its batches come again.
_READY_BYTES = 256 << 20


class Stage(Protocol):
    """Something that answers batches."""

    name: str
    meaning: str

    def prepare(self, batch: Batch) -> Any:
        """Return what `ask` takes for a batch; not timed."""

    def size(self, batch: Batch) -> tuple[int, int]:
        """Return how many keys are asked for a batch, and the bytes of their rows."""

    def ask(self, prepared: Any) -> object:
        """Look the keys up, and return when the rows are there."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """All calls of one stage: int64[n] nanoseconds each, and how long its turns took together.

    `keys` and `row_bytes` are of all calls; `counted` is what `counters` rose by during its turns.
    """

    times_ns: npt.NDArray[np.int64]
    elapsed_ns: int
    keys: int
    row_bytes: int
    counted: Mapping[tuple[str, ...], int]


def ask_in_turn(
    stages: Sequence[Stage],
    stream: Iterator[Batch],
    *,
    iterations: int,
    warm_up: int,
    threads: int,
    counters: Callable[[], Mapping[tuple[str, ...], int]],
) -> dict[str, Asked]:
    """Return the calls of each stage: `iterations` on each of `threads` threads, after `warm_up`.

    Raises what a stage raises.
    """
    rounds = min(ROUNDS, iterations)
    sizes = [iterations * (i + 1) // rounds - iterations * i // rounds for i in range(rounds)]
    times: dict[str, list[npt.NDArray[np.int64]]] = {stage.name: [] for stage in stages}
    elapsed = dict.fromkeys(times, 0)
    sizes_of = {name: np.zeros(2, np.int64) for name in times}
    counted: dict[str, dict[tuple[str, ...], int]] = {stage.name: {} for stage in stages}
    for stage in stages:
        for _ in range(warm_up):
            stage.ask(stage.prepare(take(stream, 1)[0]))
    for size in sizes:
        for stage in stages:
            work = []
            for _ in range(threads):
                prepared, keys, row_bytes = _ready(stage, stream, size, threads)
                work.append(prepared)
                sizes_of[stage.name] += (keys, row_bytes)
            before = counters()
            turn, elapsed_ns = _ask_at_once(stage, work)
            times[stage.name] += turn
            elapsed[stage.name] += elapsed_ns
            of_stage = counted[stage.name]
            for counter, value in counters().items():
                of_stage[counter] = of_stage.get(counter, 0) + value - before.get(counter, 0)
    return {
        name: Asked(
            times_ns=np.concatenate(times[name]),
            elapsed_ns=elapsed[name],
            keys=int(sizes_of[name][0]),
            row_bytes=int(sizes_of[name][1]),
            counted=counted[name],
        )
        for name in times
    }


def _ready(
    stage: Stage, stream: Iterator[Batch], count: int, threads: int
) -> tuple[list[Any], int, int]:
    """Return what is asked in `count` calls, and the keys and bytes of rows of all of them."""
    batches = take(stream, 1)
    num_bytes = sum(keys.nbytes for keys in batches[0].keys)
    ready = max(1, min(count, _READY_BYTES // (threads * max(1, num_bytes))))
    batches += take(stream, ready - 1)
    prepared = [stage.prepare(batch) for batch in batches]
    sizes = [stage.size(batch) for batch in batches]
    order = [i % ready for i in range(count)]
    keys, row_bytes = (sum(sizes[i][part] for i in order) for part in (0, 1))
    return [prepared[i] for i in order], keys, row_bytes


def _ask_at_once(
    stage: Stage, work: Sequence[Sequence[Any]]
) -> tuple[list[npt.NDArray[np.int64]], int]:
    """Ask each list on a thread of its own, a single one on this thread.

    Returns their times, and nanoseconds from when the first began until the last was done.
    """
    stopped = threading.Event()
    together = threading.Barrier(len(work))

    def ask(prepared: Sequence[Any]) -> tuple[npt.NDArray[np.int64], int, int]:
        times = np.zeros(len(prepared), np.int64)
        together.wait()
        first = time.perf_counter_ns()
        for i, batch in enumerate(prepared):
            if stopped.is_set():
                break
            begun = time.perf_counter_ns()
            try:
                stage.ask(batch)
            except BaseException:
                stopped.set()
                raise
            times[i] = time.perf_counter_ns() - begun
        return times, first, time.perf_counter_ns()

    if len(work) == 1:
        asked = [ask(work[0])]
    else:
        with ThreadPoolExecutor(len(work)) as pool:
            try:
                asked = list(pool.map(ask, work))
            except BaseException:
                stopped.set()  # what is under way is waited for, and no more is asked
                raise
    elapsed_ns = max(last for _, _, last in asked) - min(first for _, first, _ in asked)
    return [times for times, _, _ in asked], elapsed_ns
