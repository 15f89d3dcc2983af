"""The GPUs while something was measured, as NVML tells of them: what held them back, who used them.

A throttled or a shared GPU makes a measurement invalid: its clocks are not those that the baseline
was measured at, and no reference that runs beside it divides that out of each kernel alike.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import psutil

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

    @property
    def problem(self) -> str | None:
        """Why what was measured meanwhile must not count, None where it may."""
        if not self.used:
            return None
        for reason in _THROTTLED:
            share = self.reasons.get(reason, 0.0)
            if share:
                return f"{self.name} was throttled in {share:.0%} of the samples: {reason}"
        if self.shared_with:
            return f"{self.name} was shared with {', '.join(self.shared_with)}"
        return None


@contextlib.contextmanager
def gpu_samplers(*, nvml: Any = None, own_servers: bool) -> Iterator[Sequence[GpuSampler]]:
    """Yield a sampler of each GPU of this machine, none where there is no driver.

    `nvml` is the module pynvml unless given. Without `own_servers` somebody else runs the servers,
    so nobody on a GPU is a stranger.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield ()
        return
    try:
        count = nvml.nvmlDeviceGetCount()
        yield [GpuSampler(nvml, index, own_servers=own_servers) for index in range(count)]
    finally:
        nvml.nvmlShutdown()


class GpuSampler:
    """One GPU under watch; knows who was on it before any server of ours."""

    def __init__(self, nvml: Any, index: int, *, own_servers: bool) -> None:
        self._nvml, self._own_servers = nvml, own_servers
        self._device = nvml.nvmlDeviceGetHandleByIndex(index)
        self._name = f"GPU {index} ({nvml.nvmlDeviceGetName(self._device)})"
        self._before = frozenset(self._processes())
        self._owners: dict[int, str | None] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what was sampled before, and begin anew."""
        self._readings: dict[str, list[float]] = {}
        self._reasons: Counter[str] = Counter()
        self._reason_samples = 0
        self._seen: set[int] = set()
        self._energy_mj = self._ask("nvmlDeviceGetTotalEnergyConsumption")

    def sample(self) -> None:
        """Note what only a moment shows: clocks, power, heat, memory, and who is on the GPU."""
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
        """Return what happened since `begin`."""
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
