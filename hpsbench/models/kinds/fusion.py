"""The many-table model as a suite serves it: its tables, stored apart and as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hpsbench.config import FusionConfig, Suite
from hpsbench.hps.configuration import Configuration, ModelConfiguration, write_configuration
from hpsbench.hps.sparse_model import open_sparse_model, write_sparse_model
from hpsbench.models.build import Build
from hpsbench.models.dlrm import Layer
from hpsbench.models.kinds import Footprint, ModelKind
from hpsbench.models.many_tables import (
    TableKeys,
    batches,
    forward,
    input_names,
    num_vector_values,
    seeded_layer,
)
from hpsbench.tables import row_blocks

if TYPE_CHECKING:
    import keras

#: The name of the model in the parameter server's configuration.
HPS_MODEL = "many_tables"


@dataclass(frozen=True)
class ManyTablesBuild(Build):
    """Tables of disjoint keys on disk, and one dense layer on the vectors of all of them."""

    @property
    def fusion(self) -> FusionConfig:
        assert self.suite.fusion is not None
        return self.suite.fusion

    @property
    def table_folders(self) -> list[Path]:
        return [self.folder / name for name in input_names(self.fusion.num_tables)]

    def ps_config_file(self, *, fused: bool) -> Path:
        """Return the JSON file that has the tables stored as one, or each by itself."""
        return self.folder / f"ps-{'fused' if fused else 'unfused'}.json"

    def write_tables(self, progress: Callable[[str], None]) -> None:
        """Write every table, and both JSON files."""
        tables = self.suite.tables
        size = f"{tables.num_embeddings:,} rows x {tables.embedding_dim}"
        progress(f"writing {self.fusion.num_tables} tables of {size}")
        for i, folder in enumerate(self.table_folders):
            keys = np.arange(i * tables.num_embeddings, (i + 1) * tables.num_embeddings)
            write_sparse_model(folder, keys, row_blocks(replace(tables, seed=tables.seed + i)))
        for fused in (False, True):
            configuration = ps_configuration(self, fused=fused)
            write_configuration(self.ps_config_file(fused=fused), configuration)

    @cached_property
    def layer(self) -> Layer:
        return seeded_layer(self.suite)

    @cached_property
    def dense(self) -> keras.Model:
        """The dense layer as a Keras model."""
        from hpsbench.models.keras_dlrm import compiled_by_xla
        from hpsbench.models.keras_many_tables import dense_model

        model = dense_model(self.layer)
        return compiled_by_xla(model) if self.suite.servers.xla else model

    @cached_property
    def rows(self) -> list[npt.NDArray[np.float32]]:
        """The rows of every table, memory-mapped."""
        dim = self.suite.tables.embedding_dim
        return [open_sparse_model(folder, dim).rows for folder in self.table_folders]

    def answer(self, batch: TableKeys) -> npt.NDArray[np.float32]:
        """Return float32[batch, 1], what every variant must answer."""
        return forward(self.layer, self.rows, batch)


def ps_configuration(build: ManyTablesBuild, *, fused: bool) -> Configuration:
    """Return the parameter server's configuration: one model of all tables."""
    suite, count = build.suite, build.fusion.num_tables
    model = ModelConfiguration(
        model=HPS_MODEL,
        sparse_files=tuple(map(str, build.table_folders)),
        embedding_table_names=tuple(input_names(count)),
        embedding_vecsize_per_table=(suite.tables.embedding_dim,) * count,
        maxnum_catfeature_query_per_table_per_sample=(build.fusion.hotness,) * count,
        default_value_for_each_table=(0.0,) * count,
        deployed_device_list=(0,),
        max_batch_size=max(suite.load.batch_sizes),
        gpucache=suite.hps.gpucache,
        gpucacheper=suite.hps.gpucacheper,
        hit_rate_threshold=suite.hps.hit_rate_threshold,
    )
    return Configuration(models=(model,), supportlonglong=False, fuse_embedding_table=fused)


def footprint(suite: Suite) -> Footprint:
    assert suite.fusion is not None
    return Footprint(
        num_rows=suite.fusion.num_tables * suite.tables.num_embeddings,
        row_bytes=suite.fusion.num_tables * suite.tables.num_bytes,
        vector_values=num_vector_values(suite),
        dense_values=1,
        request_bytes=4 * suite.fusion.num_tables * suite.fusion.hotness,
    )


KIND = ModelKind(
    name="fusion",
    title="the many-table model",
    reference="unfused",
    build=ManyTablesBuild,
    batches=batches,
    footprint=footprint,
)
