"""The many-table model with a `LookupLayer` per table, and every table stored by itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpsbench.models.kinds.fusion import HPS_MODEL, ManyTablesBuild
from hpsbench.models.many_tables import TableKeys, input_names
from hpsbench.models.repository import TensorSpec
from hpsbench.models.triton_models import add_savedmodel_server
from hpsbench.models.variants import Variant

NAME = "unfused"


def export(build: ManyTablesBuild) -> None:
    export_lookups(build, NAME, fused=False)
    add_server(build, NAME)


def export_lookups(build: ManyTablesBuild, model: str, *, fused: bool) -> Path:
    """Write the SavedModel of one lookup per table, on tables stored as one or not; return it."""
    import tensorflow as tf

    from hpsbench.models.keras_many_tables import many_tables_model
    from hpsbench.models.savedmodel import export_savedmodel

    suite = build.suite
    hps = importlib.import_module(suite.hps.module)
    lookups = [
        hps.LookupLayer(
            model_name=HPS_MODEL,
            table_id=i,
            emb_vec_size=suite.tables.embedding_dim,
            emb_vec_dtype=tf.float32,
            ps_config_file=str(build.ps_config_file(fused=fused)),
            global_batch_size=max(suite.load.batch_sizes),
            name=f"lookup{i}",
        )
        for i in range(build.fusion.num_tables)
    ]
    path = build.repository.version_folder(model) / "model.savedmodel"
    export_savedmodel(many_tables_model(lookups, build.dense, build.fusion.hotness), path)
    return path


def key_specs(build: ManyTablesBuild) -> list[TensorSpec]:
    """Return the keys of each table as an input of its own."""
    fusion = build.fusion
    return [
        TensorSpec(name, "TYPE_INT32", (-1, fusion.hotness))
        for name in input_names(fusion.num_tables)
    ]


def add_server(build: ManyTablesBuild, model: str) -> None:
    """Add the Triton model that serves `model`'s SavedModel."""
    specs = key_specs(build)
    add_savedmodel_server(
        build,
        model,
        specs,
        warm_up={spec.name: (1, spec.dims[1]) for spec in specs},
        module=build.suite.hps.module,
    )


def inputs(batch: TableKeys) -> Mapping[str, npt.NDArray[np.int32]]:
    """Return the keys of each table, int32[batch, hotness], under its name."""
    return dict(zip(input_names(len(batch.keys)), batch.keys, strict=True))


VARIANT = Variant(
    name=NAME,
    kind="fusion",
    export=export,
    models=(NAME,),
    timed_models=(NAME,),
    inputs=inputs,
    order=60,
)
