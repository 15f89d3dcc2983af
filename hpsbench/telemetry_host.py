"""The CPUs and the memory of the host while something was measured: who used them.

What the kernel counts by itself (CPU time, swap) is read at both ends only.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import psutil

#: The share of this process's CPUs beyond which others' use and stolen time leave no verdict.
BUSY_LIMIT = 0.97
#: The kernel counts CPU time in ticks of 10 ms: shorter than this, shares are chance.
_MIN_JUDGED_S = 1.0

_FREQUENCY_CPUS = 4


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

    def problem(self, elapsed_s: float) -> str | None:
        """Why what was measured in these seconds must not count, None where it may."""
        if self.others + self.steal <= BUSY_LIMIT or elapsed_s < _MIN_JUDGED_S:
            return None
        return (
            f"other processes used {self.others:.0%} of the CPUs, and other machines took "
            f"{self.steal:.0%}: beyond {BUSY_LIMIT:.0%} there is no verdict"
        )


class HostSampler:
    """The CPUs of this process's affinity mask, and the memory of the machine, from now on."""

    def __init__(self) -> None:
        self._cpus = sorted(os.sched_getaffinity(0))
        self._frequencies_mhz: list[float] = []
        self._available_bytes: list[int] = []
        self._loads: list[float] = []
        self._swap = psutil.swap_memory()
        self._times, self._own_s = self._cpu_times(), _own_cpu_s()

    def sample(self) -> None:
        """Note what only a moment shows: frequencies, free memory, load."""
        self._frequencies_mhz += [
            mhz for cpu in self._cpus[:_FREQUENCY_CPUS] if (mhz := _frequency_mhz(cpu)) is not None
        ]
        self._available_bytes.append(psutil.virtual_memory().available)
        self._loads.append(os.getloadavg()[0])

    def telemetry(self) -> HostTelemetry:
        """Return what happened since the sampler was made; at least one sample must be taken."""
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
