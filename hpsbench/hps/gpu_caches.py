"""The caches of a configured model on the GPUs that it names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import HpsError
from hpsbench.hps.configuration import ModelConfiguration
from hpsbench.hps.native import gpu
from hpsbench.hps.native.bindings import NativeModel

_LOG = logging.getLogger("hpsbench.hps")


def attach_caches(
    native: NativeModel, model: ModelConfiguration, keys: Sequence[npt.NDArray[np.int64]]
) -> tuple[int, ...]:
    """Return the GPUs on which `native` has a cache from now on: those of `deployed_device_list`.

    There are none without `gpucache`, and none on a machine without a GPU. `keys` are those of each
    table's rows. Raises HpsError where a device is not there, or its memory does not suffice.
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
    if model.fp8_quant:
        _LOG.warning("model %s: fp8_quant is not supported yet; rows stay float32", model.model)
    for device in devices:
        gpu.attach(native, _options(model, device), keys, model.default_value_for_each_table)
        _log_budget(native, model, device)
    return devices


def log_without_cache(model: ModelConfiguration, reason: str) -> None:
    """Say, where `model` is to have GPU caches, why it has none."""
    if model.gpucache:
        _LOG.info(
            "model %s: gpucache is not available here; lookups are served from host memory (%s)",
            model.model, reason,
        )  # fmt: skip


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
