"""A real Triton that is not well: each way to fail is told apart, at once, with Triton's words."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpsbench.config import ServerConfig
from hpsbench.errors import ServerDied, ServerError, ServerNotReady
from hpsbench.servers import http, launch
from hpsbench.servers.triton import running_triton

pytestmark = pytest.mark.server


def start(repository: Path, model: str, log: Path, timeout_s: float = 30.0) -> None:
    config = ServerConfig(startup_timeout_s=timeout_s)
    with running_triton(repository, [model], config, log=log):
        pass


def test_a_model_that_raises_is_quoted(model_repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"'raises'.*ValueError: table x has 3 rows, not 4"):
        start(model_repository, "raises", tmp_path / "log")


def test_a_model_that_is_not_there_is_named(model_repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="'nobody': model not found in any model repository"):
        start(model_repository, "nobody", tmp_path / "log")


def test_a_triton_that_dies_while_it_starts_is_told_at_once(
    model_repository: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(
        ServerDied, match=r"killed by signal 9 before it had loaded kills_triton(?s:.)*loading"
    ):
        start(model_repository, "kills_triton_at_start", tmp_path / "log")
    assert time.monotonic() - started < 10


def test_a_model_that_is_never_ready_ends_at_the_deadline(
    model_repository: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(
        ServerNotReady,
        match=r"not ready after [12] s, loading never_ready; (?s:.)*loading: never_ready",
    ) as caught:
        start(model_repository, "never_ready", tmp_path / "log", timeout_s=1)
    assert time.monotonic() - started < 5
    assert "servers.startup_timeout_s" in caught.value.hint


def test_a_triton_that_dies_at_work_is_told_when_it_is_asked(
    model_repository: Path, tmp_path: Path
) -> None:
    model = "kills_triton_at_work"
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}'
    log = tmp_path / "log"
    with running_triton(model_repository, [model], ServerConfig(), log=log) as server:
        server.check_alive()
        with contextlib.suppress(*http.CONNECTION_ERRORS):
            http.post(server.http, f"/v2/models/{model}/infer", body, timeout_s=10)
        # A connection breaks before the kernel has ended the process.
        deadline = time.monotonic() + 10
        while server.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        # Triton prints a backtrace of a SIGSEGV, and exits or dies by it.
        with pytest.raises(ServerDied, match=r"while it was needed; its last lines:\n(?s:.)+"):
            server.check_alive()
        with pytest.raises(ServerDied):
            server.statistics(model)
        with pytest.raises(ServerDied):
            server.load(model)
        with pytest.raises(ServerDied):
            server.models()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def take_port(monkeypatch: pytest.MonkeyPatch, taken: int, service: str, attempts: int) -> None:
    """Let Triton try `taken` for a service in its first attempts; its other ports are free."""
    free = launch.held_port
    turns = itertools.product(range(attempts), ("http", "grpc", "metrics"))

    @contextlib.contextmanager
    def port() -> Iterator[int]:
        _, turn = next(turns, (0, ""))
        with free() as number:
            yield taken if turn == service else number

    monkeypatch.setattr(launch, "held_port", port)


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_a_port_that_was_taken_meanwhile_is_replaced(
    tmp_path: Path, taken_port: int, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_port(monkeypatch, taken_port, service, attempts=1)
    log = tmp_path / "log"
    repository = tmp_path / "empty"
    repository.mkdir()
    with running_triton(repository, [], ServerConfig(), log=log) as server:
        assert f"127.0.0.1:{taken_port}" not in (server.http, server.grpc, server.metrics)
        assert server.models() == {}
    assert f"Socket '127.0.0.1:{taken_port}' already in use" in log.read_text()


def test_ports_that_are_always_taken_are_an_error_with_the_address(
    model_repository: Path, tmp_path: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_port(monkeypatch, taken_port, "http", attempts=100)
    with (
        pytest.raises(
            ServerError, match=f"found its port taken 4 times, last 127.0.0.1:{taken_port}"
        ),
        running_triton(model_repository, [], ServerConfig(), log=tmp_path / "log"),
    ):
        pass
