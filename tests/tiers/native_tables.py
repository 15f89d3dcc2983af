"""Models of the native core over files in a folder, for tests of their tiers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpsbench.hps.native.bindings import NativeModel, TableSpec
from hpsbench.hps.native.tiers import TierOptions, set_tiers

DEFAULT = -7.0


def native_model(
    folder: Path,
    keys: Sequence[int],
    rows: np.ndarray,
    options: TierOptions | None = None,
    *,
    num_threads: int = 1,
) -> NativeModel:
    """Return a model of one table; missing keys get DEFAULT."""
    np.asarray(keys, np.int64).tofile(folder / "key")
    np.asarray(rows, np.float32).tofile(folder / "rows")
    table = TableSpec(
        name="table", key_path=folder / "key", rows_path=folder / "rows", num_keys=len(keys),
        embedding_dim=np.shape(rows)[1], default_value=DEFAULT,
    )  # fmt: skip
    model = NativeModel([table], num_threads=num_threads)
    if options is not None:
        set_tiers(model, 0, options)
    return model


def ask(model: NativeModel, keys: Sequence[int], dtype: type = np.int64) -> np.ndarray:
    """Return float32[n, dim], the answers of the model's only table."""
    keys = np.asarray(keys, dtype)
    out = np.full((len(keys), model.embedding_dims[0]), np.nan, np.float32)
    model.lookup_flat(keys, np.array([len(keys)], np.uint64), out)
    return out
