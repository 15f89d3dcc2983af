"""Made-up neighbours: how many there are, what they do, and that they end."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from hpsbench.servers.neighbours import neighbours_for, noisy_neighbours


def test_neighbours_keep_processors_busy_and_are_gone_afterwards(tmp_path: Path) -> None:
    me = psutil.Process()
    before = set(me.children(recursive=True))
    # The first burst of this seed takes 3.6 s.
    with noisy_neighbours(seed=2, log=tmp_path / "log") as count:
        deadline_s = time.monotonic() + 30
        burnt_s = 0.0
        while burnt_s < 0.3 and time.monotonic() < deadline_s:
            time.sleep(0.1)
            running = set(me.children(recursive=True)) - before
            burnt_s = sum(sum(p.cpu_times()[:2]) for p in running)
        assert count == neighbours_for(len(os.sched_getaffinity(0)))
        assert burnt_s >= 0.3, (tmp_path / "log").read_text()
    assert not [p for p in running if p.is_running()]


def test_two_processors_get_one_neighbour() -> None:
    assert [neighbours_for(cpus) for cpus in (1, 2, 3, 4, 16)] == [1, 1, 1, 2, 8]
