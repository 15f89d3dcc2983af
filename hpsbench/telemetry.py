"""What the machine did while a benchmark was measured: who else used it, and what held it back.

A thread samples the host and the GPUs at a steady, low rate (`INTERVAL_S`). A throttled or a shared
GPU makes a measurement invalid. A busy host does not, up to a limit: the gate is built for noisy
machines, and says itself when it cannot see enough.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from hpsbench.telemetry_gpu import GpuSampler, GpuTelemetry, gpu_samplers
from hpsbench.telemetry_host import HostSampler, HostTelemetry

#: Seconds between samples. One takes a millisecond, which keeps the thread at 0.2% of a core.
INTERVAL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """A machine while something was measured; `sampling_cpu_s` is what watching it cost."""

    elapsed_s: float
    samples: int
    sampling_cpu_s: float
    host: HostTelemetry
    gpus: tuple[GpuTelemetry, ...] = ()

    @property
    def problem(self) -> str | None:
        """Why what was measured meanwhile must not count, None where it may."""
        problems = (*(gpu.problem for gpu in self.gpus), self.host.problem(self.elapsed_s))
        return next((problem for problem in problems if problem is not None), None)


@dataclass(kw_only=True)
class Recording:
    """Where a watch leaves what it saw, once its context has ended."""

    telemetry: Telemetry | None = None


#: Watches the machine as long as the context lasts.
Watch: TypeAlias = Callable[[], contextlib.AbstractContextManager[Recording]]


def unwatched() -> contextlib.AbstractContextManager[Recording]:
    """Do as a watch would, and see nothing."""
    return contextlib.nullcontext(Recording())


@contextlib.contextmanager
def machine_watch(
    *, nvml: Any = None, interval_s: float = INTERVAL_S, own_servers: bool = True
) -> Iterator[Watch]:
    """Yield a watch of this machine; open it before the servers start, to tell whose GPU it is.

    `nvml` is the module pynvml unless given. Without `own_servers` somebody else runs the servers,
    so nobody on a GPU is a stranger.
    """
    with gpu_samplers(nvml=nvml, own_servers=own_servers) as gpus:
        yield lambda: _watching(gpus, interval_s)


@contextlib.contextmanager
def _watching(gpus: Sequence[GpuSampler], interval_s: float) -> Iterator[Recording]:
    recording = Recording()
    host = HostSampler()
    for gpu in gpus:
        gpu.begin()
    ended = threading.Event()
    costs_s: list[float] = []

    def sample() -> None:
        begun_s = time.thread_time()
        host.sample()
        for gpu in gpus:
            gpu.sample()
        costs_s.append(time.thread_time() - begun_s)

    def keep_sampling() -> None:
        while not ended.wait(interval_s):
            sample()

    begun_s = time.monotonic()
    sample()
    thread = threading.Thread(target=keep_sampling, name="hpsbench-telemetry", daemon=True)
    thread.start()
    try:
        yield recording
    finally:
        ended.set()
        thread.join()
        sample()
        recording.telemetry = Telemetry(
            elapsed_s=round(time.monotonic() - begun_s, 3),
            samples=len(costs_s),
            sampling_cpu_s=round(sum(costs_s), 6),
            host=host.telemetry(),
            gpus=tuple(gpu.telemetry() for gpu in gpus),
        )
