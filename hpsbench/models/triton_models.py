"""The Triton models that variants are made of, and the tensors that DLRM's take and give."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpsbench.config import Suite
from hpsbench.machine import find_gpus
from hpsbench.models.build import Build
from hpsbench.models.dlrm import Batch
from hpsbench.models.kinds.dlrm import HPS_MODEL, DlrmBuild
from hpsbench.models.repository import IN_PROCESS, PYTHON, TensorSpec

if TYPE_CHECKING:
    import onnx

#: The one output, float32[batch, 1], of every model.
OUTPUT_SPECS = (TensorSpec("output_1", "TYPE_FP32", (-1, 1)),)


def feature_inputs(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """Return the request's tensors under the published names."""
    return {"categorical_features": batch.categorical, "numerical_features": batch.numerical}


def keys_of(batch: Batch) -> npt.NDArray[np.int64]:
    """Return int64[1, batch * slots], the keys as the `hps` model of an ensemble takes them."""
    return batch.categorical.astype(np.int64).reshape(1, -1)


def feature_specs(suite: Suite) -> list[TensorSpec]:
    """Return the inputs that the published benchmark gives every DLRM."""
    return [
        TensorSpec("categorical_features", "TYPE_INT32", (-1, suite.dlrm.num_slots)),
        TensorSpec("numerical_features", "TYPE_FP32", (-1, suite.dlrm.num_numerical)),
    ]


def feature_warm_up(suite: Suite) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one sample's features."""
    return {spec.name: (1, spec.dims[1]) for spec in feature_specs(suite)}


def add_savedmodel_server(
    build: Build,
    model: str,
    inputs: Sequence[TensorSpec],
    *,
    warm_up: Mapping[str, tuple[int, ...]],
    module: str | None = None,
    keep_devices: bool = False,
) -> None:
    """Add the Triton model that serves `model`'s SavedModel, importing `module` first if given.

    With `keep_devices`, variables are loaded on the devices that they were saved with.
    """
    servers = build.suite.servers
    parameters = {
        "tensor_float_32": str(servers.tensor_float_32).lower(),
        "xla": str(servers.xla).lower(),
        "keep_devices": str(keep_devices).lower(),
    }
    if module is not None:
        parameters["import"] = module
    if find_gpus():
        # Triton would copy what another model left on the GPU to the host.
        parameters["FORCE_CPU_ONLY_INPUT_TENSORS"] = "no"
    build.repository.add_python_model(
        model, "tensorflow_model", inputs, OUTPUT_SPECS, parameters, warm_up
    )


def link_savedmodel(saved: Path, version_folder: Path) -> None:
    """Give a model the SavedModel `saved`, without a copy of its variables."""
    shutil.copytree(saved, version_folder / "model.savedmodel", copy_function=os.link)


def add_onnx_server(
    build: DlrmBuild, model: str, dense: onnx.ModelProto, vector_type: str = "float32"
) -> None:
    """Add the Triton model that serves `dense` behind a lookup of vectors of `vector_type`."""
    import onnx

    suite = build.suite
    onnx.save(dense, build.repository.version_folder(model) / "model.onnx")
    parameters = {
        "ps_config_file": str(build.ps_config_file),
        "hps_model": HPS_MODEL,
        "vector_type": vector_type,
        "max_batch_size": str(max(suite.load.batch_sizes)),
        **{
            name: str(getattr(suite.servers, name)).lower()
            for name in ("tensor_float_32", "cuda_graphs", "fused_layers", "stage_times")
        },
    }
    build.repository.add_python_model(
        model,
        "onnx_model",
        feature_specs(suite),
        OUTPUT_SPECS,
        parameters,
        feature_warm_up(suite),
        backend=backend_without_tensorflow(suite),
    )


def backend_without_tensorflow(suite: Suite) -> str:
    """Return the backend of models that TensorFlow has no part in: in Triton's process if it may.

    TensorFlow ends its process over what it does not expect, and a Triton that runs elsewhere lacks
    the backend.
    """
    served_here = "://" not in suite.servers.triton
    return IN_PROCESS if suite.servers.in_process and served_here else PYTHON
