"""Stages asked in turn: every call of every thread counts, and one that fails ends them all."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import numpy as np
import pytest

from hpsbench.profiling.batches import Batch
from hpsbench.profiling.rounds import ask_in_turn


class Sleeper:
    """A stage that takes as long as it is told, and knows what it was asked."""

    meaning = "sleeps"

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.asked: list[int] = []
        self.threads: set[int] = set()

    def prepare(self, batch: Batch) -> int:
        return int(batch.keys[0][0])

    def size(self, batch: Batch) -> tuple[int, int]:
        return 10, 640

    def ask(self, prepared: Any) -> object:
        time.sleep(self.seconds)
        self.asked.append(prepared)
        self.threads.add(threading.get_ident())
        return None


def numbered() -> Any:
    for i in itertools.count():
        yield Batch(keys=(np.array([i]),), rows=(np.array([i]),))


@pytest.mark.parametrize("threads", [1, 3])
def test_every_call_of_every_thread_is_timed_after_the_warm_up(threads: int) -> None:
    slow, fast = Sleeper("slow", 0.004), Sleeper("fast", 0.001)
    asked = ask_in_turn(
        [slow, fast],
        numbered(),
        iterations=12,
        warm_up=2,
        threads=threads,
        counters=lambda: {("t", "keys"): len(slow.asked), ("t", "late"): len(fast.asked)},
    )
    for stage in (slow, fast):
        assert len(asked[stage.name].times_ns) == 12 * threads
        assert len(stage.asked) == 12 * threads + 2
        assert asked[stage.name].keys == 120 * threads
        assert asked[stage.name].row_bytes == 7680 * threads
        assert asked[stage.name].times_ns.min() >= stage.seconds * 1e9
        # Threads sleep at the same time.
        assert asked[stage.name].elapsed_ns < 1.5 * asked[stage.name].times_ns.sum() / threads
    assert len(set(slow.asked + fast.asked)) == len(slow.asked + fast.asked), "no batch twice"
    assert asked["slow"].counted == {("t", "keys"): 12 * threads, ("t", "late"): 0}
    assert asked["fast"].counted == {("t", "keys"): 0, ("t", "late"): 12 * threads}


def test_a_stage_that_fails_ends_the_profile_at_once() -> None:
    class Fails(Sleeper):
        def ask(self, prepared: Any) -> object:
            if len(self.asked) == 5:
                raise RuntimeError("gone")
            return super().ask(prepared)

    stage = Fails("fails", 0.001)
    with pytest.raises(RuntimeError, match="gone"):
        ask_in_turn([stage], numbered(), iterations=100, warm_up=0, threads=2, counters=dict)
    assert len(stage.asked) <= 6, "the other thread's last call"
