"""Prove that a Triton answers, and answers right, with a model that adds one."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from hpsbench.config import ServerConfig
from hpsbench.errors import RequestError
from hpsbench.servers import http
from hpsbench.servers.triton import TritonServer, running_triton

PROBE_MODEL = "hpsbench_probe"
_QUESTION = (1.0, 2.5, -3.0)

_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: 0
input [{{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""

_MODEL = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._add_one(request) for request in requests]

    def _add_one(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("y", x + 1)])
"""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A Triton that answered: its version, and how long it took to be ready (0 if it ran)."""

    version: str
    ready_s: float


def probe_triton(config: ServerConfig, folder: Path) -> Probe:
    """Start Triton on a model that adds one, written below `folder`, and check its answer.

    A server that somebody else runs is asked for its version only. Raises RequestError for an
    empty or wrong answer, and what `running_triton` raises.
    """
    attached = "://" in config.triton
    repository = folder / "probe-repository"
    write_probe_model(repository)
    started = time.monotonic()
    models = [] if attached else [PROBE_MODEL]
    with running_triton(repository, models, config, log=folder / "probe-triton.log") as server:
        ready_s = 0.0 if attached else time.monotonic() - started
        if not attached:
            check_probe_model(server)
        return Probe(version=_version(server), ready_s=ready_s)


def write_probe_model(repository: Path) -> None:
    """Write the model `PROBE_MODEL` (float32 x -> y = x + 1) into a model repository."""
    write_python_model(repository, PROBE_MODEL, _MODEL)


def write_python_model(repository: Path, name: str, code: str) -> None:
    """Write one instance of a Python model, float32 x of any length to y, into a repository.

    `code` is its `model.py`.
    """
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(_CONFIG.format(name=name))
    (folder / "1" / "model.py").write_text(code)


def check_probe_model(server: TritonServer, *, timeout_s: float = 10.0) -> None:
    """Ask `PROBE_MODEL` once. Raises RequestError unless the answer is right."""
    wanted = [x + 1 for x in _QUESTION]
    question = {
        "inputs": [
            {"name": "x", "shape": [len(_QUESTION)], "datatype": "FP32", "data": _QUESTION},
        ]
    }
    path = f"/v2/models/{PROBE_MODEL}/infer"
    try:
        status, body = http.post(
            server.http, path, json.dumps(question).encode(), timeout_s=timeout_s
        )
    except http.CONNECTION_ERRORS as error:
        server.check_alive()
        raise http.unreachable(server.http, error) from error
    answer = json.loads(body) if status == 200 else {}
    outputs = {output["name"]: output.get("data") for output in answer.get("outputs", [])}
    if outputs.get("y") != wanted:
        raise RequestError(
            f"triton answered {list(_QUESTION)} + 1 with {outputs.get('y')}, and not with "
            f"{wanted} (HTTP status {status}{'' if status == 200 else ': ' + http.reason(body)})",
            hint="pip install 'numpy>=1.26,<2': the bundled Triton answers empty under NumPy 2",
        )


def _version(server: TritonServer) -> str:
    _, body = http.get(server.http, "/v2")
    return str(json.loads(body)["version"])
