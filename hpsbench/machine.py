"""Which machine this is: a class that a fleet shares, and the fingerprint of this very one."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

#: The distributions whose version may change what is measured.
DISTRIBUTIONS = (
    "hpsbench", "tensorflow", "tensorflow-cpu", "keras", "numpy", "nvidia-pytriton",
    "tritonclient", "onnxruntime", "onnxruntime-gpu",
)  # fmt: skip

_CUDA_NO_DEVICE = 100
_BUS_ID_BYTES = 32
_VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}
_BRANDS = ("EPYC", "Threadripper", "Ryzen", "Xeon", "Core")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Runs compare within one `cls`; `fingerprint` is hardware and system, `versions` software."""

    cls: str
    fingerprint: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU, as its driver names it."""

    name: str
    memory_bytes: int
    driver: str
    architecture: str = ""
    """The compute capability as compilers name it: 90 for 9.0."""


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """Return the machine that this process runs on.

    It is classed by its GPU where one is found and TensorFlow can use it, else by its CPU.
    """
    # Imported where they are needed: the parameter server imports this module for its GPUs.
    import psutil

    cpuinfo = _read("/proc/cpuinfo")
    cores = usable_cores(_read("/sys/fs/cgroup/cpu.max"))
    gpus = find_gpus()
    versions = installed_versions()
    fingerprint = {
        "cpu": _field(cpuinfo, "model name") or platform.machine(),
        "cores": str(cores),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "kernel": platform.release(),
        "system": platform.system(),
    }
    if gpus:
        fingerprint["gpu"] = ", ".join(gpu.name for gpu in gpus)
        fingerprint["gpu_memory_gib"] = f"{gpus[0].memory_bytes / 2**30:.1f}"
        fingerprint["gpu_driver"] = gpus[0].driver
    by_gpu = bool(gpus) and "tensorflow-cpu" not in versions
    return Machine(
        cls=gpu_class(gpus[0].name) if by_gpu else cpu_class(cpuinfo, cores),
        fingerprint=fingerprint,
        versions=versions,
    )


def cpu_class(cpuinfo: str, cores: int) -> str:
    """Return `cpu-amd-epyc-fam25-mod17-2c` from the text of /proc/cpuinfo."""
    vendor = _field(cpuinfo, "vendor_id")
    if vendor is not None:
        name = _field(cpuinfo, "model name") or ""
        brand = next((b for b in _BRANDS if re.search(rf"\b{b}\b", name)), "")
        parts = [
            _VENDORS.get(vendor, vendor),
            brand,
            f"fam{_field(cpuinfo, 'cpu family')}",
            f"mod{_field(cpuinfo, 'model')}",
        ]
    elif (implementer := _field(cpuinfo, "CPU implementer")) is not None:
        parts = ["arm", implementer, str(_field(cpuinfo, "CPU part"))]
    else:
        parts = [platform.machine()]
    return slug("-".join(["cpu", *filter(None, parts), f"{cores}c"]))


def gpu_class(name: str) -> str:
    """Return `gpu-nvidia-h100-80gb-hbm3` for `NVIDIA H100 80GB HBM3`."""
    return slug(f"gpu-{name}")


def slug(text: str) -> str:
    """Return `text` in lower case as a folder name, with `-` for what is no letter, digit or _."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")


def usable_cores(cgroup_cpu_max: str = "") -> int:
    """Return the cores this process may use: its affinity, and the quota in a cgroup's cpu.max."""
    cores = len(os.sched_getaffinity(0))
    quota = re.match(r"(\d+) (\d+)", cgroup_cpu_max)
    if quota:
        cores = min(cores, max(1, math.ceil(int(quota[1]) / int(quota[2]))))
    return cores


def free_memory_bytes() -> int:
    """Return what can be had without swapping: the machine's, or less in a limited container."""
    import psutil

    free = int(psutil.virtual_memory().available)
    cgroup = Path("/sys/fs/cgroup")
    try:
        limit, current, stat = (
            (cgroup / name).read_text() for name in ("memory.max", "memory.current", "memory.stat")
        )
    except OSError:
        return free
    return min(free, cgroup_free_bytes(limit, current, stat) or free)


def cgroup_free_bytes(limit: str, current: str, stat: str) -> int | None:
    """Return the bytes left below a cgroup's limit, from its three files; None without a limit."""
    if limit.strip() == "max":
        return None
    # Pages of files that nobody uses are given back before the limit hurts.
    reclaimable = re.search(r"^inactive_file (\d+)", stat, re.MULTILINE)
    left = int(limit) - int(current) + (int(reclaimable[1]) if reclaimable else 0)
    return max(left, 0)


@lru_cache(maxsize=1)
def find_gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that CUDA shows to programs here, by CUDA's numbers.

    So those of CUDA_VISIBLE_DEVICES, in the order of CUDA_DEVICE_ORDER; none without a driver.
    """
    with _nvml() as (pynvml, handles):
        driver = pynvml.nvmlSystemGetDriverVersion() if handles else ""
        return tuple(
            Gpu(
                name=pynvml.nvmlDeviceGetName(handle),
                memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                driver=driver,
                architecture="{}{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
            )
            for handle in handles
        )


def free_gpu_memory_bytes() -> tuple[int, ...]:
    """Return what is free now on each of `find_gpus()`."""
    with _nvml() as (pynvml, handles):
        return tuple(int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles)


@contextmanager
def _nvml() -> Iterator[tuple[Any, list[Any]]]:
    """Yield the driver's library and the GPUs, by CUDA's numbers; none where it cannot be had."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        yield None, []  # without importing what takes longer than loading small tables
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None, []
        return
    try:
        yield pynvml, _handles(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _handles(pynvml: Any) -> list[Any]:
    places = _cuda_bus_ids()
    if places is not None:
        with suppress(pynvml.NVMLError):
            return [pynvml.nvmlDeviceGetHandleByPciBusId(place) for place in places]
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]


def _cuda_bus_ids() -> list[bytes] | None:
    """Return the places of CUDA's GPUs on the PCI bus, None where CUDA cannot tell.

    NVML numbers GPUs in another order, and knows nothing of CUDA_VISIBLE_DEVICES.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    started = cuda.cuInit(0)
    if started == _CUDA_NO_DEVICE:
        return []
    count, device = ctypes.c_int(), ctypes.c_int()
    if started or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return None
    places = []
    for number in range(count.value):
        place = ctypes.create_string_buffer(_BUS_ID_BYTES)
        if cuda.cuDeviceGet(ctypes.byref(device), number) or cuda.cuDeviceGetPCIBusId(
            place, _BUS_ID_BYTES, device
        ):
            return None
        places.append(place.value)
    return places


def installed_versions() -> dict[str, str]:
    """Return the version of Python and of each of `DISTRIBUTIONS` that is installed."""
    from importlib import metadata

    versions = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _field(cpuinfo: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*?)\s*$", cpuinfo, re.MULTILINE)
    return found[1] if found else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError:
        return ""
