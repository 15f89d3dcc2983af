"""TensorFlow alone: embeddings as a variable on the compute device."""

from __future__ import annotations

from hpsbench.models.kinds.dlrm import DlrmBuild
from hpsbench.models.triton_models import (
    add_savedmodel_server,
    feature_specs,
    feature_warm_up,
    link_savedmodel,
)
from hpsbench.models.variants import Variant


def export(build: DlrmBuild) -> None:
    link_savedmodel(build.native_savedmodel, build.repository.version_folder("native_tf"))
    add_savedmodel_server(
        build,
        "native_tf",
        feature_specs(build.suite),
        warm_up=feature_warm_up(build.suite),
    )


VARIANT = Variant(
    name="native_tf",
    export=export,
    models=("native_tf",),
    timed_models=("native_tf",),
    order=0,
)
