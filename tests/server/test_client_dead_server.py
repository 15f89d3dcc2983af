"""A Triton that is killed while it is being asked ends the measurement at once, and says so."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hpsbench.config import ServerConfig
from hpsbench.errors import ServerDied
from hpsbench.load.client import connect
from hpsbench.load.interleaved import Interleaved, Participant
from hpsbench.load.open_loop import OpenLoop
from hpsbench.load.schedule import poisson_arrivals
from hpsbench.servers.triton import running_triton

pytestmark = pytest.mark.server

REPOSITORY = Path(__file__).parent / "repository"
INPUTS = {
    "categorical_features": np.zeros((1, 26), np.int32),
    "numerical_features": np.zeros((1, 13), np.float32),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_killed_while_it_is_asked_ends_the_run_at_once(
    tmp_path: Path, protocol: str
) -> None:
    killed_at = [0.0]
    with (
        running_triton(REPOSITORY, ["tiny"], ServerConfig(), log=tmp_path / "log") as server,
        connect(server.endpoint("tiny"), INPUTS, protocol=protocol) as client,
    ):
        sent = [0]

        def send() -> None:
            sent[0] += 1
            if sent[0] == 30:
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                killed_at[0] = time.monotonic()
            client.send()

        loop = Interleaved(rounds=5, warmup_requests=5, min_requests=1000, measure_s=60, seed=1)
        with pytest.raises(ServerDied):
            loop.run([Participant(name="tiny", send=send)], server.check_alive)
        assert time.monotonic() - killed_at[0] < 5
    assert sent[0] < 30 + 10


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_killed_under_open_loop_load_ends_the_run_at_once(
    tmp_path: Path, protocol: str
) -> None:
    killed_at = [0.0]
    with (
        running_triton(REPOSITORY, ["tiny"], ServerConfig(), log=tmp_path / "log") as server,
        connect(server.endpoint("tiny"), INPUTS, protocol=protocol) as client,
    ):
        pid = server.pid
        assert pid is not None

        def kill() -> None:
            os.kill(pid, signal.SIGKILL)
            killed_at[0] = time.monotonic()

        timer = threading.Timer(1, kill)
        timer.start()
        loop = OpenLoop(arrivals_ns=poisson_arrivals(100, 60, seed=1), connections=16)
        with pytest.raises(ServerDied):
            loop.run(client.another, server.check_alive)
        assert time.monotonic() - killed_at[0] < 5
        timer.join()
