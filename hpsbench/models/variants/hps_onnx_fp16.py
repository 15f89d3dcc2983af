"""The dense part in ONNX Runtime, behind the parameter server's lookup, in float16."""

from __future__ import annotations

from hpsbench.errors import AccuracyError
from hpsbench.machine import find_gpus
from hpsbench.models.kinds.dlrm import DlrmBuild
from hpsbench.models.triton_models import add_onnx_server
from hpsbench.models.variants import Variant

NAME = "hps_onnx_fp16"


def export(build: DlrmBuild) -> None:
    """Write the model, unless it fails the accuracy gate: then raise AccuracyError."""
    try:
        _ = build.half_accuracy
    except AccuracyError as error:
        raise AccuracyError(f"{NAME} is not served: {error.problem}", hint=error.hint) from error
    add_onnx_server(build, NAME, build.half_dense_onnx, vector_type="float16")


def left_out() -> str | None:
    if find_gpus():
        return None
    return "without a GPU, ONNX Runtime casts float16 to float32 to compute with it"


VARIANT = Variant(
    name=NAME,
    export=export,
    models=(NAME,),
    timed_models=(NAME,),
    precision="float16",
    left_out=left_out,
    order=50,
)
