"""Models with tiers, as a configuration file makes them, and what they must answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hpsbench.hps.lookup import ModelTables, open_model
from hpsbench.hps.sparse_model import write_sparse_model

DIMS = (4, 4, 16)
DEFAULTS = (0.5, -1.0, 3.0)
NUM_KEYS = 300


def table_keys(table: int) -> np.ndarray:
    """Return the int64 keys of a table: none is another's, and some are negative."""
    rng = np.random.default_rng(table)
    return rng.permutation(NUM_KEYS) * 7 * len(DIMS) + table * 7 - 2000


def table_rows(table: int) -> np.ndarray:
    """Return float32[NUM_KEYS, dim], in the order of the keys."""
    rng = np.random.default_rng(100 + table)
    return rng.random((NUM_KEYS, DIMS[table]), dtype=np.float32)


def write_tables(folder: Path, model: str = "m", **sections: Any) -> Path:
    """Write three tables and a configuration file of them."""
    for table in range(len(DIMS)):
        target = folder / f"table{table}"
        if not target.exists():
            write_sparse_model(target, table_keys(table), [table_rows(table)])
    options = sections.pop("model_options", {})
    document = {
        "supportlonglong": True,
        **sections,
        "models": [{
            "model": model,
            "sparse_files": [str(folder / f"table{t}") for t in range(len(DIMS))],
            "embedding_table_names": [f"table{t}" for t in range(len(DIMS))],
            "embedding_vecsize_per_table": DIMS,
            "maxnum_catfeature_query_per_table_per_sample": [1] * len(DIMS),
            "default_value_for_each_table": DEFAULTS,
            "deployed_device_list": [0],
            **options,
        }],
    }  # fmt: skip
    path = folder / f"{model}.json"
    path.write_text(json.dumps(document))
    return path


def open_tables(folder: Path, **sections: Any) -> ModelTables:
    """Return the model of such a file."""
    return open_model(write_tables(folder, **sections), "m")


class Truth:
    """What NumPy answers: the rows of the files, and over them those that were updated."""

    def __init__(self) -> None:
        self._rows = [
            dict(zip(table_keys(t).tolist(), table_rows(t), strict=True)) for t in range(len(DIMS))
        ]

    def update(self, table: int, keys: np.ndarray, rows: np.ndarray) -> None:
        """Set rows; the last of a repeated key counts."""
        self._rows[table].update(zip(np.asarray(keys).tolist(), rows, strict=True))

    def answer(self, table: int, keys: np.ndarray) -> np.ndarray:
        """Return float32[*keys.shape, dim]."""
        default = np.full(DIMS[table], DEFAULTS[table], np.float32)
        flat = [self._rows[table].get(int(k), default) for k in np.ravel(keys)]
        return np.array(flat, np.float32).reshape(*np.shape(keys), DIMS[table])
