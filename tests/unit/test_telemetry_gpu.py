"""GPUs under watch, as a scripted driver tells of them, and a real one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from hpsbench.telemetry import Telemetry, machine_watch
from hpsbench.telemetry_gpu import GpuTelemetry

GIB = 2**30


class FakeDriver:
    """pynvml's constants and errors, and one GPU's answers; an absent one is not supported."""

    def __init__(self, **answers: Any) -> None:
        self.running: list[int] = []
        self.bits = 0
        self.absent: set[str] = set()
        self.energy_mj = 1000
        self.stopped = False
        self.answers = {
            "nvmlDeviceGetClockInfo": lambda kind: 1980 if kind == pynvml.NVML_CLOCK_SM else 2619,
            "nvmlDeviceGetPowerUsage": lambda: 350_000,
            "nvmlDeviceGetTemperature": lambda _: 55,
            "nvmlDeviceGetUtilizationRates": lambda: SimpleNamespace(gpu=80, memory=20),
            "nvmlDeviceGetMemoryInfo": lambda: SimpleNamespace(used=20 * GIB, total=80 * GIB),
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda: self.bits,
            "nvmlDeviceGetTotalEnergyConsumption": self._energy,
            "nvmlDeviceGetComputeRunningProcesses": lambda: [
                SimpleNamespace(pid=pid) for pid in self.running
            ],
            **answers,
        }

    def _energy(self) -> int:
        self.energy_mj += 500
        return self.energy_mj

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDevice"):
            return getattr(pynvml, name)
        if name in self.absent:

            def unsupported(*_: object) -> None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

            return unsupported
        return lambda _device, *arguments: self.answers[name](*arguments)

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.stopped = True

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, device: int) -> str:
        return "NVIDIA Test"


def seen_by(driver: FakeDriver, **options: Any) -> Telemetry:
    with machine_watch(nvml=driver, **options) as watch:
        driver.running = driver.running or [os.getpid()]
        with watch() as recording:
            assert recording.telemetry is None
    assert recording.telemetry is not None
    assert driver.stopped
    return recording.telemetry


def test_what_a_gpu_did_is_summed_up() -> None:
    (gpu,) = seen_by(FakeDriver()).gpus
    assert gpu == GpuTelemetry(
        name="GPU 0 (NVIDIA Test)",
        used=True,
        sm_clock_mhz=1980.0,
        min_sm_clock_mhz=1980.0,
        memory_clock_mhz=2619.0,
        power_w=350.0,
        energy_j=0.5,
        max_temperature_c=55.0,
        utilization=0.8,
        max_memory_bytes=20 * GIB,
        reasons={},
        shared_with=(),
    )


@pytest.mark.parametrize(
    ("bit", "reason", "invalid"),
    [
        ("HwSlowdown", "hardware slowdown", True),
        ("HwThermalSlowdown", "thermal slowdown by hardware", True),
        ("HwPowerBrakeSlowdown", "power brake", True),
        ("SwThermalSlowdown", "thermal slowdown by software", True),
        ("SwPowerCap", "power cap", False),
        ("ApplicationsClocksSetting", "application clocks", False),
    ],
)
def test_a_throttled_gpu_invalidates_and_a_power_cap_is_noted(
    bit: str, reason: str, invalid: bool
) -> None:
    driver = FakeDriver()
    driver.bits = getattr(pynvml, f"nvmlClocksThrottleReason{bit}")
    seen = seen_by(driver)
    assert seen.gpus[0].reasons == {reason: 1.0}
    told = f"GPU 0 (NVIDIA Test) was throttled in 100% of the samples: {reason}"
    assert seen.problem == (told if invalid else None)


def test_a_gpu_that_none_of_our_processes_uses_is_not_judged() -> None:
    driver = FakeDriver()
    driver.bits = pynvml.nvmlClocksThrottleReasonHwSlowdown
    driver.running = [1]
    seen = seen_by(driver)
    assert not seen.gpus[0].used
    assert seen.problem is None


def test_another_process_on_our_gpu_invalidates() -> None:
    driver = FakeDriver()
    with machine_watch(nvml=driver) as watch:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            driver.running = [os.getpid(), child.pid]
            with watch() as ours:
                pass
            driver.running = [child.pid, 1]
            with watch() as shared:
                pass
        finally:
            child.communicate()
    assert ours.telemetry is not None
    assert ours.telemetry.problem is None
    assert shared.telemetry is not None
    assert (shared.telemetry.problem or "").startswith(
        "GPU 0 (NVIDIA Test) was shared with process 1 ("
    )


def test_in_a_container_who_was_there_before_is_the_stranger() -> None:
    unknown, later = 4_194_303, 4_194_302
    driver = FakeDriver()
    driver.running = [unknown]
    with machine_watch(nvml=driver) as watch:
        driver.running = [unknown, later]
        with watch() as recording:
            pass
    assert recording.telemetry is not None
    assert recording.telemetry.gpus[0].shared_with == (f"process {unknown}",)
    assert recording.telemetry.gpus[0].used


def test_servers_that_somebody_else_runs_make_nobody_a_stranger() -> None:
    driver = FakeDriver()
    driver.running = [1]
    seen = seen_by(driver, own_servers=False)
    assert seen.gpus[0].used
    assert seen.problem is None


def test_what_a_driver_does_not_tell_is_left_out() -> None:
    driver = FakeDriver()
    driver.absent = set(driver.answers)
    (gpu,) = seen_by(driver).gpus
    known = {k: v for k, v in dataclasses.asdict(gpu).items() if v is not None}
    assert known == {
        "name": "GPU 0 (NVIDIA Test)",
        "used": False,
        "reasons": {},
        "shared_with": (),
    }


@pytest.mark.gpu
def test_a_real_gpu_is_seen_at_work() -> None:
    import tensorflow as tf

    with machine_watch() as watch, tf.device("/GPU:0"):
        values = tf.random.normal((4096, 4096))
        with watch() as recording:
            until_s = time.monotonic() + 2
            while time.monotonic() < until_s:
                values = tf.linalg.l2_normalize(values @ values)
            float(tf.reduce_sum(values))
    assert recording.telemetry is not None
    gpu = recording.telemetry.gpus[0]
    assert gpu.used
    assert gpu.energy_j is not None
    assert gpu.energy_j > 50
    assert gpu.sm_clock_mhz is not None
    assert gpu.sm_clock_mhz > 500
    assert gpu.utilization is not None
    assert gpu.utilization > 0.3
