"""Synthetic noisy neighbours: processes that keep processors and memory busy, in bursts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpsbench.servers.process import ChildProcess, Command

#: CPUs of this process's affinity mask for each neighbour.
CPUS_PER_NEIGHBOUR = 2
#: Seconds of the shortest and the longest burst, and of the pauses between them.
BURST_S = (0.01, 5.0)
_STREAMED_BYTES = 64 * 2**20

# Log-uniform times, so that some bursts hit single requests and others whole launches. A burst
# either computes out of the nearest cache, or streams through more memory than any cache holds.
_NEIGHBOUR = f"""\
import math, random, sys, time
import numpy as np

rng = random.Random(int(sys.argv[1]))
shortest, longest = {BURST_S}
near = np.full(1024, 1.0000001)
far, copy = np.ones({_STREAMED_BYTES // 8}), np.ones({_STREAMED_BYTES // 8})

def seconds():
    return math.exp(rng.uniform(math.log(shortest), math.log(longest)))

while True:
    streams, until = rng.random() < 0.5, time.monotonic() + seconds()
    while time.monotonic() < until:
        if streams:
            np.copyto(copy, far)
        else:
            for _ in range(200):
                np.multiply(near, near, out=near)
                near.fill(1.0000001)
    time.sleep(seconds())
"""


def neighbours_for(cpus: int) -> int:
    """Return how many neighbours `cpus` processors get: one for two of them, at least one."""
    return max(1, cpus // CPUS_PER_NEIGHBOUR)


@contextmanager
def noisy_neighbours(*, seed: int, log: Path) -> Iterator[int]:
    """Keep the CPUs of this process's affinity mask busy half of the time; yield by how many.

    The processes end with the context, and with this process, however it ends. Raises ServerError
    where they cannot be started.
    """
    count = neighbours_for(len(os.sched_getaffinity(0)))
    started: list[ChildProcess] = []
    try:
        for number in range(count):
            arguments = [sys.executable, "-c", _NEIGHBOUR, str(seed + number)]
            started.append(ChildProcess(Command(arguments=arguments), log=log))
        yield count
    finally:
        for process in started:
            process.stop(grace_s=0)
