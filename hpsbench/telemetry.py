"""What the machine did while a benchmark was measured: who else used it, and what held it back.

A thread samples at a steady, low rate (`INTERVAL_S`); what the kernel and the driver count by
themselves (CPU time, swap, energy) is read at both ends only. A throttled or a shared GPU makes a
measurement invalid: its clocks are not those that the baseline was measured at, and no reference
that runs beside it divides that out of each kernel alike. A busy host does not, up to
`BUSY_LIMIT`: the gate is built for noisy machines, and says itself when it cannot see enough.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import psutil

#: Seconds between samples. One takes a millisecond, which keeps the thread at 0.2% of a core.
INTERVAL_S = 0.5
#: The share of this process's CPUs beyond which others' use and stolen time leave no verdict.
BUSY_LIMIT = 0.97
#: The kernel counts CPU time in ticks of 10 ms: shorter than this, shares are chance.
_MIN_JUDGED_S = 1.0

_FREQUENCY_CPUS = 4

#: Names of NVML's bits, and whether such a clock is one that no baseline was measured at. A power
#: cap is how large GPUs run under load, and a locked application clock is a steady one.
_REASONS = (
    ("hardware slowdown", "nvmlClocksThrottleReasonHwSlowdown", True),
    ("thermal slowdown by hardware", "nvmlClocksThrottleReasonHwThermalSlowdown", True),
    ("power brake", "nvmlClocksThrottleReasonHwPowerBrakeSlowdown", True),
    ("thermal slowdown by software", "nvmlClocksThrottleReasonSwThermalSlowdown", True),
    ("power cap", "nvmlClocksThrottleReasonSwPowerCap", False),
    ("application clocks", "nvmlClocksThrottleReasonApplicationsClocksSetting", False),
    ("sync boost", "nvmlClocksThrottleReasonSyncBoost", False),
)
_THROTTLED = tuple(name for name, _, invalidates in _REASONS if invalidates)


@dataclass(frozen=True, kw_only=True)
class GpuTelemetry:
    """One GPU; means and extremes over the samples, None for what its driver does not tell.

    `reasons` are the shares of samples in which a reason held the clocks back. `shared_with` are
    processes that are not ours. `used` says whether ours were seen on it at all.
    """

    name: str
    used: bool
    sm_clock_mhz: float | None
    min_sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    power_w: float | None
    energy_j: float | None
    max_temperature_c: float | None
    utilization: float | None
    max_memory_bytes: int | None
    reasons: Mapping[str, float]
    shared_with: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HostTelemetry:
    """The CPUs that this process may use: shares of their time, 0 to 1, and what they did.

    `own` is the use by this process and its descendants, so by the servers that it started;
    `others` everybody else's. `steal` is what the hypervisor gave to other machines.
    """

    cpus: int
    own: float
    others: float
    steal: float
    iowait: float
    frequency_mhz: float | None
    min_frequency_mhz: float | None
    load_1min: float
    min_available_bytes: int
    swapped_in_bytes: int
    swapped_out_bytes: int


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
        for gpu in self.gpus:
            if not gpu.used:
                continue
            for reason in _THROTTLED:
                share = gpu.reasons.get(reason, 0.0)
                if share:
                    return f"{gpu.name} was throttled in {share:.0%} of the samples: {reason}"
            if gpu.shared_with:
                return f"{gpu.name} was shared with {', '.join(gpu.shared_with)}"
        busy = self.host.others + self.host.steal
        if busy > BUSY_LIMIT and self.elapsed_s >= _MIN_JUDGED_S:
            return (
                f"other processes used {self.host.others:.0%} of the CPUs, and other machines took "
                f"{self.host.steal:.0%}: beyond {BUSY_LIMIT:.0%} there is no verdict"
            )
        return None


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
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield lambda: _watching([], interval_s)
        return
    try:
        count = nvml.nvmlDeviceGetCount()
        gpus = [_Gpu(nvml, index, own_servers=own_servers) for index in range(count)]
        yield lambda: _watching(gpus, interval_s)
    finally:
        nvml.nvmlShutdown()


@contextlib.contextmanager
def _watching(gpus: list[_Gpu], interval_s: float) -> Iterator[Recording]:
    recording = Recording()
    host = _Host()
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


class _Host:
    """The CPUs of this process's affinity mask, and the memory of the machine."""

    def __init__(self) -> None:
        self._cpus = sorted(os.sched_getaffinity(0))
        self._frequencies_mhz: list[float] = []
        self._available_bytes: list[int] = []
        self._loads: list[float] = []
        self._swap = psutil.swap_memory()
        self._times, self._own_s = self._cpu_times(), _own_cpu_s()

    def sample(self) -> None:
        self._frequencies_mhz += [
            mhz for cpu in self._cpus[:_FREQUENCY_CPUS] if (mhz := _frequency_mhz(cpu)) is not None
        ]
        self._available_bytes.append(psutil.virtual_memory().available)
        self._loads.append(os.getloadavg()[0])

    def telemetry(self) -> HostTelemetry:
        times, own_s, swap = self._cpu_times(), _own_cpu_s(), psutil.swap_memory()
        spent = Counter({name: times[name] - self._times[name] for name in times})
        total_s = max(sum(spent.values()), 1e-9)
        idle_s = spent["idle"] + spent["iowait"] + spent["steal"]
        # A process that ended between takes its time along; and ticks are coarse.
        own = min(max(own_s - self._own_s, 0.0), total_s - idle_s) / total_s
        mhz = self._frequencies_mhz
        if not mhz and (known := psutil.cpu_freq()) is not None and known.current:
            # Out of /proc/cpuinfo, which takes long where there are many CPUs: once is enough.
            mhz = [known.current]
        return HostTelemetry(
            cpus=len(self._cpus),
            own=round(max(own, 0.0), 4),
            others=round(max((total_s - idle_s) / total_s - own, 0.0), 4),
            steal=round(spent["steal"] / total_s, 4),
            iowait=round(spent["iowait"] / total_s, 4),
            frequency_mhz=round(fmean(mhz), 1) if mhz else None,
            min_frequency_mhz=round(min(mhz), 1) if mhz else None,
            load_1min=round(max(self._loads), 2),
            min_available_bytes=min(self._available_bytes),
            swapped_in_bytes=max(0, swap.sin - self._swap.sin),
            swapped_out_bytes=max(0, swap.sout - self._swap.sout),
        )

    def _cpu_times(self) -> dict[str, float]:
        every = psutil.cpu_times(percpu=True)
        seen = [every[cpu] for cpu in self._cpus if cpu < len(every)]
        # Guests' time is in user's and nice's already.
        names = [n for n in seen[0]._fields if not n.startswith("guest")]
        return {name: sum(getattr(times, name) for times in seen) for name in names}


