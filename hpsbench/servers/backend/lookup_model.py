"""The `hps` model of an ensemble: keys in, embedding vectors out, without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from hpsbench.errors import BenchError
from hpsbench.hps.gpu_lookup import GpuLookup
from hpsbench.hps.lookup import open_model
from hpsbench.hps.native.dlpack import DeviceMemory
from hpsbench.servers.backend.lookup_metrics import LookupMetrics

_OUTPUT = "OUTPUT0"


class TritonPythonModel:
    """Serves KEYS int64[1, n], tables in order, and NUMKEYS int32[1, tables] as OUTPUT0 float32.

    The vectors are in GPU memory where the tables are cached there, else in host memory.
    Parameters: `ps_config_file`, and `hps_model`, the model's name in that file.
    """

    def initialize(self, arguments: dict[str, str]) -> None:
        parameters = json.loads(arguments["model_config"])["parameters"]
        self._tables = open_model(
            parameters["ps_config_file"]["string_value"],
            parameters["hps_model"]["string_value"],
            gpus=True,
        )
        self._lookups = LookupMetrics(arguments["model_name"], self._tables.statistics)
        gpus = self._tables.gpus
        self._on_gpu = GpuLookup(self._tables, gpus[0]) if gpus else None

    def finalize(self) -> None:
        """Give the tables' memory back, when no answer is in use any more."""
        self._tables.release()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses = [self._respond(request) for request in requests]
        self._lookups.update()
        return responses

    def _respond(self, request: Any) -> Any:
        keys = pb_utils.get_input_tensor_by_name(request, "KEYS").as_numpy().reshape(-1)
        # Row 0; where a client sends none, `lookup_flat` says what it must be.
        num_keys = pb_utils.get_input_tensor_by_name(request, "NUMKEYS").as_numpy()[:1].reshape(-1)
        try:
            if hasattr(request, "take_output"):
                self._write(request, keys, num_keys)
                outputs = []
            elif self._on_gpu is not None:
                vectors = self._on_gpu.lookup_flat(keys, num_keys)
                outputs = [pb_utils.Tensor.from_dlpack(_OUTPUT, vectors)]
            else:
                outputs = [pb_utils.Tensor(_OUTPUT, self._tables.lookup_flat(keys, num_keys))]
        except (BenchError, ValueError) as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(outputs)

    def _write(self, request: Any, keys: npt.NDArray[Any], num_keys: npt.NDArray[Any]) -> None:
        """Have the vectors written to where the next model of the ensemble reads them."""
        shape = (self._tables.num_values(self._tables.counts_per_table(num_keys, keys.size)),)
        gpu = self._on_gpu.device if self._on_gpu else None
        output = request.take_output(_OUTPUT, np.float32, shape, gpu)
        if self._on_gpu is None:
            self._tables.lookup_flat(keys, num_keys, output.on_host())
        elif output.is_on_gpu:
            memory = DeviceMemory(pointer=output.address, shape=shape, dtype=np.float32)
            self._on_gpu.lookup_flat(keys, num_keys, out=memory)
        else:
            np.copyto(output.on_host(), self._on_gpu.lookup_flat(keys, num_keys).numpy())
