"""A SavedModel behind Triton's Python backend: `model.savedmodel` beside `model.py`."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import triton_python_backend_utils as pb_utils

from hpsbench.servers.backend.engine_metric import EngineMetric
from hpsbench.servers.backend.host_inputs import HostInputs
from hpsbench.servers.backend.lookup_metrics import LookupMetrics

_WITH_DEVICES = tf.saved_model.experimental.VariablePolicy.SAVE_VARIABLE_DEVICES
#: Of the types that inputs have here, by Triton's names.
_TYPES = {"TYPE_INT32": tf.int32, "TYPE_INT64": tf.int64, "TYPE_FP32": tf.float32}


class TritonPythonModel:
    """Runs the `serving_default` signature on each request, inputs and outputs by their names.

    Inputs that another model left in GPU memory are used where they are.

    Parameters: `import`, if any, names a module that registers the operations the model needs;
    `keep_devices` (variables go to the devices that they were saved with), `tensor_float_32` and
    `xla`, which says how the model was exported, are `true` or `false`.
    """

    def initialize(self, arguments: dict[str, str]) -> None:
        config = json.loads(arguments["model_config"])
        for gpu in tf.config.list_physical_devices("GPU"):
            # Several models share the device, and TensorFlow would take all of it for each.
            tf.config.experimental.set_memory_growth(gpu, True)
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        self._lookups = None
        if "import" in parameters:
            module = importlib.import_module(parameters["import"])
            if hasattr(module, "statistics"):
                self._lookups = LookupMetrics(
                    arguments["model_name"], lambda: _tables_of(module.statistics())
                )
        tf.config.experimental.enable_tensor_float_32_execution(
            parameters["tensor_float_32"] == "true"
        )
        folder = Path(arguments["model_repository"]) / arguments["model_version"]
        options = tf.saved_model.LoadOptions(
            experimental_variable_policy=_WITH_DEVICES
            if parameters["keep_devices"] == "true"
            else None
        )
        # Kept: the function does not hold the variables that it reads.
        self._loaded = tf.saved_model.load(str(folder / "model.savedmodel"), options=options)
        self._serve = self._loaded.signatures["serving_default"]
        self._metric = EngineMetric(
            arguments["model_name"], _description(parameters["xla"] == "true")
        )
        self._host_inputs = HostInputs()
        self._inputs = [i["name"] for i in config["input"]]
        self._outputs = [o["name"] for o in config["output"]]
        if "import" in parameters:
            self._open_tables(config.get("model_warmup", []))

    def _open_tables(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Have the first lookup open the tables now: without them, the model is not to be ready.

        Triton warms up with the same samples, and calls a model ready that fails them.
        """
        for sample in samples:
            zeros = {
                name: tf.zeros([int(n) for n in spec["dims"]], _TYPES[spec["data_type"]])
                for name, spec in sample["inputs"].items()
            }
            try:
                self._serve(**zeros)
            except tf.errors.OpError as error:
                raise pb_utils.TritonModelException(error.message) from None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses = [self._respond(request) for request in requests]
        if self._lookups is not None:
            self._lookups.update()
        return responses

    def _respond(self, request: Any) -> Any:
        try:
            inputs = {
                name: self._tensor(name, pb_utils.get_input_tensor_by_name(request, name))
                for name in self._inputs
            }
            outputs = self._serve(**inputs)
            tensors = [
                pb_utils.Tensor(name, np.asarray(outputs[name].numpy())) for name in self._outputs
            ]
        except tf.errors.OpError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.message))
        return pb_utils.InferenceResponse(tensors)

    def _tensor(self, name: str, given: Any) -> tf.Tensor:
        if given.is_cpu():
            return self._host_inputs.tensor(name, given.as_numpy())
        return tf.experimental.dlpack.from_dlpack(given.to_dlpack())


def _tables_of(statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the facts of every model's tables by one name."""
    return {f"{m}/{table}": facts for m, ts in statistics.items() for table, facts in ts.items()}


def _description(xla: bool) -> str:
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return f"TensorFlow {tf.__version__}, {device}{', XLA' if xla else ''}"
