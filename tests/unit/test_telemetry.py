"""A machine under watch: what watching costs, and that all its parts have a say in a problem."""

from __future__ import annotations

import dataclasses
import time

import pynvml

from hpsbench.telemetry import Telemetry, machine_watch, unwatched
from hpsbench.telemetry_gpu import GpuTelemetry
from tests.unit.test_telemetry_gpu import FakeDriver, seen_by
from tests.unit.test_telemetry_host import IDLE_HOST


def test_watching_costs_less_than_a_hundredth_of_a_processor() -> None:
    with machine_watch(interval_s=0.05) as watch, watch() as recording:
        time.sleep(0.6)
    seen = recording.telemetry
    assert seen is not None
    assert seen.samples >= 5
    # Ten times as often as usual.
    assert seen.sampling_cpu_s < 10 * 0.01 * seen.elapsed_s


def test_nobody_watches_unless_asked() -> None:
    with unwatched() as recording:
        pass
    assert recording.telemetry is None


def test_a_machine_without_a_driver_is_watched_too() -> None:
    class NoDriver(FakeDriver):
        def nvmlInit(self) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    with machine_watch(nvml=NoDriver(), interval_s=60) as watch, watch() as recording:
        pass
    assert recording.telemetry is not None
    assert recording.telemetry.gpus == ()
    assert recording.telemetry.samples == 2


def test_a_gpu_s_problem_is_told_before_the_host_s() -> None:
    busy = dataclasses.replace(IDLE_HOST, others=1.0)
    driver = FakeDriver()
    driver.bits = pynvml.nvmlClocksThrottleReasonHwSlowdown
    (throttled,) = seen_by(driver).gpus
    (fine,) = seen_by(FakeDriver()).gpus

    def problem(*gpus: GpuTelemetry) -> str:
        seen = Telemetry(elapsed_s=2.0, samples=2, sampling_cpu_s=0.0, host=busy, gpus=gpus)
        return seen.problem or ""

    assert "throttled" in problem(fine, throttled)
    assert "other processes" in problem(fine)
