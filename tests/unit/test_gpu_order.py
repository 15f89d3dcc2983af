"""GPUs are those that CUDA shows, by CUDA's numbers: beside a driver of two GPUs, made for this."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpsbench.hps.native import gpu
from hpsbench.machine import find_gpus

#: The driver's management library: two GPUs, in the order of the PCI bus.
_NVML = """
#include <cstring>
extern "C" {
struct Memory { unsigned long long total, free, used; };
static const char* const kBus[] = {"0000:01:00.0", "0000:02:00.0"};
static const char* const kName[] = {"small", "large"};
int nvmlInitWithFlags(unsigned) { return 0; }
int nvmlShutdown() { return 0; }
int nvmlSystemGetDriverVersion(char* out, unsigned) { std::strcpy(out, "575.1"); return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void** out) { *out = (void*)(i + 1ul); return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** out) {
  for (unsigned long i = 0; i < 2; ++i) {
    if (std::strcmp(bus, kBus[i]) == 0) { *out = (void*)(i + 1); return 0; }
  }
  return 6;  // not found
}
int nvmlDeviceGetName(void* gpu, char* out, unsigned) {
  std::strcpy(out, kName[(unsigned long)gpu - 1]);
  return 0;
}
int nvmlDeviceGetMemoryInfo(void* gpu, Memory* out) {
  const unsigned long long gib = 1ull << 30, number = (unsigned long)gpu;
  *out = {16 * number * gib, 15 * number * gib, number * gib};
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void*, int* major, int* minor) {
  *major = 9; *minor = 0;
  return 0;
}
}
"""

#: CUDA's: what its start says, and the GPUs by its numbers.
_CUDA = """
#include <cstring>
extern "C" {
static const char* const kBus[] = {%(buses)s};
int cuInit(unsigned) { return %(started)d; }
int cuDeviceGetCount(int* count) { *count = sizeof(kBus) / sizeof(*kBus); return 0; }
int cuDeviceGet(int* device, int number) { *device = number; return 0; }
int cuDeviceGetPCIBusId(char* out, int, int device) { std::strcpy(out, kBus[device]); return 0; }
}
"""
_ASK = """
import json
from hpsbench.machine import find_gpus, free_gpu_memory_bytes
gpus = [[gpu.name, gpu.memory_bytes >> 30] for gpu in find_gpus()]
print(json.dumps([gpus, [free >> 30 for free in free_gpu_memory_bytes()]]))
"""
SMALL, LARGE = '"0000:01:00.0"', '"0000:02:00.0"'
NO_DEVICE, BROKEN = 100, 999
ALL = [[["small", 16], ["large", 32]], [15, 30]]


def compile_library(folder: Path, name: str, source: str) -> None:
    (folder / "source.cc").write_text(source)
    command = ["g++", "-shared", "-fPIC", "-w", "source.cc", "-o", name]
    subprocess.run(command, cwd=folder, check=True)


def has_cuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def ask(**variables: str) -> list[Any]:
    """Return the GPUs, name and GiB, and GiB that are free, in a process with these variables."""
    asked = subprocess.run(
        [sys.executable, "-c", _ASK],
        env={**os.environ, **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return list(json.loads(asked.stdout))


@pytest.mark.parametrize(
    ("cuda", "found"),
    [
        ({"buses": f"{LARGE}, {SMALL}", "started": 0}, [[["large", 32], ["small", 16]], [30, 15]]),
        ({"buses": LARGE, "started": 0}, [[["large", 32]], [30]]),
        ({"buses": "0", "started": NO_DEVICE}, [[], []]),
        ({"buses": "0", "started": BROKEN}, ALL),
        (None, ALL),
    ],
    ids=["fastest first", "one is visible", "none is visible", "cuda is broken", "no cuda"],
)
def test_gpus_have_cudas_numbers(
    tmp_path: Path, cuda: dict[str, object] | None, found: list[object]
) -> None:
    compile_library(tmp_path, "libnvidia-ml.so.1", _NVML)
    if cuda is not None:
        compile_library(tmp_path, "libcuda.so.1", _CUDA % cuda)
    elif has_cuda():
        pytest.skip("a CUDA driver is here and would be found; CI has none, and runs it")
    paths = f"{tmp_path}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    assert ask(LD_LIBRARY_PATH=paths) == found


@pytest.mark.gpu
def test_gpus_can_be_hidden() -> None:
    assert ask(CUDA_VISIBLE_DEVICES="") == [[], []]
    gpus, free = ask(CUDA_VISIBLE_DEVICES="0")
    assert gpus == [[find_gpus()[0].name, find_gpus()[0].memory_bytes >> 30]]
    assert 0 <= free[0] <= gpus[0][1]


@pytest.mark.gpu
def test_cuda_counts_as_many_gpus() -> None:
    assert len(find_gpus()) == gpu.count()
