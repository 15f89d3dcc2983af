"""What Triton's traces cost a small request: why the stages have a pass of their own."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from hpsbench import stats
from hpsbench.config import ServerConfig
from hpsbench.load.client import connect
from hpsbench.load.closed_loop import ClosedLoop
from hpsbench.servers.triton import running_triton
from tests.benchmarks.test_client_speed import INPUTS, REPOSITORY

pytestmark = pytest.mark.server

BLOCKS, REQUESTS = 40, 100
MAX_RATIO = 1.25


def test_tracing_costs_less_than_a_quarter_of_a_small_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = ClosedLoop(warmup_requests=5, min_requests=REQUESTS, measure_s=1e-9)
    order = random.Random(1)
    p50_ns: dict[bool, list[int]] = {False: [], True: []}
    with running_triton(REPOSITORY, ["tiny"], ServerConfig(), log=tmp_path / "log") as server:
        tracing = server.tracing()
        assert tracing is not None
        with connect(server.endpoint("tiny"), INPUTS) as client:

            def ask() -> int:
                return stats.percentile_ns(loop.run(client.another).latencies_ns, 50)

            def ask_traced() -> int:
                with tracing.on():
                    return ask()

            how: dict[bool, Callable[[], int]] = {False: ask, True: ask_traced}
            for _ in range(BLOCKS):
                for traced in order.sample([False, True], 2):
                    p50_ns[traced].append(how[traced]())
            # Off is off: the last traced pass has ended, and nothing is written any more.
            assert len(tracing.read(at_least=REQUESTS)) >= REQUESTS
    ratio = median(on / off for off, on in zip(p50_ns[False], p50_ns[True], strict=True))
    plain, traced_us = (median(p50_ns[traced]) / 1e3 for traced in (False, True))
    with capsys.disabled():
        print(f"\np50 of a small request {plain:.1f} us, traced {traced_us:.1f} us: {ratio:.3f} x")
    assert ratio <= MAX_RATIO
