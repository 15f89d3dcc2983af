"""Calls timed in turns in one process, so that a busy machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

WARMUP_ROUNDS = 5


def medians_us(calls: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Return the median time of each call in microseconds; each is given the round's number."""
    times: dict[str, list[int]] = {name: [] for name in calls}
    for i in range(rounds + WARMUP_ROUNDS):
        for name, call in calls.items():
            started = time.perf_counter_ns()
            call(i)
            times[name].append(time.perf_counter_ns() - started)
    return {name: float(np.median(values[WARMUP_ROUNDS:])) / 1e3 for name, values in times.items()}
