"""What is profiled: tables of one model, of a configuration file or made up for the purpose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpsbench.config import TableConfig
from hpsbench.errors import HpsError
from hpsbench.hps.configuration import (
    Configuration,
    ModelConfiguration,
    read_configuration,
    write_configuration,
)
from hpsbench.hps.sparse_model import SparseModel, open_sparse_model, write_sparse_model
from hpsbench.tables import row_blocks

GENERATED = "generated"
#: Keys of generated tables lie this far apart, in no order, as hashed ids do.
_STRIDE = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The tables `table_ids` of `model`, with their files mapped."""

    configuration: Configuration
    source: str
    model: ModelConfiguration
    table_ids: tuple[int, ...]
    sparse_models: tuple[SparseModel, ...]

    @property
    def table_names(self) -> tuple[str, ...]:
        """The names of these tables."""
        return tuple(self.model.embedding_table_names[i] for i in self.table_ids)

    @property
    def embedding_dims(self) -> tuple[int, ...]:
        """The vector sizes of these tables."""
        return tuple(self.model.embedding_vecsize_per_table[i] for i in self.table_ids)

    @property
    def key_type(self) -> npt.DTypeLike:
        """What the keys of lookups are."""
        return np.int64 if self.configuration.supportlonglong else np.int32


def configured(path: Path | str, *, model: str | None, table: str | None) -> Subject:
    """Return the tables of a configuration file: of its first model, all, unless told otherwise.

    Raises HpsError or TableError for whatever is wrong in the file, and for unknown names.
    """
    configuration = read_configuration(path)
    chosen = configuration.model(model) if model is not None else configuration.models[0]
    names = chosen.embedding_table_names
    if table is not None and table not in names:
        raise HpsError(
            f"model {chosen.model} has no table {table!r}", hint="it has " + ", ".join(names)
        )
    return _subject(
        configuration,
        str(path),
        chosen,
        tuple(i for i, name in enumerate(names) if table in (None, name)),
    )


def generated(folder: Path, *, num_rows: int, dim: int, seed: int) -> Subject:
    """Write a table of made-up rows under scattered keys below `folder`, and return it."""
    keys = np.arange(num_rows, dtype=np.int64) * _STRIDE
    np.random.default_rng(seed).shuffle(keys)
    config = TableConfig(num_embeddings=num_rows, embedding_dim=dim, seed=seed)
    write_sparse_model(folder / GENERATED, keys, row_blocks(config))
    model = ModelConfiguration(
        model=GENERATED,
        sparse_files=(str(folder / GENERATED),),
        embedding_table_names=(GENERATED,),
        embedding_vecsize_per_table=(dim,),
        maxnum_catfeature_query_per_table_per_sample=(1,),
        default_value_for_each_table=(0.0,),
        deployed_device_list=(0,),
        gpucacheper=1.0,
    )
    configuration = Configuration(models=(model,))
    write_configuration(folder / "ps.json", configuration)
    return _subject(configuration, GENERATED, model, (0,))


def _subject(
    configuration: Configuration, source: str, model: ModelConfiguration, tables: tuple[int, ...]
) -> Subject:
    return Subject(
        configuration=configuration,
        source=source,
        model=model,
        table_ids=tables,
        sparse_models=tuple(
            open_sparse_model(model.sparse_files[i], model.embedding_vecsize_per_table[i])
            for i in tables
        ),
    )
