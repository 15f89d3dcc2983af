"""What the client itself costs: ours, tritonclient and perf_analyzer on one server in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from hpsbench.config import ServerConfig, environment
from hpsbench.load.client import connect
from hpsbench.load.interleaved import Interleaved, Participant
from hpsbench.load.perf_analyzer import find_or_fetch_perf_analyzer
from hpsbench.servers.endpoint import Endpoint
from hpsbench.servers.triton import running_triton

pytestmark = pytest.mark.server

REPOSITORY = Path(__file__).parent.parent / "server" / "repository"
ALTERNATIONS = 7
WINDOW_S = 0.3
MAX_RATIO = 1.1

INPUTS = {
    "categorical_features": np.arange(26, dtype=np.int32).reshape(1, 26),
    "numerical_features": np.ones((1, 13), np.float32),
}


def test_our_mean_latency_is_at_most_that_of_perf_analyzer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    perf_analyzer = find_or_fetch_perf_analyzer(environment().cache_dir)
    means: dict[str, list[float]] = {"ours": [], "tritonclient": [], "perf_analyzer": []}
    with running_triton(REPOSITORY, ["tiny"], ServerConfig(), log=tmp_path / "log") as server:
        endpoint = server.endpoint("tiny")
        reference = tritonclient.http.InferenceServerClient(endpoint.http)
        with connect(endpoint, INPUTS) as client:
            for _ in range(ALTERNATIONS):
                means["ours"].append(mean_us(client.send))
                means["perf_analyzer"].append(
                    perf_analyzer.measure(endpoint, INPUTS, window_s=WINDOW_S).mean_ns / 1000
                )
                means["tritonclient"].append(mean_us(lambda: plain_send(reference, endpoint)))
        reference.close()
    theirs = means["perf_analyzer"]
    with capsys.disabled():
        print("\nmean latency of a small request, alternated on one server:")
        for name, values in means.items():
            ratio = statistics.median(a / b for a, b in zip(values, theirs, strict=True))
            median_us = statistics.median(values)
            print(f"  {name:14} {median_us:7.1f} us  {ratio:5.2f} x perf_analyzer")
    ratios = [a / b for a, b in zip(means["ours"], theirs, strict=True)]
    assert statistics.median(ratios) <= MAX_RATIO


def mean_us(send: Callable[[], None]) -> float:
    """Return the mean latency in microseconds over as long as perf_analyzer's three windows."""
    loop = Interleaved(
        rounds=1,
        warmup_requests=20,
        min_requests=100,
        max_requests=100_000,
        measure_s=3 * WINDOW_S,
        seed=1,
    )
    records = loop.run([Participant(name="client", send=send)])["client"].records
    assert records.failed == 0
    return float(records.latencies_ns.mean()) / 1000


def plain_send(client: tritonclient.http.InferenceServerClient, endpoint: Endpoint) -> None:
    """Send one request as tritonclient's examples do, encoding it each time."""
    tensors = []
    for name, array in INPUTS.items():
        datatype = "INT32" if array.dtype == np.int32 else "FP32"
        tensor = tritonclient.http.InferInput(name, list(array.shape), datatype)
        tensors.append(tensor.set_data_from_numpy(array))
    client.infer(endpoint.model, tensors).as_numpy("output")
