"""DLRM as a suite serves it: its one table, its dense weights, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hpsbench.config import Suite
from hpsbench.hps.configuration import (
    Configuration,
    ModelConfiguration,
    write_configuration,
)
from hpsbench.hps.sparse_model import SparseModel, open_sparse_model, write_sparse_model
from hpsbench.models.build import Build
from hpsbench.models.dlrm import (
    Batch,
    DlrmWeights,
    forward,
    numerical_features,
    seeded_weights,
)
from hpsbench.models.kinds import Footprint, ModelKind
from hpsbench.tables import key_stream, row_blocks

if TYPE_CHECKING:
    import keras
    import onnx

    from hpsbench.models.accuracy import Accuracy

#: The name of the model, and of its one table, in the parameter server's configuration.
HPS_MODEL = "dlrm"


@dataclass(frozen=True)
class DlrmBuild(Build):
    """One table on disk and one set of dense weights, in the forms that variants serve."""

    def write_tables(self, progress: Callable[[str], None]) -> None:
        """Write the one table, and the parameter server's configuration of it."""
        tables = self.suite.tables
        progress(f"writing {tables.num_embeddings:,} rows x {tables.embedding_dim}")
        keys = np.arange(tables.num_embeddings, dtype=np.int64)
        write_sparse_model(self.table_folder, keys, row_blocks(tables))
        write_configuration(self.ps_config_file, ps_configuration(self))

    @property
    def ps_config_file(self) -> Path:
        return self.folder / "ps.json"

    @property
    def table_folder(self) -> Path:
        return self.folder / "table"

    @cached_property
    def weights(self) -> DlrmWeights:
        return seeded_weights(self.suite.dlrm, self.suite.tables.embedding_dim)

    @cached_property
    def table(self) -> SparseModel:
        """The keys and rows, memory-mapped."""
        return open_sparse_model(self.table_folder, self.suite.tables.embedding_dim)

    @cached_property
    def dense(self) -> keras.Model:
        """The dense part as a Keras model, shared by the variants that TensorFlow serves."""
        from hpsbench.models.keras_dlrm import compiled_by_xla, dense_model

        model = dense_model(self.suite.dlrm, self.weights, self.suite.tables.embedding_dim)
        return compiled_by_xla(model) if self.suite.servers.xla else model

    @cached_property
    def native_savedmodel(self) -> Path:
        """DLRM with its rows as a variable in host memory, saved with each variable's device.

        Whoever loads it decides whether variables go there, or all to the device that computes.
        """
        from hpsbench.models.keras_dlrm import NativeEmbedding, dlrm_model
        from hpsbench.models.savedmodel import export_savedmodel

        path = self.folder / "native.savedmodel"
        lookup = NativeEmbedding(self.table.rows, name="embedding")
        model = dlrm_model(lookup, self.dense, self.suite.dlrm.num_slots)
        export_savedmodel(model, path, keep_devices=True)
        return path

    @cached_property
    def dense_onnx(self) -> onnx.ModelProto:
        """The dense part as an ONNX model in float32, of lengths that tensor cores like."""
        from hpsbench.models.keras_dlrm import dense_model
        from hpsbench.models.onnx import convert

        dim = self.suite.tables.embedding_dim
        return convert(dense_model(self.suite.dlrm, self.weights, dim, multiple=8))

    @cached_property
    def half_dense_onnx(self) -> onnx.ModelProto:
        """The same in float16, of any accuracy: see `half_accuracy`."""
        from hpsbench.models.onnx import half_precision

        return half_precision(self.dense_onnx)

    @cached_property
    def half_accuracy(self) -> Accuracy:
        """How float16 answers beside float32, for keys from all over the table.

        Raises AccuracyError where it is too far off (see `check_accuracy`).
        """
        from hpsbench.models.accuracy import SAMPLES, check_accuracy

        tables, dlrm = self.suite.tables, self.suite.dlrm
        keys = np.random.default_rng(tables.seed).integers(
            tables.num_embeddings, size=(SAMPLES, dlrm.num_slots), dtype=np.int32
        )
        return check_accuracy(
            self.dense_onnx,
            self.half_dense_onnx,
            self.rows(keys),
            numerical_features(SAMPLES, dlrm.num_numerical, seed=dlrm.seed),
            seed=dlrm.seed,
        )

    def answer(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Return float32[batch, 1], what every variant must answer."""
        return forward(self.weights, self.rows(batch.categorical), batch.numerical)

    def rows(self, keys: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return float32[keys.shape + (dim,)], for the NumPy reference."""
        return np.asarray(self.table.rows[keys])


def ps_configuration(build: DlrmBuild) -> Configuration:
    """Return the parameter server's configuration: one model with one table."""
    suite = build.suite
    model = ModelConfiguration(
        model=HPS_MODEL,
        sparse_files=(str(build.table_folder),),
        embedding_table_names=(HPS_MODEL,),
        embedding_vecsize_per_table=(suite.tables.embedding_dim,),
        maxnum_catfeature_query_per_table_per_sample=(suite.dlrm.num_slots,),
        default_value_for_each_table=(0.0,),
        deployed_device_list=(0,),
        max_batch_size=max(suite.load.batch_sizes),
        gpucache=suite.hps.gpucache,
        gpucacheper=suite.hps.gpucacheper,
        hit_rate_threshold=suite.hps.hit_rate_threshold,
    )
    # DLRM's keys are int32.
    return Configuration(models=(model,), supportlonglong=False)


def batches(suite: Suite, batch_size: int, keys: str) -> Iterator[Batch]:
    """Yield batches for ever: keys from the stream, and the same numerical features in each."""
    load, dlrm = suite.load, suite.dlrm
    stream = key_stream(
        keys,
        (batch_size, dlrm.num_slots),
        suite.tables.num_embeddings,
        seed=load.seed,
        zipf_alpha=load.zipf_alpha,
    )
    numerical = numerical_features(batch_size, dlrm.num_numerical, seed=load.seed)
    return (Batch(drawn.astype(np.int32), numerical) for drawn in stream)


def footprint(suite: Suite) -> Footprint:
    dlrm, dim = suite.dlrm, suite.tables.embedding_dim
    return Footprint(
        num_rows=suite.tables.num_embeddings,
        row_bytes=suite.tables.num_bytes,
        # Beside the bottom MLP's.
        vector_values=(dlrm.num_slots + 1) * dim,
        # The interaction as a full matrix, and the widest two layers at once.
        dense_values=(dlrm.num_slots + 1) ** 2 + 2 * max(*dlrm.bottom_mlp, *dlrm.top_mlp),
        # Keys may be 8 bytes.
        request_bytes=8 * dlrm.num_slots + 4 * dlrm.num_numerical,
    )


KIND = ModelKind(
    name="dlrm",
    title="DLRM",
    reference="native_tf",
    build=DlrmBuild,
    batches=batches,
    footprint=footprint,
    parity_preset="smoke",
)
