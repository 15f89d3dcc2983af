"""Triton's statistics and metrics, read over one kept connection."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hpsbench.errors import ConfigError, ServerError
from hpsbench.servers import http
from hpsbench.servers.attach import attach, parse_url
from hpsbench.servers.statistics import (
    LookupCount,
    ModelStatistics,
    engines,
    lookup_counts,
    parse_metrics,
    parse_statistics,
    read_metrics,
    read_statistics,
)


def model_stats(version: str, factor: int) -> dict[str, object]:
    stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "name": "m",
        "version": version,
        "inference_count": 32 * factor,
        "execution_count": 2 * factor,
        "inference_stats": {
            stage: {"count": factor * (i + 1), "ns": 100 * factor * (i + 1)}
            for i, stage in enumerate(stages)
        },
    }


ONE_VERSION = ModelStatistics(
    success_count=1,
    fail_count=2,
    execution_count=2,
    inference_count=32,
    queue_ns=300,
    compute_input_ns=400,
    compute_infer_ns=500,
    compute_output_ns=600,
)


class FakeTriton(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connections: list[object]
    #: Answers before the connection is closed without a word, as an idle one may be.
    patience: int

    def setup(self) -> None:
        super().setup()
        self.connections.append(self.client_address)
        self.answered = 0

    def do_GET(self) -> None:
        if self.answered == self.patience:
            self.close_connection = True
            return
        self.answered += 1
        known = {
            "/v2/models/m/stats": (200, {"model_stats": [model_stats("1", 1)]}),
            "/v2/models/x/stats": (400, {"error": "unknown model 'x'"}),
        }
        status, answer = known.get(self.path, (404, {}))
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def handler() -> type[FakeTriton]:
    return type("Handler", (FakeTriton,), {"connections": [], "patience": 1000})


@pytest.fixture
def address(handler: type[FakeTriton]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        yield address
        http.close(address)
        server.shutdown()
        thread.join()


def test_statistics_are_read_over_one_connection(handler: type[FakeTriton], address: str) -> None:
    assert [read_statistics(address, "m") for _ in range(5)] == [ONE_VERSION] * 5
    assert len(handler.connections) == 1


def test_a_connection_that_the_server_closed_is_opened_again(
    handler: type[FakeTriton], address: str
) -> None:
    handler.patience = 2
    assert [read_statistics(address, "m") for _ in range(5)] == [ONE_VERSION] * 5
    assert len(handler.connections) == 3


def test_threads_share_the_connection_in_turn(handler: type[FakeTriton], address: str) -> None:
    answers: list[ModelStatistics] = []
    threads = [
        threading.Thread(target=lambda: answers.append(read_statistics(address, "m")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [ONE_VERSION] * 8
    assert len(handler.connections) == 1


def test_an_unknown_model_is_an_error_in_tritons_words(address: str) -> None:
    with pytest.raises(ServerError, match="no statistics of model 'x': unknown model 'x'"):
        read_statistics(address, "x")


def test_a_server_that_is_gone_is_an_error_with_its_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServerError, match=f"no answer from triton at {address}: .*refused"):
            read_statistics(address, "m")
        with pytest.raises(ServerError, match=f"no answer from triton at {address}"):
            read_metrics(address)
        with pytest.raises(ServerError, match=f"no answer from triton at http://{address}"):
            attach(f"http://{address}")


def test_a_stranger_at_the_url_is_not_taken_for_triton(address: str) -> None:
    with pytest.raises(ServerError, match="is no triton"):
        attach(f"http://{address}")


def test_versions_of_a_model_are_added_up() -> None:
    both = parse_statistics({"model_stats": [model_stats("1", 1), model_stats("2", 3)]})
    assert both.inference_count == 32 * 4
    assert both - ONE_VERSION == ONE_VERSION + ONE_VERSION + ONE_VERSION


def test_metrics_are_named_with_their_labels() -> None:
    text = """\
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.25
nv_model{model="a b",version="1"} 12
nv_cpu_memory_used_bytes 1.5e+09
"""
    assert parse_metrics(text) == {
        'nv_gpu_utilization{gpu_uuid="GPU-1"}': 0.25,
        'nv_model{model="a b",version="1"}': 12.0,
        "nv_cpu_memory_used_bytes": 1.5e9,
    }


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("http://gpu-7:9000", ("gpu-7", 9000)),
        ("http://gpu-7", ("gpu-7", 8000)),
        ("http://127.0.0.1:8000/", ("127.0.0.1", 8000)),
        ("http://[::1]:8000", ("[::1]", 8000)),
    ],
)
def test_host_and_port_of_a_url(url: str, parsed: tuple[str, int]) -> None:
    assert parse_url(url) == parsed


@pytest.mark.parametrize(
    "url", ["grpc://h:8001", "https://h:8000", "http://h:8000/v2", "http://h:port", "http://:80"]
)
def test_another_kind_of_url_is_refused(url: str) -> None:
    with pytest.raises(
        ConfigError, match="is no address of Triton's HTTP service: http://HOST:PORT"
    ):
        parse_url(url)


def test_models_tell_what_runs_them_in_a_metric() -> None:
    text = (
        'hpsbench_engine{engine="ONNX Runtime 1.32.0, CPU",model="a"} 1\n'
        'hpsbench_engine{model="b",engine="TensorFlow 2.21.0, GPU"} 1\n'
        'nv_inference_count{model="c"} 3\n'
    )
    assert engines(parse_metrics(text)) == {
        "a": "ONNX Runtime 1.32.0, CPU",
        "b": "TensorFlow 2.21.0, GPU",
    }


def test_lookups_are_counted_by_model_and_tier_over_all_tables() -> None:
    text = """
hpsbench_lookup_keys{model="hps_tf",table="a",tier="GPU 0 cache"} 100
hpsbench_lookup_keys{model="hps_tf",table="b",tier="GPU 0 cache"} 50
hpsbench_lookup_hits{model="hps_tf",table="a",tier="GPU 0 cache"} 90
hpsbench_lookup_hits{model="hps_tf",table="b",tier="GPU 0 cache"} 50
hpsbench_lookup_keys{model="other",table="a",tier="host table"} 7
hpsbench_engine{model="hps_tf",engine="TensorFlow"} 1
"""
    counted = lookup_counts(parse_metrics(text))
    assert counted == {
        "hps_tf": {"GPU 0 cache": LookupCount(keys=150, hits=140)},
        "other": {"host table": LookupCount(keys=7)},
    }
    later = LookupCount(keys=170, hits=150) - counted["hps_tf"]["GPU 0 cache"]
    assert later == LookupCount(keys=20, hits=10)
