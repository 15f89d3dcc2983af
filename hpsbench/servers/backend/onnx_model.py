"""A lookup in the parameter server, then an ONNX model: `model.onnx` beside `model.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from hpsbench.errors import BenchError
from hpsbench.hps.lookup import ModelTables, open_model
from hpsbench.models.onnx_engine import Buffer, EngineOptions, OnnxEngine
from hpsbench.servers.backend.engine_metric import EngineMetric
from hpsbench.servers.backend.lookup_metrics import LookupMetrics

_DTYPES: dict[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


class TritonPythonModel:
    """Serves `categorical_features` int32[n, slots] and `numerical_features` float32[n, features].

    Parameters: `ps_config_file`, and `hps_model`, the model's name in that file, whose one table
    all slots ask; `tensor_float_32` is `true` or `false`.
    """

    def initialize(self, arguments: dict[str, str]) -> None:
        config = json.loads(arguments["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        folder = Path(arguments["model_repository"]) / arguments["model_version"]
        self._output = config["output"][0]["name"]
        tables = open_model(parameters["ps_config_file"], parameters["hps_model"])
        engine = OnnxEngine(
            folder / "model.onnx",
            EngineOptions(tensor_float_32=parameters["tensor_float_32"] == "true"),
        )
        self._dlrm = HostDlrm(tables, engine)
        self._lookups = LookupMetrics(arguments["model_name"], tables.statistics)
        self._metric = EngineMetric(arguments["model_name"], engine.description)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses = [self._respond(request) for request in requests]
        self._lookups.update()
        return responses

    def _respond(self, request: Any) -> Any:
        keys, numerical = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("categorical_features", "numerical_features")
        )
        try:
            answer = self._dlrm(keys, numerical)
        except BenchError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._output, answer)])


class HostDlrm:
    """Lookup and engine in host memory: the engine reads the vectors where the lookup put them."""

    def __init__(self, tables: ModelTables, engine: OnnxEngine) -> None:
        self._tables, self._engine = tables, engine
        self._vector_dtype = _DTYPES[engine.inputs["vectors"].type]

    def __call__(
        self, keys: npt.NDArray[np.int32], numerical: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return float32[n, 1] for int32[n, slots] and float32[n, features]."""
        vectors = self._tables.lookup(0, keys).astype(self._vector_dtype, copy=False)
        numerical = np.ascontiguousarray(numerical)
        answer = np.empty((len(keys), 1), np.float32)
        self._engine.bind(
            {"vectors": Buffer.of(vectors), "numerical_features": Buffer.of(numerical)},
            {"output_1": Buffer.of(answer)},
        )()
        return answer
