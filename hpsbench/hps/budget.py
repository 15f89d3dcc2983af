"""What the tables of a configuration will take of memory, told before any is loaded.

The sizes are those of the native code: `index.h` and `volatile_table.cc` on the host, and
`gpu_resident.cu`, `gpu_slabs.cu` and `gpu_workspace.h` on GPUs. Tests compare them with what loaded
tables say of themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hpsbench.hps.configuration import Configuration, ModelConfiguration
from hpsbench.hps.sparse_model import SparseModel, open_sparse_model
from hpsbench.hps.tiers.model_tiers import plan_tiers

_FLOAT_BYTES = 4
_KEY_BYTES = 8
# A bucket of the host's index is a cache line, for three keys.
_BUCKET_BYTES, _KEYS_PER_BUCKET = 64, 3
# Slots of a GPU's exact index, and of a set.
_INDEX_SLOT_BYTES = 16
_SLOTS_PER_SET = 16
_SLOT_KEY_BYTES, _STAMP_BYTES = 8, 4
# Per key of a workspace: the key, its position, its slot, and a duplicate's position and original.
_LIST_BYTES = 8 + 4 * 4
_SEEN_BYTES = 8
_COUNTS_BYTES, _HOST_COUNTS_BYTES = 32 + 32 * 32, 16
_STAGING_BYTES, _STAGING_ROWS = 16 << 20, 1 << 16
_MAX_WORKSPACE_KEYS = 1 << 30
_SCALE_BYTES = 4
# Of the volatile tier: how often a row was used, and when; and a slot of the map, of which three in
# four are taken at most before there are twice as many.
_USE_BYTES = 8
_MAP_SLOT_BYTES, _FIRST_SLOTS = 16, 64
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class TableBudget:
    """One table: bytes on the host, and on each GPU that caches it.

    `is_range`: its keys are one ascending range, for which a GPU needs no index. `index_bytes` of
    fused tables is the share that their rows have in the one index. `mapped_bytes` are rows in the
    page cache, which the system takes back when it must. `gpu_bytes` and `page_locked_bytes` are
    for each GPU, and the latter is memory of the host. `volatile_bytes` are of a bounded volatile
    tier when it is as full as it may get, give or take a third.
    """

    name: str
    num_keys: int
    embedding_dim: int
    is_range: bool
    index_kind: str = "direct"
    index_bytes: int = 0
    mapped_bytes: int = 0
    volatile_bytes: int = 0
    gpu_bytes: int = 0
    page_locked_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelBudget:
    """One model: its tables, and what each GPU needs for lookups beside them."""

    model: ModelConfiguration
    tables: tuple[TableBudget, ...]
    lookup_gpu_bytes: int
    lookup_page_locked_bytes: int

    @property
    def devices(self) -> tuple[int, ...]:
        """The GPUs that cache the tables, if the machine has them."""
        return tuple(dict.fromkeys(self.model.deployed_device_list)) if self.model.gpucache else ()

    @property
    def gpu_bytes(self) -> int:
        """Bytes on each of `devices`."""
        return self.lookup_gpu_bytes + sum(table.gpu_bytes for table in self.tables)

    @property
    def page_locked_bytes(self) -> int:
        """Page-locked bytes on the host for each of `devices`."""
        return self.lookup_page_locked_bytes + sum(t.page_locked_bytes for t in self.tables)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """All models of a configuration."""

    models: tuple[ModelBudget, ...]

    @property
    def mapped_bytes(self) -> int:
        """Rows that lookups read from the page cache."""
        return sum(table.mapped_bytes for model in self.models for table in model.tables)

    @property
    def volatile_bytes(self) -> int:
        """What copies in the volatile tier may take."""
        return sum(table.volatile_bytes for model in self.models for table in model.tables)

    @property
    def index_bytes(self) -> int:
        """What the indices take, for good."""
        return sum(table.index_bytes for model in self.models for table in model.tables)

    def page_locked_bytes(self, devices: Sequence[int]) -> int:
        """Page-locked memory for those of the configured GPUs that are among `devices`."""
        return sum(
            model.page_locked_bytes * len(set(model.devices) & set(devices))
            for model in self.models
        )

    def gpu_bytes(self) -> Mapping[int, int]:
        """Bytes on each GPU that a model names."""
        found: dict[int, int] = {}
        for model in self.models:
            for device in model.devices:
                found[device] = found.get(device, 0) + model.gpu_bytes
        return found

    def with_share(self, share: float) -> Budget:
        """Return the budget with another `gpucacheper` for all tables that can have a part cached.

        Those of a static cache stay whole.
        """
        models = []
        for of_model in self.models:
            model = of_model.model
            if model.embedding_cache_type != "static":
                model = replace(model, gpucacheper=share)
            models.append(_with_gpu(model, of_model.tables))
        return Budget(models=tuple(models))


def forecast(configuration: Configuration) -> Budget:
    """Open the sparse models of a configuration, and return what loading them will take.

    Raises TableError where a folder cannot be used.
    """
    return Budget(models=tuple(_of_model(configuration, m) for m in configuration.models))


def cache_budget(model: ModelConfiguration, keys: Sequence[npt.NDArray[np.int64]]) -> ModelBudget:
    """Return what the GPU caches of a model's tables take; `keys` are those of each table's rows.

    Of the host, it counts page-locked memory alone.
    """
    tables = [
        TableBudget(
            name=name,
            num_keys=len(of_table),
            embedding_dim=dim,
            is_range=_is_range(of_table),
        )
        for name, dim, of_table in zip(
            model.embedding_table_names, model.embedding_vecsize_per_table, keys, strict=True
        )
    ]
    return _with_gpu(model, tables)


def index_bytes(num_keys: int) -> int:
    """Return what the host's hash index of so many keys takes."""
    return -(-num_keys // _KEYS_PER_BUCKET) * _BUCKET_BYTES


def resident_bytes(
    num_keys: int, dim: int, num_device_rows: int, *, is_range: bool, float8: bool = False
) -> int:
    """Return GPU bytes of a table that answers every key: static, uvm, or dynamic and whole."""
    index = 0 if is_range else (num_keys * 5 // 3 + 2) * _INDEX_SLOT_BYTES
    row = dim + _SCALE_BYTES if float8 else dim * _FLOAT_BYTES
    return num_device_rows * row + dim * _FLOAT_BYTES + index  # the defaults are exact


def slab_bytes(num_keys: int, dim: int, share: float) -> int:
    """Return GPU bytes of a dynamic cache that holds a share of the rows, below all."""
    wanted = share * num_keys
    sets = max(2, int(wanted + _SLOTS_PER_SET - 1) // _SLOTS_PER_SET) if wanted > 0 else 0
    slot = _SLOT_KEY_BYTES + _STAMP_BYTES + dim * _FLOAT_BYTES
    return sets * _SLOTS_PER_SET * slot + dim * _FLOAT_BYTES


def _of_model(configuration: Configuration, model: ModelConfiguration) -> ModelBudget:
    dims = model.embedding_vecsize_per_table
    opened = [open_sparse_model(f, d) for f, d in zip(model.sparse_files, dims, strict=True)]
    ranges = [_is_range(sparse_model.keys) for sparse_model in opened]
    tables = []
    for i, sparse_model in enumerate(opened):
        # Fused tables share one index, or need none if all of them are ranges.
        group = [
            j
            for j in range(len(opened))
            if j == i or (configuration.fuses(model) and dims[j] == dims[i])
        ]
        direct = all(ranges[j] for j in group)
        num_keys = len(sparse_model.keys)
        tables.append(
            TableBudget(
                name=model.embedding_table_names[i],
                num_keys=num_keys,
                embedding_dim=dims[i],
                is_range=ranges[i],
                index_kind="direct" if direct else "hash",
                index_bytes=0 if direct else _share_of_index(opened, group, i),
                mapped_bytes=num_keys * dims[i] * _FLOAT_BYTES,
                volatile_bytes=_volatile_bytes(configuration, num_keys, dims[i]),
            )
        )
    return _with_gpu(model, tables)


def _with_gpu(model: ModelConfiguration, tables: Sequence[TableBudget]) -> ModelBudget:
    """Return the budget of a model, with what its cache type takes on each GPU."""
    share, cache_type = min(1.0, max(0.0, model.gpucacheper)), model.embedding_cache_type
    has_slabs = model.gpucache and cache_type == "dynamic" and share < 1
    filled = []
    for table in tables:
        gpu_bytes, page_locked = 0, 0
        if has_slabs:
            gpu_bytes = slab_bytes(table.num_keys, table.embedding_dim, share)
        elif model.gpucache:
            rows = int(share * table.num_keys) if cache_type == "uvm" else table.num_keys
            gpu_bytes = resident_bytes(
                table.num_keys,
                table.embedding_dim,
                rows,
                is_range=table.is_range,
                float8=model.fp8_quant,
            )
            page_locked = (table.num_keys - rows) * table.embedding_dim * _FLOAT_BYTES
        filled.append(replace(table, gpu_bytes=gpu_bytes, page_locked_bytes=page_locked))
    lookups = _lookup_bytes(model) if has_slabs else (0, 0)
    return ModelBudget(
        model=model,
        tables=tuple(filled),
        lookup_gpu_bytes=lookups[0],
        lookup_page_locked_bytes=lookups[1],
    )


def _lookup_bytes(model: ModelConfiguration) -> tuple[int, int]:
    """Return what lookups of a slab cache need, on the GPU and page-locked on the host."""
    max_keys = model.max_batch_size * max(model.maxnum_catfeature_query_per_table_per_sample)
    max_keys = min(max_keys, _MAX_WORKSPACE_KEYS)
    places = 2
    while places < 2 * max_keys:
        places *= 2
    largest_row = max(model.embedding_vecsize_per_table) * _FLOAT_BYTES
    # Two halves of rows on their way to the GPU, and of what was found.
    half = max(_STAGING_BYTES, largest_row) + _STAGING_ROWS
    staging = (2 * half, 2 * (half + _STAGING_ROWS * _KEY_BYTES))
    workspaces = model.num_of_worker_buffer_in_pool
    on_gpu = places * _SEEN_BYTES + max_keys * _LIST_BYTES + _COUNTS_BYTES + staging[0]
    on_host = max_keys * _KEY_BYTES + _HOST_COUNTS_BYTES + staging[1]
    # One staging more for rows that are inserted in the background.
    return workspaces * on_gpu + staging[0], workspaces * on_host + staging[1]


def _volatile_bytes(configuration: Configuration, num_keys: int, dim: int) -> int:
    section, options = configuration.volatile_db, plan_tiers(configuration).volatile
    if section is None or options is None:
        return 0
    section = section.near_cache or section
    rows = num_keys
    if not section.cache_missed_embeddings:  # then only what is loaded at the start comes in
        rate = section.initial_cache_rate if section.initialize_after_startup else 0.0
        rows = math.ceil(rate * num_keys)
    rows = min(-(-rows // options.num_partitions), options.overflow_margin)
    row = -(-(_USE_BYTES + dim * _FLOAT_BYTES) // 8) * 8
    # Both grow to twice their size, rows up to allocation_rate at a time.
    at_once = max(1, options.allocation_rate // row)
    kept = min(_FIRST_SLOTS, at_once, rows)
    while kept < rows:
        kept += min(kept, at_once)
    slots = _FIRST_SLOTS
    while 4 * rows > 3 * slots:
        slots *= 2
    return options.num_partitions * (kept * row + slots * _MAP_SLOT_BYTES)


def _share_of_index(opened: Sequence[SparseModel], group: Sequence[int], table: int) -> int:
    """Return a table's part of its group's index, so that the parts add up to the whole."""
    before = sum(len(opened[j].keys) for j in group if j < table)
    num_keys = sum(len(opened[j].keys) for j in group)
    whole = index_bytes(num_keys)
    ends = (before, before + len(opened[table].keys))
    return whole * ends[1] // num_keys - whole * ends[0] // num_keys


def _is_range(keys: npt.NDArray[np.int64]) -> bool:
    for begin in range(0, len(keys), _CHUNK):
        # One key more, so that the chunks hang together; differences wrap around as keys do.
        part = keys[begin : begin + _CHUNK + 1].astype(np.uint64)
        if (np.diff(part) != 1).any():
            return False
    return True
