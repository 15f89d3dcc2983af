"""One SavedModel whose lookup is the parameter server's `LookupLayer`."""

from __future__ import annotations

import importlib

from hpsbench.models.kinds.dlrm import HPS_MODEL, DlrmBuild
from hpsbench.models.triton_models import add_savedmodel_server, feature_specs, feature_warm_up
from hpsbench.models.variants import Variant


def export(build: DlrmBuild) -> None:
    import tensorflow as tf

    from hpsbench.models.keras_dlrm import dlrm_model
    from hpsbench.models.savedmodel import export_savedmodel

    suite = build.suite
    hps = importlib.import_module(suite.hps.module)
    lookup = hps.LookupLayer(
        model_name=HPS_MODEL,
        table_id=0,
        emb_vec_size=suite.tables.embedding_dim,
        emb_vec_dtype=tf.float32,
        ps_config_file=str(build.ps_config_file),
        global_batch_size=max(suite.load.batch_sizes),
    )
    model = dlrm_model(lookup, build.dense, suite.dlrm.num_slots)
    path = build.repository.version_folder("hps_tf") / "model.savedmodel"
    export_savedmodel(model, path)
    # NVIDIA's parameter server gives the vectors a tensor of their own, and XLA takes them so.
    if hasattr(hps, "export_fused") and not suite.servers.xla:
        hps.export_fused(path, path)
    add_savedmodel_server(
        build,
        "hps_tf",
        feature_specs(build.suite),
        warm_up=feature_warm_up(build.suite),
        module=suite.hps.module,
    )


VARIANT = Variant(
    name="hps_tf",
    export=export,
    models=("hps_tf",),
    timed_models=("hps_tf",),
    order=20,
)
