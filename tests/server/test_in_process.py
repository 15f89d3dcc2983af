"""Models in a real Triton's own process: what they are given, answer, count, and leave behind."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from hpsbench.config import ServerConfig
from hpsbench.errors import ServerDied, ServerError
from hpsbench.models.repository import IN_PROCESS
from hpsbench.servers.triton import TritonServer, running_triton

pytestmark = pytest.mark.server

CONFIG = """\
backend: "{backend}"
max_batch_size: 0
input [{{ name: "x", data_type: TYPE_{dtype}, dims: [ -1, -1 ] }}]
output [
  {{ name: "y", data_type: TYPE_{dtype}, dims: [ -1, -1 ] }},
  {{ name: "address", data_type: TYPE_INT64, dims: [ 1 ] }}
]
instance_group [{{ count: 1, kind: KIND_CPU }}]
parameters {{ key: "word", value: {{ string_value: "kept" }} }}
"""

#: Answers with its input and where that lay; `x[0, 0]` of 1 to 4 and of 9 asks for a failure of
#: one kind, and 8 for an answer in memory that the model takes from the server.
MODEL = """\
import json, os, signal
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, arguments):
        assert json.loads(arguments["model_config"])["parameters"]["word"]["string_value"] == "kept"
        assert os.path.samefile(os.path.dirname(__file__), os.path.join(
            arguments["model_repository"], arguments["model_version"]))
        family = pb_utils.MetricFamily(
            name="told_by_a_model", description="d", kind=pb_utils.MetricFamily.COUNTER)
        self.requests = family.Metric(labels={"model": arguments["model_name"], "of": "it"})

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        self.requests.increment(1)
        kind = x[0, 0] if x.size else 0
        if kind == 1:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("a reason of its own"))
        if kind == 2:
            raise ValueError("raised while it worked")
        if kind == 3:
            x[0, 0] = 0
        if kind == 4:
            return pb_utils.InferenceResponse([pb_utils.Tensor("y", x.astype("complex64"))])
        if kind in (8, 9):
            memory = request.take_output("y" if kind == 8 else "no such", x.dtype, x.shape)
            assert not memory.is_on_gpu
            memory.on_host()[...] = x
            return pb_utils.InferenceResponse([])
        address = x.__array_interface__["data"][0]
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("y", x), pb_utils.Tensor("address", np.array([address]))])
"""
NEEDS_MEMORY = """\
from hpsbench.errors import HpsError

class TritonPythonModel:
    def initialize(self, arguments):
        raise HpsError("table x does not fit", hint="lower gpucacheper")
"""
RAISES = """\
class TritonPythonModel:
    def initialize(self, arguments):
        raise ValueError("table x has 3 rows, not 4")
"""
#: Takes 64 MB and a thread, and holds itself; cannot be loaded, or ended, if its name says so.
HEAVY = """\
import threading
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, arguments):
        self.name, self.itself = arguments["model_name"], self
        self.memory = np.ones(16 << 20, np.float32)
        if self.name == "heavy_unloadable":
            raise ValueError("not today")
        self.over = threading.Event()
        threading.Thread(target=self.over.wait).start()

    def execute(self, requests):
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("busy")) for _ in requests]

    def finalize(self):
        self.over.set()
        if self.name == "heavy_endless":
            raise ValueError("not without a fight")
