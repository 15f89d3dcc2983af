"""A real Triton that is well: addresses, models, statistics, and its end."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from hpsbench.config import ServerConfig
from hpsbench.errors import RequestError, ServerDied, ServerError
from hpsbench.servers import http
from hpsbench.servers.attach import attach
from hpsbench.servers.probe import (
    PROBE_MODEL,
    check_probe_model,
    probe_triton,
    write_probe_model,
)
from hpsbench.servers.statistics import ModelStatistics
from hpsbench.servers.triton import TritonServer, running_triton

pytestmark = pytest.mark.server


def infer(server: TritonServer, values: list[float]) -> tuple[int, bytes]:
    tensor = {"name": "x", "shape": [len(values)], "datatype": "FP32", "data": values}
    body = json.dumps({"inputs": [tensor]}).encode()
    return http.post(server.http, f"/v2/models/{PROBE_MODEL}/infer", body, timeout_s=10)


def settled(server: TritonServer, count: int) -> ModelStatistics:
    """Return the probe's statistics once they hold `count` requests: Triton counts afterwards."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if server.statistics(PROBE_MODEL).success_count >= count:
            break
        time.sleep(0.01)
    # More than were sent would come late as well.
    time.sleep(0.1)
    return server.statistics(PROBE_MODEL)


def test_every_service_answers_on_loopback_only(probe_server: TritonServer) -> None:
    for address in (probe_server.http, probe_server.grpc, probe_server.metrics):
        assert address is not None
        host, port = address.split(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=5).close()
        # The whole of 127/8 is this machine: what listens everywhere would answer here as well.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", int(port)), timeout=5)


def test_a_model_answers_where_its_endpoint_says(probe_server: TritonServer) -> None:
    import tritonclient.grpc as triton_grpc

    endpoint = probe_server.endpoint(PROBE_MODEL)
    assert endpoint.timed_models == (PROBE_MODEL,)
    assert endpoint.http == probe_server.http
    assert probe_server.endpoint("e", ["a", "b"]).timed_models == ("a", "b")
    assert endpoint.grpc is not None
    with triton_grpc.InferenceServerClient(endpoint.grpc) as client:
        assert client.is_model_ready(endpoint.model)


def test_statistics_move_by_exactly_the_requests_sent(probe_server: TritonServer) -> None:
    before = settled(probe_server, 0)
    for _ in range(7):
        assert infer(probe_server, [1.0, 2.0])[0] == 200
    moved = settled(probe_server, before.success_count + 7) - before
    assert (moved.success_count, moved.fail_count) == (7, 0)
    assert (moved.inference_count, moved.execution_count) == (7, 7)
    assert moved.compute_infer_ns > 0
    assert moved.compute_input_ns > 0
    assert moved.queue_ns > 0


def test_metrics_tell_of_the_processor_and_the_requests(probe_server: TritonServer) -> None:
    metrics = probe_server.server_metrics()
    assert 0 <= metrics["nv_cpu_utilization"] <= 1
    assert f'nv_inference_count{{model="{PROBE_MODEL}",version="1"}}' in metrics


def test_statistics_of_an_unknown_model_are_an_error(probe_server: TritonServer) -> None:
    with pytest.raises(ServerError, match="no statistics of model 'nobody'"):
        probe_server.statistics("nobody")


def test_a_model_is_unloaded_and_loaded_again_with_fresh_counters(
    probe_server: TritonServer,
) -> None:
    infer(probe_server, [1.0])
    probe_server.unload(PROBE_MODEL)
    deadline = time.monotonic() + 10
    while probe_server.models()[PROBE_MODEL] != "UNAVAILABLE: unloaded":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert infer(probe_server, [1.0])[0] != 200
    probe_server.load(PROBE_MODEL)
    assert probe_server.models()[PROBE_MODEL] == "READY"
    check_probe_model(probe_server)
    assert settled(probe_server, 1).success_count == 1


def test_a_model_that_cannot_be_loaded_later_is_an_error_with_its_reason(
    probe_server: TritonServer,
) -> None:
    with pytest.raises(ServerError, match=r"could not load 'raises': .*table x has 3 rows, not 4"):
        probe_server.load("raises")
    assert probe_server.is_alive()
    check_probe_model(probe_server)


def test_a_running_server_can_be_attached_to_and_goes_on(
    probe_server: TritonServer, tmp_path: Path
) -> None:
    config = ServerConfig(triton=f"http://{probe_server.http}")
    log = tmp_path / "log"
    with running_triton(tmp_path, [PROBE_MODEL], config, log=log) as attached:
        assert (attached.pid, attached.log) == (None, None)
        assert attached.is_alive()
        check_probe_model(attached)
        assert isinstance(attached.statistics(PROBE_MODEL), ModelStatistics)
    check_probe_model(probe_server)
    assert probe_triton(config, tmp_path).version == "2.51.0"


def test_grpc_and_metrics_are_found_beside_the_url(probe_server: TritonServer) -> None:
    # The shared server's ports are not in a row: look where they are, one at a time.
    from hpsbench.servers import attach as module

    assert probe_server.grpc is not None
    assert probe_server.metrics is not None
    host, port = probe_server.grpc.split(":")
    assert module._speaks_http2(host, int(port))
    assert module._has_metrics(probe_server.metrics)
    http_port = int(probe_server.http.split(":")[1])
    assert not module._speaks_http2(host, http_port)
    assert not module._has_metrics(probe_server.http)
    assert attach(f"http://{probe_server.http}").http == probe_server.http


def test_models_missing_at_a_url_are_named_with_those_that_are_there(
    probe_server: TritonServer, tmp_path: Path
) -> None:
    config = ServerConfig(triton=f"http://{probe_server.http}")
    wanted = [PROBE_MODEL, "hps_tf", "raises"]
    with (
        pytest.raises(ServerError, match=r"has not ready: hps_tf, raises; it has: .*READY"),
        running_triton(tmp_path, wanted, config, log=tmp_path / "log"),
    ):
        pass


def test_servers_run_side_by_side_and_apart(
    probe_server: TritonServer, model_repository: Path, tmp_path: Path
) -> None:
    before = settled(probe_server, 0)
    log = tmp_path / "log"
    with running_triton(model_repository, [PROBE_MODEL], ServerConfig(), log=log) as other:
        assert other.pid != probe_server.pid
        infer(other, [1.0])
        assert settled(other, 1).success_count == 1
    assert not other.is_alive()
    assert probe_server.statistics(PROBE_MODEL) == before
    check_probe_model(probe_server)
    with pytest.raises(ServerDied, match="exited with 0"):
        other.check_alive()
    other.stop()


def test_the_probe_proves_an_answer(tmp_path: Path) -> None:
    probe = probe_triton(ServerConfig(), tmp_path)
    assert probe.version == "2.51.0"
    assert probe.ready_s > 0


def test_a_wrong_answer_fails_the_probe(tmp_path: Path) -> None:
    write_probe_model(tmp_path)
    model = tmp_path / PROBE_MODEL / "1" / "model.py"
    model.write_text(model.read_text().replace("x + 1", "x[:0]"))
    log = tmp_path / "log"
    with (
        running_triton(tmp_path, [PROBE_MODEL], ServerConfig(), log=log) as server,
        pytest.raises(RequestError, match=r"with \[\], and not with \[2\.0, 3\.5, -2\.0\]"),
    ):
        check_probe_model(server)
