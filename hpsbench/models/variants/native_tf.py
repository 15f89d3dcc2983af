"""TensorFlow alone: embeddings as a variable on the compute device."""

from __future__ import annotations

from hpsbench.models.build import Build
from hpsbench.models.variants import (
    Variant,
    add_savedmodel_server,
    feature_specs,
    feature_warm_up,
)


def export(build: Build) -> None:
    from hpsbench.models.keras_dlrm import NativeEmbedding, dlrm_model
    from hpsbench.models.savedmodel import export_savedmodel

    lookup = NativeEmbedding(build.table.rows, name="embedding")
    model = dlrm_model(lookup, build.dense, build.suite.dlrm.num_slots)
    export_savedmodel(model, build.repository.version_folder("native_tf") / "model.savedmodel")
    add_savedmodel_server(
        build,
        "native_tf",
        feature_specs(build.suite),
        warm_up=feature_warm_up(build.suite),
    )


VARIANT = Variant(
    name="native_tf",
    title="Native TF",
    export=export,
    models=("native_tf",),
    timed_models=("native_tf",),
    order=0,
)
