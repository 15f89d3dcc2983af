"""TensorFlow alone: embeddings and their gather on the CPU, the MLPs on the GPU."""

from __future__ import annotations

from hpsbench.machine import find_gpus
from hpsbench.models.kinds.dlrm import DlrmBuild
from hpsbench.models.triton_models import (
    add_savedmodel_server,
    feature_specs,
    feature_warm_up,
    link_savedmodel,
)
from hpsbench.models.variants import Variant

NAME = "native_tf_hybrid"


def export(build: DlrmBuild) -> None:
    """Serve the native SavedModel with each variable on its device: the rows' is the CPU."""
    link_savedmodel(build.native_savedmodel, build.repository.version_folder(NAME))
    add_savedmodel_server(
        build,
        NAME,
        feature_specs(build.suite),
        warm_up=feature_warm_up(build.suite),
        keep_devices=True,
    )


def left_out() -> str | None:
    return None if find_gpus() else "without a GPU it is native_tf"


VARIANT = Variant(
    name=NAME,
    export=export,
    models=(NAME,),
    timed_models=(NAME,),
    left_out=left_out,
    order=10,
)
