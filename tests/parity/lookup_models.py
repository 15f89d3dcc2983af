"""Small models for lookups: sparse-model folders and the configuration that names them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpsbench.hps.configuration import Configuration, ModelConfiguration, write_configuration
from hpsbench.hps.sparse_model import write_sparse_model


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a table holds: keys int64[n], rows float32[n, dim], and its answer to other keys."""

    keys: np.ndarray
    rows: np.ndarray
    default: float = 0.0

    def answer(self, keys) -> np.ndarray:
        """Return float32[*keys.shape, dim], as a dict would answer."""
        row_of = {int(key): i for i, key in enumerate(self.keys)}
        padded = np.vstack([self.rows, np.full_like(self.rows[:1], self.default)])
        flat = [row_of.get(int(key), len(self.keys)) for key in np.ravel(keys)]
        return padded[np.array(flat, int)].reshape(*np.shape(keys), self.rows.shape[1])


def seeded_table(keys, dim: int, *, default: float = 0.0, seed: int = 0) -> Table:
    """Return a table of random rows."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((len(keys), dim), dtype=np.float32)
    return Table(keys=np.asarray(keys, np.int64), rows=rows, default=default)


def write_model(folder: Path, tables: Sequence[Table], *, name="m", fuse=False, **options) -> Path:
    """Write the tables and their configuration below `folder`; return the configuration's path.

    `options` are fields of the model's configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i, table in enumerate(tables):
        write_sparse_model(folder / f"{name}{i}", table.keys, [table.rows])
    model = ModelConfiguration(
        model=name,
        sparse_files=tuple(str(folder / f"{name}{i}") for i in range(len(tables))),
        embedding_vecsize_per_table=tuple(table.rows.shape[1] for table in tables),
        maxnum_catfeature_query_per_table_per_sample=(1,) * len(tables),
        default_value_for_each_table=tuple(table.default for table in tables),
        **{"deployed_device_list": (0,), **options},
    )
    configuration = Configuration(models=(model,), fuse_embedding_table=fuse)
    return write_configuration(folder / "ps.json", configuration)
