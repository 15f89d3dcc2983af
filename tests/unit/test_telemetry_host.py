"""The host under watch, as it is."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time

from hpsbench.telemetry import Telemetry, machine_watch
from hpsbench.telemetry_host import BUSY_LIMIT, HostTelemetry

IDLE_HOST = HostTelemetry(
    cpus=4,
    own=0.2,
    others=0.01,
    steal=0.0,
    iowait=0.0,
    frequency_mhz=None,
    min_frequency_mhz=None,
    load_1min=0.5,
    min_available_bytes=2**30,
    swapped_in_bytes=0,
    swapped_out_bytes=0,
)


def test_the_use_of_this_host_is_told_apart_by_whose_it_is() -> None:
    burn = "import time\nuntil = time.monotonic() + 0.6\nwhile time.monotonic() < until: pass"
    with machine_watch() as watch, watch() as recording:
        child = subprocess.Popen([sys.executable, "-c", burn])
        while child.poll() is None:
            time.sleep(0.01)
        # What a process used is its parent's to count only while it lives.
        until_s = time.thread_time() + 0.3
        while time.thread_time() < until_s:
            pass
    seen = recording.telemetry
    assert seen is not None
    host = seen.host
    assert host.cpus == len(os.sched_getaffinity(0))
    assert host.own * host.cpus * seen.elapsed_s > 0.25
    assert 0 <= host.others + host.own + host.steal <= 1.01
    assert host.min_available_bytes > 0
    assert host.frequency_mhz is None or host.frequency_mhz > 100
    assert seen.samples >= 3


def test_a_host_is_too_busy_only_beyond_the_limit() -> None:
    def telemetry(others: float, steal: float, elapsed_s: float = 2.0) -> Telemetry:
        host = dataclasses.replace(IDLE_HOST, others=others, steal=steal)
        return Telemetry(elapsed_s=elapsed_s, samples=2, sampling_cpu_s=0.0, host=host)

    assert telemetry(BUSY_LIMIT - 0.31, 0.3).problem is None
    # A few ticks of the kernel's clock say nothing.
    assert telemetry(1.0, 0.0, elapsed_s=0.5).problem is None
    assert telemetry(0.68, 0.3).problem == (
        "other processes used 68% of the CPUs, and other machines took 30%: "
        "beyond 97% there is no verdict"
    )
