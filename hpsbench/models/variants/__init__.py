"""The variants: every way to serve DLRM, or another kind of model, a file each.

A new variant is a new module here that defines `VARIANT`; nothing else names it.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpsbench.config import Suite
from hpsbench.errors import ConfigError
from hpsbench.machine import find_gpus
from hpsbench.models.build import Build, require_kind
from hpsbench.models.dlrm import Batch
from hpsbench.models.kinds.dlrm import HPS_MODEL, DlrmBuild
from hpsbench.models.repository import TensorSpec

if TYPE_CHECKING:
    import onnx


def feature_inputs(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """Return the request's tensors under the published names."""
    return {"categorical_features": batch.categorical, "numerical_features": batch.numerical}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to serve a model; `name` is also that of the Triton model which clients ask."""

    name: str
    #: The kind of model that it serves, and whose `Build` it is exported from.
    kind: str = "dlrm"
    #: As the published tables call it.
    title: str
    export: Callable[[Any], None]
    #: Every model to load, steps before the ensemble that uses them.
    models: tuple[str, ...]
    #: The models whose server-side times add up to this variant's.
    timed_models: tuple[str, ...]
    inputs: Callable[[Any], Mapping[str, npt.NDArray[Any]]] = feature_inputs
    #: What its dense part computes in: `float32` or `float16`.
    precision: str = "float32"
    #: Returns why there is no point in measuring it on this machine; None where there is one.
    #: Left out by default, and measured where it is asked for by name.
    left_out: Callable[[], str | None] = lambda: None
    #: Position in tables; variants of the published benchmarks come first, in their order.
    order: int = 100


def registered_variants() -> dict[str, Variant]:
    """Return every variant of this package by name, in the order of the tables."""
    modules = [
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
    ]
    variants: list[Variant] = [module.VARIANT for module in modules]
    return {v.name: v for v in sorted(variants, key=lambda v: (v.order, v.name))}


def variants_of(suite: Suite) -> dict[str, Variant]:
    """Return every variant of the model that a suite serves, by name, in table order."""
    return {n: v for n, v in registered_variants().items() if v.kind == suite.model}


def select_variants(names: Sequence[str], suite: Suite | None = None) -> list[Variant]:
    """Return the variants of these names in table order; all of them when `names` is empty.

    With a suite, only those of its model. Raises ConfigError for an unknown one, and for one of
    another model.
    """
    known = registered_variants()
    choice = known if suite is None else variants_of(suite)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, choice, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"unknown variant {name!r}", hint=f"{meant}Known: {', '.join(choice)}"
            )
        if suite is not None:
            require_kind(known[name], suite)
    return [v for n, v in choice.items() if not names or n in names]


def default_variants(suite: Suite) -> tuple[list[Variant], dict[str, str]]:
    """Return the variants to measure where none is named, and why each other one is left out."""
    reasons = {name: variant.left_out() for name, variant in variants_of(suite).items()}
    measured = [v for name, v in variants_of(suite).items() if reasons[name] is None]
    return measured, {name: reason for name, reason in reasons.items() if reason is not None}


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
            for name in ("tensor_float_32", "cuda_graphs", "stage_times")
        },
    }
    build.repository.add_python_model(
        model, "onnx_model", feature_specs(suite), OUTPUT_SPECS, parameters, feature_warm_up(suite)
    )


#: The one output: float32[batch, 1] probabilities.
OUTPUT_SPECS = (TensorSpec("output_1", "TYPE_FP32", (-1, 1)),)


def keys_of(batch: Batch) -> npt.NDArray[np.int64]:
    """Return int64[1, batch * slots], the keys as the `hps` model of an ensemble takes them."""
    return batch.categorical.astype(np.int64).reshape(1, -1)
