"""A Triton ensemble: the parameter server's lookup as one model, the dense part as the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.models.dlrm import Batch
from hpsbench.models.kinds.dlrm import HPS_MODEL, DlrmBuild
from hpsbench.models.repository import EnsembleStep, TensorSpec
from hpsbench.models.triton_models import (
    OUTPUT_SPECS,
    add_savedmodel_server,
    backend_without_tensorflow,
    feature_specs,
    keys_of,
)
from hpsbench.models.variants import Variant

ENSEMBLE, LOOKUP, DENSE = "hps_ensemble", "hps_ensemble_lookup", "hps_ensemble_dense"


def export(build: DlrmBuild) -> None:
    key_specs = [
        TensorSpec("KEYS", "TYPE_INT64", (-1, -1)),
        TensorSpec("NUMKEYS", "TYPE_INT32", (-1, -1)),
    ]
    vector_spec = TensorSpec("OUTPUT0", "TYPE_FP32", (-1,))
    numerical_spec = feature_specs(build.suite)[1]
    build.repository.add_python_model(
        LOOKUP,
        "lookup_model",
        key_specs,
        [vector_spec],
        {"ps_config_file": str(build.ps_config_file), "hps_model": HPS_MODEL},
        backend=backend_without_tensorflow(build.suite),
    )
    _export_dense(build)
    suite = build.suite
    add_savedmodel_server(
        build,
        DENSE,
        [vector_spec, numerical_spec],
        warm_up={
            vector_spec.name: (suite.dlrm.num_slots * suite.tables.embedding_dim,),
            numerical_spec.name: (1, suite.dlrm.num_numerical),
        },
    )
    build.repository.add_ensemble(
        ENSEMBLE,
        [*key_specs, numerical_spec],
        OUTPUT_SPECS,
        [
            EnsembleStep(LOOKUP, {"KEYS": "KEYS", "NUMKEYS": "NUMKEYS"}, {"OUTPUT0": "vectors"}),
            EnsembleStep(
                DENSE,
                {"OUTPUT0": "vectors", numerical_spec.name: numerical_spec.name},
                {"output_1": "output_1"},
            ),
        ],
    )


def _export_dense(build: DlrmBuild) -> None:
    import tensorflow as tf

    from hpsbench.models.savedmodel import export_savedmodel

    slots, dim = build.suite.dlrm.num_slots, build.suite.tables.embedding_dim

    def adapt(flat: tf.Tensor, numerical: tf.Tensor) -> list[tf.Tensor]:
        return [tf.reshape(flat, [-1, slots, dim]), numerical]

    export_savedmodel(
        build.dense,
        build.repository.version_folder(DENSE) / "model.savedmodel",
        specs=[
            tf.TensorSpec([None], tf.float32, name="OUTPUT0"),
            tf.TensorSpec([None, build.suite.dlrm.num_numerical], tf.float32, "numerical_features"),
        ],
        adapt=adapt,
    )


def inputs(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """KEYS int64[1, n] and NUMKEYS int32[1, 1]: all slots ask the one table."""
    keys = keys_of(batch)
    return {
        "KEYS": keys,
        "NUMKEYS": np.array([[keys.size]], np.int32),
        "numerical_features": batch.numerical,
    }


VARIANT = Variant(
    name=ENSEMBLE,
    export=export,
    models=(LOOKUP, DENSE, ENSEMBLE),
    timed_models=(LOOKUP, DENSE),
    inputs=inputs,
    order=30,
)
