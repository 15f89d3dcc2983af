"""Embedding tables of a configured model, asked from Python without TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import HpsError
from hpsbench.hps import gpu_caches
from hpsbench.hps.configuration import Configuration, ModelConfiguration, read_configuration
from hpsbench.hps.gpu_caches import attach_caches, cache_statistics, log_without_cache
from hpsbench.hps.native.bindings import NativeModel, TableSpec
from hpsbench.hps.sparse_model import KEY_FILE, ROWS_FILE, SparseModel, open_sparse_model
from hpsbench.hps.tiers.model_tiers import ModelTiers
from hpsbench.hps.tiers.refresher import start_refreshing


class ModelTables:
    """The loaded tables of one model, in the order of the configuration.

    Lookups may come from any number of threads, and are answered from host memory. `gpus` are the
    devices on which TensorFlow, and a `GpuLookup`, find the tables cached. Memory is given back
    with the last reference, or by `release`.
    """

    def __init__(
        self,
        configuration: Configuration,
        model: ModelConfiguration,
        *,
        without_gpus: str | None = None,
    ) -> None:
        """Load the tables; `without_gpus` says why no GPU is to cache them, where none is.

        Raises HpsError or TableError; then neither memory nor a database stays taken.
        """
        self.model_name = model.model
        self.table_names = model.embedding_table_names
        self.default_values = model.default_value_for_each_table
        sparse_models = _sparse_models(configuration, model)
        self._native = NativeModel(_table_specs(configuration, model, sparse_models))
        self.embedding_dims = self._native.embedding_dims
        self.gpus: tuple[int, ...] = ()
        # Undone at once: another attempt may follow while a traceback still holds this one.
        with ExitStack() as undo:
            undo.callback(self._native.release)
            self._tiers = ModelTiers(configuration, model, self._native, sparse_models)
            undo.callback(self._tiers.close)
            if without_gpus is None:
                keys = [sparse_model.keys for sparse_model in sparse_models]
                self.gpus = attach_caches(self._native, model, keys)
                self._tell_gpus_what_was_updated()
            else:
                log_without_cache(model, without_gpus)
            undo.pop_all()
        share = model.cache_refresh_percentage_per_iteration or 1.0
        self._stop_refreshing = start_refreshing(
            self, self.model_name, lambda tables: tables.refresh(share),
            delay_s=model.refresh_delay, interval_s=model.refresh_interval,
        )  # fmt: skip

    def lookup(
        self, table_id: int, keys: npt.ArrayLike, out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return float32[*keys.shape, dim]: the rows of int64 or int32 `keys`, of any rank.

        Missing keys have the table's default. `out` is written to, and returned, where given.
        Raises HpsError for an unknown table, other keys or an unfit `out`.
        """
        self._check_table_id(table_id)
        keys = self._keys(keys)
        counts = np.zeros(len(self.table_names), np.uint64)
        counts[table_id] = keys.size
        out = self._output(out, (*keys.shape, self.embedding_dims[table_id]))
        self._native.lookup_flat(keys, counts, out)
        return out

    def lookup_flat(
        self,
        keys: npt.ArrayLike,
        num_keys: npt.ArrayLike,
        out: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return float32[sum of dim x num_keys]: rows of all tables, one table after another.

        `keys` is int64[n] or int32[n]: `num_keys[0]` keys of the first table, and so on. Raises
        HpsError where `num_keys` has not one count per table or does not sum up to n.
        """
        keys = self._keys(keys)
        counts = self.counts_per_table(num_keys, keys.size)
        out = self._output(out, (self.num_values(counts),))
        self._native.lookup_flat(keys.reshape(-1), counts, out)
        return out

    def counts_per_table(
        self, num_keys: npt.ArrayLike, num_keys_in_all: int
    ) -> npt.NDArray[np.uint64]:
        """Return `num_keys` as an array; raises HpsError where the counts do not fit."""
        counts = np.ascontiguousarray(num_keys)
        if counts.shape != (len(self.table_names),) or counts.dtype.kind not in "iu":
            raise HpsError(
                f"model {self.model_name}: NUMKEYS is {counts.dtype}{list(counts.shape)}",
                hint=f"give one count for each of its {len(self.table_names)} tables",
            )
        # Each by itself as well: a sum of large counts wraps around.
        if counts.min() < 0 or counts.max() > num_keys_in_all or counts.sum() != num_keys_in_all:
            raise HpsError(
                f"model {self.model_name}: NUMKEYS {counts.tolist()} and {num_keys_in_all} keys "
                "disagree",
                hint="the counts must sum up to the number of keys",
            )
        return counts.astype(np.uint64)

    def num_values(self, counts: npt.NDArray[np.uint64]) -> int:
        """Return how many values the rows of so many keys per table have."""
        return int(np.dot(counts.astype(np.int64), self.embedding_dims))

    def update(self, table: int | str, keys: npt.ArrayLike, rows: npt.ArrayLike) -> None:
        """Set rows, float32[n, dim], of int[n] `keys`, known or new, in all tiers and GPU caches.

        Lookups that start when this has returned get them, whole. Of a repeated key the last row
        counts. Raises HpsError for an unknown table, other shapes, or where no tier takes updates.
        """
        table_id = self._table_id(table)
        keys, rows = self._checked_update(table_id, keys, rows)
        if len(keys) == 0:
            return
        self._tiers.update(table_id, keys, rows)
        if self.gpus:
            gpu_caches.update(self._native, self.gpus, table_id, keys, rows)

    def refresh(self, share: float = 1.0) -> None:
        """Rewrite what is cached of the tables, on the host and on GPUs, from what lies below.

        `share`, above 0 to 1, is how much of each GPU cache is rewritten.
        """
        self._tiers.refresh()
        if self.gpus:
            gpu_caches.refresh(self._native, self.gpus, range(len(self.table_names)), share)

    def close(self) -> None:
        """Let databases and background threads go; mapped and updated rows still answer."""
        self._stop_refreshing()
        self._tiers.close()

    def release(self) -> None:
        """Close, and give the memory back now; asking the tables then raises HpsError.

        Nothing may be asking them meanwhile. What others hold of them stays: an operation of
        TensorFlow's that is running, or a `DeviceArray`.
        """
        self.close()
        self._native.release()

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Return each table's `TableFacts`, as a dict, by the table's name.

        They count what the host was asked. `tiers` in it has the `TierFacts` of each tier, which
        also count what GPU caches fetched, and `gpu_caches` the table's `GpuFacts` by device.
        """
        return {
            name: {
                **dataclasses.asdict(self._native.facts(i)),
                "tiers": self._tiers.statistics(i),
                "gpu_caches": cache_statistics(self._native, self.gpus, i),
            }
            for i, name in enumerate(self.table_names)
        }

    @property
    def native(self) -> NativeModel:
        """The tables as the native libraries know them."""
        return self._native

    def register(self, name: str) -> None:
        """Let the TensorFlow operation ask these tables as model `name`."""
        self._native.register(name)

    def _tell_gpus_what_was_updated(self) -> None:
        for table in range(len(self.table_names)):
            keys, rows = self._tiers.updated_rows(table)
            if self.gpus and len(keys):
                gpu_caches.update(self._native, self.gpus, table, keys, rows)

    def _table_id(self, table: int | str) -> int:
        if isinstance(table, str):
            if table not in self.table_names:
                raise HpsError(
                    f"model {self.model_name} has no table {table!r}",
                    hint="it has " + ", ".join(self.table_names),
                )
            return self.table_names.index(table)
        self._check_table_id(table)
        return table

    def _check_table_id(self, table_id: int) -> None:
        if not 0 <= table_id < len(self.table_names):
            raise HpsError(
                f"model {self.model_name} has {len(self.table_names)} tables, and table_id is "
                f"{table_id}",
                hint="tables are numbered from 0, in the order of sparse_files",
            )

    def _checked_update(
        self, table_id: int, keys: npt.ArrayLike, rows: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        keys, rows = np.asarray(keys), np.asarray(rows)
        if keys.size == 0:
            keys = keys.astype(np.int64)
        dim = self.embedding_dims[table_id]
        if (
            keys.ndim != 1 or keys.dtype not in (np.int64, np.int32)
            or rows.shape != (len(keys), dim) or rows.dtype != np.float32
        ):  # fmt: skip
            raise HpsError(
                f"model {self.model_name}: keys are {keys.dtype}{list(keys.shape)} and rows "
                f"{rows.dtype}{list(rows.shape)}",
                hint=f"pass int64 keys [n] and float32 rows [n, {dim}]",
            )
        keys = keys.astype(np.int64)
        # Of a repeated key, the last row.
        _, last = np.unique(keys[::-1], return_index=True)
        order = np.sort(len(keys) - 1 - last)
        return np.ascontiguousarray(keys[order]), np.ascontiguousarray(rows[order])

    def _keys(self, keys: npt.ArrayLike) -> npt.NDArray[Any]:
        array = np.asarray(keys)
        if array.dtype not in (np.int64, np.int32):
            raise HpsError(
                f"model {self.model_name}: keys are {array.dtype}", hint="pass int64 or int32 keys"
            )
        return np.ascontiguousarray(array).reshape(array.shape)

    def _output(
        self, out: npt.NDArray[np.float32] | None, shape: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        if out is None:
            return np.empty(shape, np.float32)
        if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise HpsError(
                f"model {self.model_name}: out is {out.dtype}{list(out.shape)}",
                hint=f"pass a contiguous float32{list(shape)}, or none",
            )
        return out


def open_model(ps_config_file: Path | str, model_name: str, *, gpus: bool = False) -> ModelTables:
    """Load one model of a configuration, for this caller alone, apart from `Init`.

    With `gpus`, those of `deployed_device_list` cache it as the configuration says, for a
    `GpuLookup`; else it is on the host alone. Raises HpsError or TableError, as
    `read_configuration`, `open_sparse_model` and `attach_caches` do.
    """
    configuration = read_configuration(ps_config_file)
    return ModelTables(
        configuration,
        configuration.model(model_name),
        without_gpus=None if gpus else "asked from Python",
    )


def _check_int32(sparse_model: SparseModel) -> None:
    limits = np.iinfo(np.int32)
    for key in (sparse_model.keys.min(), sparse_model.keys.max()):
        if not limits.min <= key <= limits.max:
            raise HpsError(
                f"sparse model {sparse_model.folder} holds the key {key}, which is no int32",
                hint="set supportlonglong to true",
            )


def _sparse_models(configuration: Configuration, model: ModelConfiguration) -> list[SparseModel]:
    dims = model.embedding_vecsize_per_table
    sparse_models = [open_sparse_model(f, d) for f, d in zip(model.sparse_files, dims, strict=True)]
    if not configuration.supportlonglong:
        for sparse_model in sparse_models:
            _check_int32(sparse_model)
    return sparse_models


def _table_specs(
    configuration: Configuration, model: ModelConfiguration, sparse_models: Sequence[SparseModel]
) -> list[TableSpec]:
    dims = model.embedding_vecsize_per_table
    return [
        TableSpec(
            name=model.embedding_table_names[i],
            key_path=sparse_model.folder / KEY_FILE,
            rows_path=sparse_model.folder / ROWS_FILE,
            num_keys=len(sparse_model.keys),
            embedding_dim=dims[i],
            default_value=model.default_value_for_each_table[i],
            fusion_group=dims[i] if configuration.fuses(model) else -1,
        )
        for i, sparse_model in enumerate(sparse_models)
    ]