def _frequency_mhz(cpu: int) -> float | None:
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq").read_text()
        return int(text) / 1e3
    except (OSError, ValueError):
        return None


def _own_cpu_s() -> float:
    """Return the CPU seconds of this process and its living descendants."""
    me = psutil.Process()
    total_s = 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


class _Gpu:
    """One GPU under watch; knows who was on it before any server of ours."""

    def __init__(self, nvml: Any, index: int, *, own_servers: bool) -> None:
        self._nvml, self._own_servers = nvml, own_servers
        self._device = nvml.nvmlDeviceGetHandleByIndex(index)
        self._name = f"GPU {index} ({nvml.nvmlDeviceGetName(self._device)})"
        self._before = frozenset(self._processes())
        self._owners: dict[int, str | None] = {}
        self.begin()

    def begin(self) -> None:
        self._readings: dict[str, list[float]] = {}
        self._reasons: Counter[str] = Counter()
        self._reason_samples = 0
        self._seen: set[int] = set()
        self._energy_mj = self._ask("nvmlDeviceGetTotalEnergyConsumption")

    def sample(self) -> None:
        nvml = self._nvml
        utilization = self._ask("nvmlDeviceGetUtilizationRates")
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        for name, value in (
            ("sm_mhz", self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM)),
            ("memory_mhz", self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM)),
            ("power_mw", self._ask("nvmlDeviceGetPowerUsage")),
            ("celsius", self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)),
            ("percent", None if utilization is None else utilization.gpu),
            ("memory_bytes", None if memory is None else memory.used),
        ):
            if value is not None:
                self._readings.setdefault(name, []).append(float(value))
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if bits is not None:
            self._reason_samples += 1
            self._reasons.update(name for name, bit, _ in _REASONS if bits & getattr(nvml, bit))
        self._seen.update(self._processes())

    def telemetry(self) -> GpuTelemetry:
        energy_mj = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        strangers = {pid: self._stranger(pid) for pid in sorted(self._seen)}
        percent, memory = self._mean("percent"), self._readings.get("memory_bytes")
        power_mw = self._mean("power_mw")
        known_energy = energy_mj is not None and self._energy_mj is not None
        return GpuTelemetry(
            name=self._name,
            used=not self._own_servers or any(who is None for who in strangers.values()),
            sm_clock_mhz=self._mean("sm_mhz"),
            min_sm_clock_mhz=min(self._readings.get("sm_mhz", [0.0])) or None,
            memory_clock_mhz=self._mean("memory_mhz"),
            power_w=None if power_mw is None else round(power_mw / 1e3, 1),
            energy_j=round((energy_mj - self._energy_mj) / 1e3, 3) if known_energy else None,
            max_temperature_c=max(self._readings.get("celsius", [0.0])) or None,
            utilization=None if percent is None else round(percent / 100, 3),
            max_memory_bytes=int(max(memory)) if memory else None,
            reasons={n: round(c / self._reason_samples, 4) for n, c in self._reasons.items()},
            shared_with=tuple(who for who in strangers.values() if who is not None),
        )

    def _stranger(self, pid: int) -> str | None:
        """Return who a process on the GPU is, None where it is one of ours."""
        if pid not in self._owners:
            self._owners[pid] = self._find_stranger(pid)
        return self._owners[pid]

    def _find_stranger(self, pid: int) -> str | None:
        if not self._own_servers:
            return None
        try:
            process = psutil.Process(pid)
            if os.getpid() in (pid, *(parent.pid for parent in process.parents())):
                return None
            return f"process {pid} ({process.name()})"
        except psutil.Error:
            # In a container NVML may give the host's numbers, which say nothing here, and a
            # server of ours may have ended: then what was there before we started is a stranger.
            return f"process {pid}" if pid in self._before else None

    def _processes(self) -> list[int]:
        return [p.pid for p in self._ask("nvmlDeviceGetComputeRunningProcesses") or ()]

    def _mean(self, name: str) -> float | None:
        values = self._readings.get(name)
        return round(fmean(values), 1) if values else None

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Return what NVML says, None for what this device does not support."""
        try:
            return getattr(self._nvml, name)(self._device, *arguments)
        except self._nvml.NVMLError:
            return None
