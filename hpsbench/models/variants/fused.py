"""The many-table model with all lookups in one operation, and its tables stored as one."""

from __future__ import annotations

import importlib

from hpsbench.models.kinds.fusion import ManyTablesBuild
from hpsbench.models.variants import Variant
from hpsbench.models.variants.unfused import add_server, export_lookups, inputs

NAME = "fused"


def export(build: ManyTablesBuild) -> None:
    path = export_lookups(build, NAME, fused=True)
    hps = importlib.import_module(build.suite.hps.module)
    # NVIDIA's parameter server fuses storage alone.
    if hasattr(hps, "export_fused"):
        hps.export_fused(path, path)
    add_server(build, NAME)


VARIANT = Variant(
    name=NAME,
    kind="fusion",
    export=export,
    models=(NAME,),
    timed_models=(NAME,),
    inputs=inputs,
    order=70,
)
