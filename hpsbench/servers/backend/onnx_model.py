"""A lookup in the parameter server, then an ONNX model: `model.onnx` beside `model.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from hpsbench.errors import BenchError
from hpsbench.hps.lookup import ModelTables, open_model
from hpsbench.models.onnx_engine import Buffer, EngineOptions, OnnxEngine
from hpsbench.servers.backend.batch_parts import SMALLEST, bucket_of
from hpsbench.servers.backend.engine_metric import EngineMetric
from hpsbench.servers.backend.lookup_metrics import LookupMetrics
from hpsbench.servers.backend.stage_metric import StageMetric
from hpsbench.servers.backend.stages import Mark, StageClock, ignore

KEYS, NUMERICAL, VECTORS, OUTPUT = (
    "categorical_features", "numerical_features", "vectors", "output_1",
)  # fmt: skip


class Dlrm(Protocol):
    """Answers float32[n, 1] for int32[n, slots] and float32[n, features]."""

    def __call__(
        self, keys: npt.NDArray[np.int32], numerical: npt.NDArray[np.float32], mark: Mark = ignore
    ) -> npt.NDArray[np.float32]: ...

    def wait(self) -> None:
        """Return when the device has done what it was given."""


class TritonPythonModel:
    """Serves `categorical_features` int32[n, slots] and `numerical_features` float32[n, features].

    Parameters: `ps_config_file`, and `hps_model`, the model's name in that file, whose one table
    all slots ask; `vector_type` is `float32` or `float16`, `max_batch_size` what memory is taken
    for; `tensor_float_32`, `cuda_graphs`, `fused_layers` and `stage_times` are `true` or `false`.
    """

    def initialize(self, arguments: dict[str, str]) -> None:
        # Of a model that cannot be loaded, nothing stays either.
        with ExitStack() as held:
            self._initialize(arguments, held)
            self._held = held.pop_all()

    def finalize(self) -> None:
        """Give everything back: threads, memory of the host and of the GPU, the tables."""
        self._held.close()

    def _initialize(self, arguments: dict[str, str], held: ExitStack) -> None:
        config = json.loads(arguments["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        path = Path(arguments["model_repository"]) / arguments["model_version"] / "model.onnx"
        tables = open_model(parameters["ps_config_file"], parameters["hps_model"], gpus=True)
        held.callback(tables.release)
        if tables.gpus:
            dims = {i["name"]: int(i["dims"][1]) for i in config["input"]}
            self._dlrm, description = _on_gpu(path, tables, parameters, dims, held)
        else:
            engine = OnnxEngine(path, EngineOptions())
            held.callback(engine.close)
            self._dlrm = HostDlrm(tables, engine, np.dtype(parameters["vector_type"]))
            description = engine.description
        name = arguments["model_name"]
        self._stages: StageMetric | None = None
        if parameters["stage_times"] == "true":
            self._stages, self._clock = StageMetric(name), StageClock(self._dlrm.wait)
            description += ", stages timed"
        self._engine_metric = EngineMetric(name, description)
        self._lookups = LookupMetrics(name, tables.statistics)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses = [self._respond(request) for request in requests]
        self._lookups.update()
        return responses

    def _respond(self, request: Any) -> Any:
        mark = ignore
        if self._stages is not None:
            self._clock.start()
            mark = self._clock.mark
        keys, numerical = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in (KEYS, NUMERICAL)
        )
        mark("inputs")
        try:
            answer = self._dlrm(keys, numerical, mark)
        except BenchError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        response = pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT, answer)])
        if self._stages is not None:
            mark("response")
            self._stages.add(self._clock.stage_ns)
        return response


class HostDlrm:
    """Lookup and engine in host memory: the engine reads the vectors where the lookup put them."""

    def __init__(self, tables: ModelTables, engine: OnnxEngine, vector_type: np.dtype[Any]) -> None:
        self._tables, self._engine, self._vector_type = tables, engine, vector_type

    def __call__(
        self, keys: npt.NDArray[np.int32], numerical: npt.NDArray[np.float32], mark: Mark = ignore
    ) -> npt.NDArray[np.float32]:
        vectors = self._tables.lookup(0, keys).astype(self._vector_type, copy=False)
        mark("lookup")
        numerical = np.ascontiguousarray(numerical)
        answer = np.empty((len(keys), 1), np.float32)
        self._engine.bind(
            {VECTORS: Buffer.of(vectors), NUMERICAL: Buffer.of(numerical)},
            {OUTPUT: Buffer.of(answer)},
        )()
        mark("engine")
        return answer

    def wait(self) -> None:
        """Do nothing: each stage returns when it is done."""


def _on_gpu(
    path: Path,
    tables: ModelTables,
    parameters: dict[str, str],
    dims: dict[str, int],
    held: ExitStack,
) -> tuple[Dlrm, str]:
    """Return the model on the tables' first GPU, and what runs its dense part."""
    from hpsbench.servers.backend.dense_engines import (
        DenseEngine,
        WholeEngine,
        fused_engine,
        onnx_engine,
    )
    from hpsbench.servers.backend.device_dlrm import DeviceDlrm, Shape
    from hpsbench.servers.backend.device_resources import DeviceResources

    device = tables.gpus[0]
    resources = held.enter_context(DeviceResources(device))
    stream = resources.stream()
    max_batch_size = int(parameters["max_batch_size"])
    largest = bucket_of(max_batch_size)
    options = EngineOptions(
        device=device,
        stream=stream.handle,
        cuda_graphs=parameters["cuda_graphs"] == "true",
        tensor_float_32=parameters["tensor_float_32"] == "true",
        half_precision=parameters["vector_type"] == "float16",
        batch_sizes=(SMALLEST, largest),
    )
    engine: DenseEngine | None = fused_engine(
        path, options, resources, largest, fused_layers=parameters["fused_layers"] == "true"
    )
    if engine is None:
        whole = onnx_engine(path, options, resources)
        if not whole.on_gpu:
            host = HostDlrm(tables, whole, np.dtype(parameters["vector_type"]))
            return host, whole.description
        engine = WholeEngine(whole)
    (dim,) = tables.embedding_dims
    dlrm = DeviceDlrm(
        tables,
        engine,
        resources,
        stream,
        Shape(slots=dims[KEYS], features=dims[NUMERICAL], dim=dim),
        vector_dtype=parameters["vector_type"],
        max_batch_size=max_batch_size,
    )
    return dlrm, engine.description
