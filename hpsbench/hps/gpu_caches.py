"""The caches of a configured model on the GPUs that it names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import HpsError
from hpsbench.hps.budget import cache_budget
from hpsbench.hps.configuration import ModelConfiguration
from hpsbench.hps.native import gpu
from hpsbench.hps.native.bindings import NativeModel

_GIB = 2**30
_LOG = logging.getLogger("hpsbench.hps")


def attach_caches(
    native: NativeModel, model: ModelConfiguration, keys: Sequence[npt.NDArray[np.int64]]
) -> tuple[int, ...]:
    """Return the GPUs on which `native` has a cache from now on: those of `deployed_device_list`.

    There are none without `gpucache`, and none on a machine without a GPU. `keys` are those of each
    table's rows. Raises HpsError where a device is not there, and OutOfMemory, which is one, where
    its memory does not suffice: what is to be cached is never left on the host instead.
    """
    if not model.gpucache:
        return ()
    missing = gpu.why_unavailable()
    if missing is not None:
        log_without_cache(model, missing)
        return ()
    devices = tuple(dict.fromkeys(model.deployed_device_list))
    visible = gpu.count()
    if max(devices) >= visible:
        raise HpsError(
            f"model {model.model}: deployed_device_list names device {max(devices)}, and this "
            f"process sees {visible} GPUs",
            hint=f"name devices from 0 to {visible - 1}, or let CUDA_VISIBLE_DEVICES show more",
        )
    for device in devices:
        _attach(native, model, device, keys)
        _log_budget(native, model, device)
    return devices


def _attach(
    native: NativeModel,
    model: ModelConfiguration,
    device: int,
    keys: Sequence[npt.NDArray[np.int64]],
) -> None:
    try:
        gpu.attach(native, _options(model, device), keys, model.default_value_for_each_table)
    except gpu.OutOfMemory as error:
        needed = cache_budget(model, keys)
        locked = needed.page_locked_bytes / _GIB
        raise gpu.OutOfMemory(
            f"model {model.model} needs about {needed.gpu_bytes / _GIB:.2f} GiB of GPU {device} "
            f"for its {model.embedding_cache_type} cache"
            + (f", and {locked:.2f} GiB page-locked on the host" if locked else "")
            + f": {error.problem}",
            hint=error.hint,
        ) from error


def log_without_cache(model: ModelConfiguration, reason: str) -> None:
    """Say, where `model` is to have GPU caches, why it has none."""
    if model.gpucache:
        _LOG.info(
            "model %s: gpucache is not available here; lookups are served from host memory (%s)",
            model.model, reason,
        )  # fmt: skip


def update(
    native: NativeModel,
    devices: Sequence[int],
    table: int,
    keys: npt.NDArray[np.int64],
    rows: npt.NDArray[np.float32],
) -> None:
    """Let the caches of a table answer with new rows: `rows` float32[n, dim] of `keys` int64[n].

    The host tiers must have them already. Then a lookup that begins after this returned answers
    with the new rows, on every device; one under way meanwhile answers with the old row or the new
    one of a key, never with a mixture. Where a key occurs twice, its last row counts. A cache that
    holds all rows takes in keys that are new to it, and raises HpsError where GPU memory does not
    suffice for them.
    """
    keys = np.asarray(keys, np.int64).reshape(-1)
    rows = np.asarray(rows, np.float32).reshape(len(keys), native.embedding_dims[table])
    # The first of the reversed keys is the last of the keys.
    distinct, first = np.unique(keys[::-1], return_index=True)
    last_rows = np.ascontiguousarray(rows[::-1][first])
    for device in devices:
        gpu.update(native, device, table, np.ascontiguousarray(distinct), last_rows)


def refresh(
    native: NativeModel, devices: Sequence[int], tables: Sequence[int], share: float
) -> None:
    """Replace the next `share` (0 to 1) of each table's cached rows by what the host tiers have.

    Calls go round a table: after 1 / `share` of them, rounded up, every row has had its turn.
    Lookups go on meanwhile, as in `update`. Rows that no tier finds stay as they are.
    """
    for device in devices:
        for table in tables:
            gpu.refresh(native, device, table, min(1.0, max(0.0, share)))


def cache_statistics(
    native: NativeModel, devices: Sequence[int], table: int
) -> dict[int, dict[str, Any]]:
    """Return the `GpuFacts` of a table, as a dict, by device."""
    return {device: dataclasses.asdict(gpu.facts(native, device, table)) for device in devices}


def _options(model: ModelConfiguration, device: int) -> gpu.GpuCacheOptions:
    return gpu.GpuCacheOptions(
        device=device,
        cache_type=model.embedding_cache_type,
        share=model.gpucacheper,
        hit_rate_threshold=model.hit_rate_threshold,
        preload=model.init_ec,
        num_workspaces=model.num_of_worker_buffer_in_pool,
        max_keys=model.max_batch_size * max(model.maxnum_catfeature_query_per_table_per_sample),
        float8=model.fp8_quant,
    )


def _log_budget(native: NativeModel, model: ModelConfiguration, device: int) -> None:
    for table, name in enumerate(model.embedding_table_names):
        found = gpu.facts(native, device, table)
        _LOG.info(
            "model %s, table %s, GPU %d: %d of %d rows cached; %d bytes on the GPU, "
            "%d page-locked on the host",
            model.model, name, device, found.capacity, native.facts(table).num_keys,
            found.device_bytes, found.host_bytes,
        )  # fmt: skip
