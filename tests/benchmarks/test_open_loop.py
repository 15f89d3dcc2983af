"""Does the open loop tell the truth? A real Triton with a fixed service time against theory.

One instance that takes some 2 ms for every request, asked 200 times a second at random, is an
M/D/1 queue: how long each request waits follows from when all of them arrived (Lindley's
recursion). The oracle runs the very arrivals that were sent through it, so chance is the same on
both sides. Requests go out in blocks, each with its own oracle, and the median block decides:
what other programs do to one block does not. (Without the same arrivals 20,000 requests would not
do: the 95% interval of their p99 is 10% wide.) A service time that others stretch is not fixed,
and the queue another one: client and server have real-time priority where the system lets them
(root may), and a busy machine may still miss the target. Takes three minutes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
import pytest

from hpsbench import stats
from hpsbench.config import ServerConfig
from hpsbench.load.client import Client, connect
from hpsbench.load.open_loop import OpenLoop, OpenLoopRun
from hpsbench.load.records import Nanoseconds
from hpsbench.load.schedule import constant_arrivals, poisson_arrivals
from hpsbench.servers.statistics import ModelStatistics
from hpsbench.servers.triton import TritonServer, running_triton

pytestmark = pytest.mark.server

RATE_HZ = 200
BLOCKS, BLOCK_S, WARMUP_S = 11, 10.0, 1.0
#: Slow enough that no request waits for another: what is left is what every request pays.
UNLOADED_HZ, UNLOADED_S = 40, 3.0
MAX_ERROR = 0.05

MODEL = "fixed"
#: Sleeps for most of its time, because a busy machine wakes a sleeper sooner than it lets anybody
#: compute for 2 ms, and looks at the clock for the rest.
MODEL_PY = """\
import ctypes
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, arguments):
        ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: wake on time

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        until = time.perf_counter() + 0.0019
        time.sleep(0.0018)
        while time.perf_counter() < until:
            pass
        x = pb_utils.get_input_tensor_by_name(request, "x")
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy())])
"""
CONFIG = f"""\
name: "{MODEL}"
backend: "python"
max_batch_size: 0
input [{{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block beside its oracle, nanoseconds: `sojourn_ns` of what was sent, in order.

    `overhead_ns` is what an unloaded request took beyond its service, just before the block.
    """

    run: OpenLoopRun
    sojourn_ns: Nanoseconds
    service_ns: float
    overhead_ns: float

    def oracle_ns(self, q: float, overhead_ns: float) -> float:
        return stats.percentile_ns(self.sojourn_ns, q) + overhead_ns

    def error(self, q: float, overhead_ns: float) -> float:
        latency_ns = stats.percentile_ns(self.run.records.latencies_ns, q)
        return latency_ns / self.oracle_ns(q, overhead_ns) - 1


def sojourns(arrivals_ns: Nanoseconds, service_ns: float) -> Nanoseconds:
    """Return how long each request stays at a single server with this service time."""
    surplus = np.concatenate([[0.0], service_ns - np.diff(arrivals_ns)])
    walk = np.cumsum(surplus)
    waits = walk - np.minimum.accumulate(walk)
    return np.rint(waits + service_ns).astype(np.int64)


def theory_ns(utilisation: float, service_ns: float, q: float) -> float:
    """Return the `q`-th percentile of the sojourn in an M/D/1 queue, by Erlang's formula."""

    def wait_is_at_most(wait: float) -> float:
        rate = utilisation
        terms = [
            np.exp(rate * (wait - k)) * (-rate * (wait - k)) ** k / _factorial(k)
            for k in range(int(wait) + 1)
        ]
        return float((1 - rate) * sum(terms))

    low, high = 0.0, 100.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if wait_is_at_most(middle) < q / 100 else (low, middle)
    return (1 + low) * service_ns


def _factorial(k: int) -> float:
    return float(np.prod(np.arange(1, k + 1, dtype=float)))


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[bool]:
    """Give this thread, and all that it starts, real-time priority; yields whether it could."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        yield False
        return
    yield True
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="module")
def server(undisturbed: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("open-loop")
    version = folder / "models" / MODEL / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL_PY)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    log = folder / "triton.log"
    with running_triton(folder / "models", [MODEL], ServerConfig(), log=log) as running:
        yield running


def settled(server: TritonServer, count: int) -> ModelStatistics:
    """Return the counters once they hold `count` requests: Triton counts after it has answered."""
    deadline = time.monotonic() + 5
    while (seen := server.statistics(MODEL)).success_count < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return seen


def ask(server: TritonServer, client: Client, loop: OpenLoop) -> tuple[OpenLoopRun, float]:
    """Return what became of the requests, and Triton's mean service time, nanoseconds."""
    before = server.statistics(MODEL)
    run = loop.run(client.another, server.check_alive)
    assert run.records.failed == 0
    counted = settled(server, before.success_count + len(loop.arrivals_ns)) - before
    busy_ns = counted.compute_input_ns + counted.compute_infer_ns + counted.compute_output_ns
    return run, busy_ns / counted.success_count


def measure(server: TritonServer, client: Client, seed: int) -> Block:
    """Send a block, with unloaded requests before it, and put the oracle beside it."""
    unloaded = OpenLoop(arrivals_ns=constant_arrivals(UNLOADED_HZ, UNLOADED_S), connections=4)
    alone, alone_ns = ask(server, client, unloaded)
    # Triton gives the mean of the service, so it is taken from the mean of the same requests.
    overhead_ns = float(np.mean(alone.records.latencies_ns)) - alone_ns
    arrivals_ns = poisson_arrivals(RATE_HZ, WARMUP_S + BLOCK_S, seed=seed)
    warmup_ns = int(WARMUP_S * 1e9)
    loop = OpenLoop(arrivals_ns=arrivals_ns, warmup_ns=warmup_ns)
    run, service_ns = ask(server, client, loop)
    sojourn_ns = sojourns(arrivals_ns, service_ns)[arrivals_ns >= warmup_ns]
    return Block(
        run=run,
        sojourn_ns=sojourn_ns,
        service_ns=service_ns,
        overhead_ns=overhead_ns,
    )


def test_p99_of_the_open_loop_is_that_of_the_queue(
    server: TritonServer, undisturbed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with connect(server.endpoint(MODEL), {"x": np.ones(4, np.float32)}) as client:
        blocks = [measure(server, client, seed) for seed in range(BLOCKS)]
    with capsys.disabled():
        priority = "real-time" if undisturbed else "usual"
        print(f"\n{RATE_HZ} requests/s, blocks of {BLOCK_S:g} s, {priority} priority; ms:")
        print("service  overhead  send p99      p50      p99   oracle    error   p50 error")
        overhead_ns = median(block.overhead_ns for block in blocks)
        for block in blocks:
            print(line(block, overhead_ns))
        errors = {q: median(b.error(q, overhead_ns) for b in blocks) for q in (50, 90, 99)}
        print("median errors: " + ", ".join(f"p{q} {error:+.1%}" for q, error in errors.items()))
    requests = sum(len(block.run.records) for block in blocks)
    assert requests > 0.95 * BLOCKS * BLOCK_S * RATE_HZ
    assert abs(errors[99]) <= MAX_ERROR


def test_counting_from_the_send_over_few_connections_would_hide_the_queue(
    server: TritonServer,
) -> None:
    arrivals_ns = poisson_arrivals(RATE_HZ, BLOCK_S, seed=1)
    with connect(server.endpoint(MODEL), {"x": np.ones(4, np.float32)}) as client:
        run, service_ns = ask(server, client, OpenLoop(arrivals_ns=arrivals_ns, connections=1))
    records = run.records
    expected_ns = stats.percentile_ns(sojourns(arrivals_ns, service_ns), 99)
    assert np.percentile(records.received_ns - records.sent_ns, 99) < 0.7 * expected_ns
    assert stats.percentile_ns(records.latencies_ns, 99) > 0.95 * expected_ns


def line(block: Block, overhead_ns: float) -> str:
    records = block.run.records
    late_ms = np.percentile(records.sent_ns - records.scheduled_ns, 99) / 1e6
    p50, p99 = (stats.percentile_ns(records.latencies_ns, q) / 1e6 for q in (50, 99))
    oracle = block.oracle_ns(99, overhead_ns) / 1e6
    return (
        f"{block.service_ns / 1e6:7.3f}  {block.overhead_ns / 1e6:8.3f}  {late_ms:8.3f} "
        f"{p50:8.3f} {p99:8.3f} {oracle:8.3f} {block.error(99, overhead_ns):+8.1%}  "
        f"{block.error(50, overhead_ns):+8.1%}"
        + (f"  INVALID: {block.run.invalid}" if block.run.invalid else "")
    )


@pytest.mark.parametrize("utilisation", [0.2, 0.4, 0.6])
def test_the_oracle_is_the_queue_of_theory(utilisation: float) -> None:
    service_ns = 2_000_000
    arrivals_ns = poisson_arrivals(utilisation / service_ns * 1e9, 200, seed=1)
    found = stats.open_loop_percentile(sojourns(arrivals_ns, service_ns), 99)
    expected_ns = theory_ns(utilisation, service_ns, 99)
    assert found.low_ns is not None
    assert found.high_ns is not None
    assert found.low_ns <= expected_ns <= found.high_ns
    assert found.high_ns / found.low_ns < 1.3