"""
HEAVY_MODELS = ("heavy", "heavy_unloadable", "heavy_endless")
DTYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32,
    "INT64": np.int64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip


def write_model(repository: Path, name: str, code: str, dtype: str) -> None:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG.format(backend=IN_PROCESS, dtype=dtype))
    (folder / "1" / "model.py").write_text(code)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    for dtype in DTYPES:
        write_model(repository, dtype, MODEL, dtype)
    write_model(repository, "strings", MODEL, "STRING")
    write_model(repository, "raises", RAISES, "INT32")
    write_model(repository, "needs_memory", NEEDS_MEMORY, "INT32")
    write_model(repository, "missing", "", "INT32")
    for name in HEAVY_MODELS:
        write_model(repository, name, HEAVY, "INT32")
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("triton") / "log"
    models = [*DTYPES, "strings"]
    with running_triton(repository, models, ServerConfig(), log=log) as server:
        yield server


def ask(server: TritonServer, model: str, x: np.ndarray, protocol: Any = triton_grpc) -> Any:
    """Return the answer to `x`."""
    address = server.grpc if protocol is triton_grpc else server.http
    given = protocol.InferInput("x", x.shape, np_to_triton_dtype(x.dtype))
    given.set_data_from_numpy(x)
    with protocol.InferenceServerClient(address) as client:
        return client.infer(model, [given])


@pytest.mark.parametrize("protocol", [triton_grpc, triton_http], ids=["grpc", "http"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_number_is_answered_as_it_was_sent(
    server: TritonServer, dtype: str, protocol: Any
) -> None:
    x = np.array([[0, 5, 0], [7, 0, 9]]).astype(DTYPES[dtype])
    y = ask(server, dtype, x, protocol).as_numpy("y")
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("protocol", [triton_grpc, triton_http], ids=["grpc", "http"])
@pytest.mark.parametrize("dtype", list(DTYPES.keys() - {"BOOL"}))
def test_a_model_may_write_to_the_memory_of_the_response(
    server: TritonServer, dtype: str, protocol: Any
) -> None:
    x = np.array([[8, 1, 0], [7, 0, 9]]).astype(DTYPES[dtype])
    answer = ask(server, dtype, x, protocol)
    y = answer.as_numpy("y")
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)
    assert answer.as_numpy("address") is None


@pytest.mark.parametrize("protocol", [triton_grpc, triton_http], ids=["grpc", "http"])
@pytest.mark.parametrize("rows", [0, 1, 20_000, 131_072])
def test_any_length_arrives_whole(server: TritonServer, rows: int, protocol: Any) -> None:
    # 13.6 MB: in several buffers over HTTP, and copied by several threads.
    x = np.random.default_rng(rows).integers(10, 1 << 30, (rows, 26), np.int32)
    np.testing.assert_array_equal(ask(server, "INT32", x, protocol).as_numpy("y"), x)


def test_inputs_lie_in_memory_that_is_used_again(server: TritonServer) -> None:
    def address(rows: int) -> int:
        x = np.full((rows, 26), 5, np.int32)
        return int(ask(server, "INT32", x).as_numpy("address")[0])

    address(131_072)
    assert len({address(rows) for rows in (1, 1000, 131_072, 32)}) == 1


def test_only_what_a_client_asks_for_is_sent(server: TritonServer) -> None:
    given = triton_grpc.InferInput("x", [1, 1], "INT32")
    given.set_data_from_numpy(np.full((1, 1), 5, np.int32))
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        answer = client.infer("INT32", [given], outputs=[triton_grpc.InferRequestedOutput("y")])
    assert [output.name for output in answer.get_response().outputs] == ["y"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (1, r"^\[StatusCode.INTERNAL\] a reason of its own$"),
        (2, r"raised while it worked\n(?s:.)*model.py(?s:.)*in answer"),
        (3, "read-only"),
        (4, "output y is complex64, which Triton cannot send"),
        (9, "no such"),
    ],
)
def test_a_request_that_fails_is_told_why_and_the_next_is_answered(
    server: TritonServer, kind: int, words: str
) -> None:
    before = server.statistics("INT32")
    with pytest.raises(InferenceServerException, match=words):
        ask(server, "INT32", np.full((2, 2), kind, np.int32))
    ask(server, "INT32", np.full((2, 2), 5, np.int32))
    time.sleep(0.1)
    moved = server.statistics("INT32") - before
    assert (moved.success_count, moved.fail_count) == (1, 1)


def test_strings_are_refused_by_name(server: TritonServer) -> None:
    with pytest.raises(InferenceServerException, match="input x has Triton's data type 13"):
        ask(server, "strings", np.array([["a"]], object))


def test_the_stages_of_a_request_are_counted(server: TritonServer) -> None:
    before = server.statistics("FP32")
    x = np.full((131_072, 26), 5, np.float32)
    for _ in range(3):
        ask(server, "FP32", x)
    time.sleep(0.1)
    moved = server.statistics("FP32") - before
    assert moved.success_count == moved.execution_count == 3
    # Gathering, and copying out, 13.6 MB each take longer than a model that copies nothing.
    assert moved.compute_input_ns > moved.compute_infer_ns > 0
    assert moved.compute_output_ns > moved.compute_infer_ns


def test_models_are_asked_at_the_same_time(server: TritonServer) -> None:
    def some(dtype: str) -> bool:
        x = np.full((1000, 3), 5, DTYPES[dtype])
        return all((ask(server, dtype, x).as_numpy("y") == x).all() for _ in range(20))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(some, ["INT32", "INT64", "FP16", "FP32", "INT32", "FP64"]))


def test_metrics_count_and_go_with_the_model(server: TritonServer) -> None:
    metric = 'told_by_a_model{model="INT16",of="it"}'
    before = server.server_metrics()[metric]
    ask(server, "INT16", np.full((1, 1), 5, np.int16))
    assert server.server_metrics()[metric] == before + 1
    server.unload("INT16")
    deadline = time.monotonic() + 10
    while metric in server.server_metrics():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.load("INT16")
    assert server.server_metrics()[metric] == 0
    ask(server, "INT16", np.full((1, 1), 5, np.int16))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("raises", "table x has 3 rows, not 4\n(?s:.)*model.py"),
        ("missing", "no attribute 'TritonPythonModel'"),
        ("needs_memory", "Internal: table x does not fit\n  hint: lower gpucacheper;"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_an_error_in_its_words(
    server: TritonServer, model: str, words: str
) -> None:
    with pytest.raises(ServerError, match=f"could not load '{model}': (?s:.)*{words}"):
        server.load(model)
    ask(server, "INT32", np.full((1, 1), 5, np.int32))


@pytest.mark.parametrize("model", HEAVY_MODELS)
def test_a_model_that_holds_itself_is_gone_when_it_is_unloaded(
    server: TritonServer, model: str
) -> None:
    process = psutil.Process(server.pid)

    def come_and_go() -> tuple[int, int]:
        if model == "heavy_unloadable":
            with pytest.raises(ServerError, match="not today"):
                server.load(model)
        else:
            server.load(model)
            server.unload(model)
            deadline = time.monotonic() + 10
            while server.models()[model] != "UNAVAILABLE: unloaded":
                assert time.monotonic() < deadline
                time.sleep(0.05)
        return process.memory_info().rss, process.num_threads()

    memory, threads = process.memory_info().rss, process.num_threads() + 2  # Triton's, at first
    found = [come_and_go() for _ in range(5)]
    assert max(after for after, _ in found) < memory + (32 << 20)
    assert max(after for _, after in found) <= threads
    ask(server, "INT32", np.full((1, 1), 5, np.int32))
    if model == "heavy_endless":
        assert server.log is not None
        told = r"a model failed as it was unloaded: not without a fight\n(?s:.)*in finalize"
        assert re.search(told, server.log.read_text())


def test_a_server_that_is_killed_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    config = ServerConfig()
    with running_triton(repository, ["INT32"], config, log=tmp_path / "log") as server:
        ask(server, "INT32", np.full((1, 1), 5, np.int32))
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        while server.is_alive():
            time.sleep(0.05)
        with pytest.raises(ServerDied, match="killed by signal 9"):
            server.check_alive()


def test_a_server_ends_by_itself_when_it_is_asked_to(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_triton(repository, ["INT32"], ServerConfig(), log=log) as server:
        ask(server, "INT32", np.full((1, 1), 5, np.int32))
    assert "successfully unloaded 'INT32'" in log.read_text()
    assert server._process is not None
    assert server._process.poll() == 0
