"""The dense part in ONNX Runtime, behind the parameter server's lookup, in float32."""

from __future__ import annotations

from hpsbench.models.kinds.dlrm import DlrmBuild
from hpsbench.models.triton_models import add_onnx_server
from hpsbench.models.variants import Variant

NAME = "hps_onnx_fp32"


def export(build: DlrmBuild) -> None:
    add_onnx_server(build, NAME, build.dense_onnx)


VARIANT = Variant(
    name=NAME,
    export=export,
    models=(NAME,),
    timed_models=(NAME,),
    order=40,
)
