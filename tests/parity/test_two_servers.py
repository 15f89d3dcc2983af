"""Two Tritons at once, with the same models, on one machine and on one GPU of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pynvml
import pytest
from test_served_variants import a_batch, tolerance

from hpsbench.models.build import build_repository
from hpsbench.models.variants import Variant, select_variants
from hpsbench.presets import load_suite
from hpsbench.serving import ServedVariants, served_variants
from hpsbench.telemetry import Telemetry, machine_watch

pytestmark = pytest.mark.server

ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Two servers that were asked at once, what the machine did then, and who was on it before."""

    servers: list[ServedVariants]
    telemetry: Telemetry
    on_gpu_before: set[str]


def compute_processes() -> set[str]:
    """Return the processes on the first GPU, named as telemetry names whom it cannot find here."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return set()
    try:
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        return {f"process {process.pid}" for process in running}
    finally:
        pynvml.nvmlShutdown()


@pytest.fixture(scope="module")
def watched(work_folder: Path) -> Iterator[Watched]:
    before = compute_processes()
    suite = load_suite("smoke", ["hps.gpucacheper=1.0"])
    folder = work_folder / "two-servers"
    # Watched before the models are built, which this process may do on the GPU.
    with machine_watch() as watch, contextlib.ExitStack() as stack:
        build = build_repository(suite, select_variants(["hps_tf", "hps_ensemble"], suite), folder)
        with ThreadPoolExecutor(2) as pool:
            starts = [
                pool.submit(
                    stack.enter_context, served_variants(build, log=folder / f"triton-{n}.log")
                )
                for n in range(2)
            ]
        servers = [start.result() for start in starts]
        with watch() as recording:
            ask_at_once(servers)
        assert recording.telemetry is not None
        yield Watched(servers=servers, telemetry=recording.telemetry, on_gpu_before=before)


def ask_at_once(servers: list[ServedVariants]) -> None:
    """Ask every variant of each server from a thread of its own, and compare all answers."""

    def ask(served: ServedVariants, variant: Variant, seed: int) -> None:
        batches = [a_batch(served.build.suite, size, seed) for size in (1, 64, 700)]
        with served.client(variant, batches) as client:
            for turn in range(ROUNDS):
                np.testing.assert_allclose(
                    client.infer()["output_1"],
                    served.build.answer(batches[turn % len(batches)]),
                    rtol=0,
                    atol=tolerance(served, variant),
                )

    asked = [(served, variant) for served in servers for variant in served.build.variants]
    with ThreadPoolExecutor(len(asked)) as pool:
        asking = [pool.submit(ask, *pair, seed) for seed, pair in enumerate(asked)]
    for done in asking:
        done.result()


def test_both_answer_right_when_asked_at_once(
    watched: Watched,
) -> None:
    first, second = watched.servers
    assert first.server.pid != second.server.pid
    for served in (first, second):
        for variant in served.build.variants:
            counted = served.server.statistics(variant.timed_models[0])
            assert counted.success_count >= ROUNDS
            assert counted.fail_count == 0


@pytest.mark.gpu
def test_both_have_their_tables_on_the_gpu(
    watched: Watched,
) -> None:
    for served in watched.servers:
        tiers = served.lookups()
        for variant in served.build.variants:
            assert tiers[variant.name]["GPU 0 cache"].keys > 0


@pytest.mark.gpu
def test_a_server_of_ours_is_nobody_else_on_the_gpu(
    watched: Watched,
) -> None:
    gpu = watched.telemetry.gpus[0]
    assert gpu.used
    # Where NVML gives the host's process numbers, earlier tests in this process are strangers.
    assert set(gpu.shared_with) <= watched.on_gpu_before
    assert gpu.max_memory_bytes is not None
    assert gpu.max_memory_bytes > 0
