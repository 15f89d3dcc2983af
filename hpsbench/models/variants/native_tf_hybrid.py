"""TensorFlow alone: embeddings and their gather on the CPU, the MLPs on the GPU."""

from __future__ import annotations

from hpsbench.machine import find_gpus
from hpsbench.models.build import Build
from hpsbench.models.variants import (
    Variant,
    add_savedmodel_server,
    feature_specs,
    feature_warm_up,
)

NAME = "native_tf_hybrid"


def export(build: Build) -> None:
    """Write the SavedModel with each variable's device in it: the rows' is the CPU."""
    from hpsbench.models.keras_dlrm import NativeEmbedding, dlrm_model
    from hpsbench.models.savedmodel import export_savedmodel

    lookup = NativeEmbedding(build.table.rows, name="embedding")
    model = dlrm_model(lookup, build.dense, build.suite.dlrm.num_slots)
    export_savedmodel(
        model, build.repository.version_folder(NAME) / "model.savedmodel", keep_devices=True
    )
    add_savedmodel_server(
        build, NAME, feature_specs(build.suite), warm_up=feature_warm_up(build.suite)
    )


def left_out() -> str | None:
    return None if find_gpus() else "without a GPU it is native_tf"


VARIANT = Variant(
    name=NAME,
    title="Native TF (hybrid)",
    export=export,
    models=(NAME,),
    timed_models=(NAME,),
    left_out=left_out,
    order=10,
)
