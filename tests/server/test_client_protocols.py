"""Our clients against a real Triton, tritonclient's beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.http

from hpsbench.config import ServerConfig
from hpsbench.errors import RequestError, RequestTimeout
from hpsbench.load.client import connect
from hpsbench.load.closed_loop import ClosedLoop
from hpsbench.load.interleaved import Interleaved, Participant
from hpsbench.load.open_loop import OpenLoop
from hpsbench.load.schedule import poisson_arrivals
from hpsbench.measurements import measure
from hpsbench.servers.triton import TritonServer, running_triton

pytestmark = pytest.mark.server

REPOSITORY = Path(__file__).parent / "repository"
PROTOCOLS = ("http", "grpc")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    with running_triton(REPOSITORY, ["tiny"], ServerConfig(), log=log) as server:
        yield server


def batch(size: int) -> dict[str, np.ndarray]:
    return {
        "categorical_features": np.arange(size * 26, dtype=np.int32).reshape(size, 26),
        "numerical_features": np.full((size, 13), 0.5, np.float32),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [1, 7, 40_000])
def test_answers_are_those_of_tritonclient(triton: TritonServer, protocol: str, size: int) -> None:
    inputs = batch(size)
    reference = tritonclient.http.InferenceServerClient(triton.endpoint("tiny").http)
    tensors = []
    for name, array in inputs.items():
        datatype = "INT32" if array.dtype == np.int32 else "FP32"
        tensor = tritonclient.http.InferInput(name, list(array.shape), datatype)
        tensors.append(tensor.set_data_from_numpy(array))
    expected = reference.infer("tiny", tensors).as_numpy("output")
    reference.close()
    with connect(triton.endpoint("tiny"), inputs, protocol=protocol) as client:
        for _ in range(3):
            client.send()
            np.testing.assert_array_equal(client.infer()["output"], expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_named_outputs_are_asked_for(triton: TritonServer, protocol: str) -> None:
    endpoint = triton.endpoint("tiny")
    with connect(endpoint, batch(2), protocol=protocol, outputs=["output"]) as client:
        assert list(client.infer()) == ["output"]
    with (
        connect(endpoint, batch(2), protocol=protocol, outputs=["click"]) as client,
        pytest.raises(RequestError, match="click"),
    ):
        client.send()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tritons_message_is_kept_and_the_connection_goes_on(
    triton: TritonServer, protocol: str
) -> None:
    bad = batch(1)
    bad["categorical_features"] -= 1
    with connect(triton.endpoint("tiny"), [bad, batch(1)], protocol=protocol) as client:
        with pytest.raises(RequestError, match=r"model tiny at .*: negative key"):
            client.send()
        client.send()
    wrong = {name: array[:, :5] for name, array in batch(1).items()}
    with (
        connect(triton.endpoint("tiny"), wrong, protocol=protocol) as client,
        pytest.raises(RequestError, match="unexpected shape for input"),
    ):
        client.send()


def test_triton_counts_just_what_interleaving_sent(triton: TritonServer) -> None:
    endpoint = triton.endpoint("tiny")
    loop = Interleaved(rounds=5, warmup_requests=5, min_requests=50, measure_s=0.05, seed=1)
    with connect(endpoint, batch(1)) as http, connect(endpoint, batch(1), protocol="grpc") as grpc:
        served = {"endpoint": endpoint, "statistics": triton.statistics}
        runs = loop.run(
            [
                Participant(name="http", send=http.send, **served),
                Participant(name="grpc", send=grpc.send, **served),
            ],
            triton.check_alive,
        )
    measurement = measure(
        [runs], benchmark="b", variant="grpc", batch_size=1, reference="http", min_requests=50
    )
    assert measurement.invalid is None
    (launch,) = measurement.launches
    assert launch.server is not None
    assert 0 < launch.server.total_ns < launch.mean_ns
    assert len(launch.server_rounds) == 5


def test_several_clients_are_answered_at_once(triton: TritonServer) -> None:
    loop = ClosedLoop(concurrency=3, min_requests=60, measure_s=0.05)
    records = loop.run(lambda: connect(triton.endpoint("tiny"), batch(4)), triton.check_alive)
    assert len(records) >= 60
    assert records.failed == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_open_loop_sends_every_request_over_connections_of_its_own(
    triton: TritonServer, protocol: str
) -> None:
    arrivals = poisson_arrivals(100, 2, seed=1)
    before = triton.statistics("tiny").success_count
    with connect(triton.endpoint("tiny"), batch(7), protocol=protocol) as client:
        client.send()  # Triton has accepted its connection then
        assert triton.pid is not None
        alone = len(psutil.Process(triton.pid).net_connections())
        connections = []

        def check() -> None:
            connections.append(len(psutil.Process(triton.pid).net_connections()) - alone)

        timer = threading.Timer(1, check)
        timer.start()
        run = OpenLoop(arrivals_ns=arrivals, connections=5).run(client.another)
        timer.join()
    assert connections == [5]
    assert (len(run.records), run.records.failed) == (len(arrivals), 0)
    deadline = time.monotonic() + 5
    asked = 1 + len(arrivals)
    while triton.statistics("tiny").success_count < before + asked:
        assert time.monotonic() < deadline
    assert triton.statistics("tiny").success_count == before + asked


def test_a_grpc_request_that_takes_too_long_is_a_timeout(triton: TritonServer) -> None:
    endpoint = triton.endpoint("tiny")
    with (  # 16 MB are on their way for longer
        connect(endpoint, batch(100_000), protocol="grpc", timeout_s=1e-3) as client,
        pytest.raises(RequestTimeout, match=r"did not answer within 0\.001 s"),
    ):
        client.send()
