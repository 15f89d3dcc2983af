"""The GPU library's C interface (`gpu_cache.h`) in Python: caches of a model's tables on GPUs."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import HpsError
from hpsbench.hps.native import build
from hpsbench.hps.native.bindings import Error, NativeModel
from hpsbench.machine import find_gpus

CACHE_TYPES = ("dynamic", "static", "uvm")
ROW_TYPES = (np.dtype(np.float32), np.dtype(np.float16))
_OK = 0
_RESOURCE_EXHAUSTED = 8
_MEMORY_HINT = (
    "lower gpucacheper, or max_batch_size where lookups need it; see who else uses the GPU "
    "(nvidia-smi); have TensorFlow leave memory free (TF_FORCE_GPU_ALLOW_GROWTH=true, or call Init "
    "before TensorFlow uses the GPU); or set gpucache to false"
)
_HINT = "see what else uses the GPU (nvidia-smi), or set gpucache to false"


class OutOfMemory(HpsError):
    """GPU memory, or page-locked memory of the host, does not suffice."""


class _Options(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_int32),
        ("type", ctypes.c_int),
        ("share", ctypes.c_double),
        ("hit_rate_threshold", ctypes.c_double),
        ("preload", ctypes.c_int32),
        ("num_workspaces", ctypes.c_int32),
        ("max_keys", ctypes.c_uint64),
        ("float8", ctypes.c_int32),
    )


class _TableSpec(ctypes.Structure):
    _fields_ = (("keys", ctypes.c_void_p), ("default_value", ctypes.c_float))


class _Part(ctypes.Structure):
    _fields_ = (
        ("table", ctypes.c_int32),
        ("keys", ctypes.c_void_p),
        ("num_keys", ctypes.c_uint64),
        ("out", ctypes.c_void_p),
        ("keys_per_sample", ctypes.c_uint64),
        ("stride", ctypes.c_uint64),
    )


class _Facts(ctypes.Structure):
    _fields_ = (
        ("capacity", ctypes.c_uint64),
        ("device_bytes", ctypes.c_uint64),
        ("host_bytes", ctypes.c_uint64),
        ("resident", ctypes.c_int32),
        ("lookups", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("hits", ctypes.c_uint64),
        ("unique_keys", ctypes.c_uint64),
        ("unique_hits", ctypes.c_uint64),
        ("inserted", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("sampled_lookups", ctypes.c_uint64),
        ("probe_ns", ctypes.c_uint64),
        ("fetch_ns", ctypes.c_uint64),
        ("merge_ns", ctypes.c_uint64),
        ("insertion_ns", ctypes.c_uint64),
    )


@dataclass(frozen=True, kw_only=True)
class GpuCacheOptions:
    """How one GPU caches the tables of a model; the fields are those of the configuration.

    `max_keys` is what a lookup of one table takes memory for; more keys go in several parts.
    """

    device: int
    cache_type: str = "dynamic"
    share: float = 0.2
    hit_rate_threshold: float = 0.9
    preload: bool = True
    num_workspaces: int = 1
    max_keys: int = 1 << 20
    float8: bool = False
    """Static tables: rows of 8-bit floats (E4M3), each with a scale."""


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """A table on a GPU, and how often it was asked: counts since load.

    `capacity` is in rows. `hits` of the asked `keys` were answered on the GPU. A `resident` table
    answers all that exist there, and does not count unique keys; `inserted` are then the rows that
    updates added.

    The times are of `sampled_lookups`, one in 64, added up: finding rows and copying those that are
    on the GPU (`probe_ns`), fetching the others from the host, copying them to the output
    (`merge_ns`), and inserting them.
    """

    capacity: int
    device_bytes: int
    host_bytes: int
    resident: bool
    lookups: int
    keys: int
    hits: int
    unique_keys: int
    unique_hits: int
    inserted: int
    evicted: int
    sampled_lookups: int
    probe_ns: int
    fetch_ns: int
    merge_ns: int
    insertion_ns: int


class _FlatRequest(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("key_bytes", ctypes.c_int32),
        ("keys_on_gpu", ctypes.c_int32),
        ("num_keys", ctypes.c_void_p),
        ("row_type", ctypes.c_int),
        ("on_stream", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
    )


@functools.cache
def _path() -> Path | None:
    architectures = sorted({gpu.architecture for gpu in find_gpus()})
    return build.gpu_library(architectures) if architectures else None


@functools.cache
def library() -> Any:
    """Return the loaded library, or None where there is no GPU, no driver or no nvcc."""
    path = _path()
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    pointer, int32 = ctypes.c_void_p, ctypes.c_int32
    error = ctypes.POINTER(Error)
    signatures: dict[str, tuple[Any, ...]] = {
        "hps_gpu_count": (),
        "hps_gpu_attach": (pointer, ctypes.POINTER(_Options), ctypes.POINTER(_TableSpec), error),
        "hps_gpu_table_facts": (pointer, int32, int32, ctypes.POINTER(_Facts), error),
        "hps_gpu_lookup_host": (
            pointer, int32, ctypes.POINTER(_Part), int32, int32, ctypes.c_int, error,
        ),
        "hps_gpu_lookup_flat": (
            pointer, int32, ctypes.POINTER(_FlatRequest), pointer, ctypes.POINTER(pointer), error,
        ),
        "hps_gpu_array_use": (pointer, pointer, error),
        "hps_gpu_array_read": (pointer, ctypes.c_uint64, ctypes.c_uint64, pointer, error),
        "hps_gpu_bus_bandwidth": (int32, ctypes.c_uint64, ctypes.POINTER(ctypes.c_double), error),
        "hps_gpu_settle": (pointer, int32, error),
        "hps_gpu_update": (pointer, int32, int32, pointer, pointer, ctypes.c_uint64, error),
        "hps_gpu_refresh": (pointer, int32, int32, ctypes.c_double, error),
        "hps_gpu_interact": (int32, pointer, pointer, error),
        "hps_gpu_widen": (int32, pointer, pointer, error),
        "hps_gpu_logistic": (int32, pointer, pointer, error),
    }  # fmt: skip
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.restype = int32
        function.argtypes = arguments
    library.hps_gpu_array_data.restype = pointer
    library.hps_gpu_array_data.argtypes = (pointer,)
    library.hps_gpu_array_release.restype = None
    library.hps_gpu_array_release.argtypes = (pointer,)
    return library


@functools.cache
def python_library() -> Any:
    """Return the library for calls that make Python objects, and so keep the interpreter's lock."""
    library = ctypes.PyDLL(str(_path()))
    library.hps_gpu_array_capsule.restype = ctypes.py_object
    library.hps_gpu_array_capsule.argtypes = (
        ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(ctypes.c_int64), ctypes.c_int32,
    )  # fmt: skip
    return library


def why_unavailable() -> str | None:
    """Return what is missing for a cache on a GPU in this process; None where nothing is."""
    if not find_gpus():
        return "no GPU"
    if library() is None:
        return "no nvcc to compile it with"
    return None if count() else "CUDA sees no GPU"


def count() -> int:
    """Return how many GPUs this process sees, and numbers from 0."""
    loaded = library()
    return 0 if loaded is None else int(loaded.hps_gpu_count())


def bus_bandwidth(device: int, num_bytes: int) -> float:
    """Return the bandwidth of a copy from page-locked host memory, in bytes per second."""
    found = ctypes.c_double()
    call("hps_gpu_bus_bandwidth", device, num_bytes, ctypes.byref(found))
    return found.value


def attach(
    model: NativeModel,
    options: GpuCacheOptions,
    keys: Sequence[npt.NDArray[np.int64]],
    default_values: Sequence[float],
) -> None:
    """Give `model` a cache on one GPU, for as long as it lives.

    `keys` are those of each table's rows, in their order. Raises OutOfMemory where GPU memory does
    not suffice; then none of it stays taken.
    """
    kept = [np.ascontiguousarray(k, np.int64) for k in keys]
    specs = (_TableSpec * len(kept))()
    for spec, table_keys, default_value in zip(specs, kept, default_values, strict=True):
        spec.keys, spec.default_value = table_keys.ctypes.data, default_value
    native = _Options(
        options.device, CACHE_TYPES.index(options.cache_type), options.share,
        options.hit_rate_threshold, options.preload, options.num_workspaces, options.max_keys,
        options.float8,
    )  # fmt: skip
    call("hps_gpu_attach", model.handle, ctypes.byref(native), specs)


def facts(model: NativeModel, device: int, table: int) -> GpuFacts:
    """Return what table number `table` of `model` is on GPU `device`, and its counters."""
    found = _Facts()
    call("hps_gpu_table_facts", model.handle, device, table, ctypes.byref(found))
    values = {name: getattr(found, name) for name, _ in _Facts._fields_}
    return GpuFacts(**{**values, "resident": bool(values["resident"])})


def lookup(
    model: NativeModel,
    device: int,
    keys_of_tables: Sequence[tuple[int, npt.NDArray[Any]]],
    dtype: npt.DTypeLike = np.float32,
) -> list[npt.NDArray[Any]]:
    """Return rows [n, dim], float32 or float16, for each table number and its keys.

    They come by way of GPU `device`. All keys are int64[n], or all are int32[n].
    """
    asked = [(table, np.ascontiguousarray(keys)) for table, keys in keys_of_tables]
    outs = [np.full((len(k), model.embedding_dims[t]), np.nan, dtype) for t, k in asked]
    parts = (_Part * len(asked))()
    for part, (table, keys), out in zip(parts, asked, outs, strict=True):
        part.table, part.keys, part.num_keys = table, keys.ctypes.data, len(keys)
        part.out = out.ctypes.data
    key_bytes = asked[0][1].itemsize if asked else 0
    call(
        "hps_gpu_lookup_host", model.handle, device, parts, len(parts), key_bytes,
        ROW_TYPES.index(np.dtype(dtype)),
    )  # fmt: skip
    return outs


def lookup_flat(
    model: NativeModel,
    device: int,
    keys: int,
    num_keys: npt.NDArray[np.uint64],
    *,
    key_bytes: int,
    keys_on_gpu: bool,
    dtype: npt.DTypeLike,
    stream: int | None,
    out: int | None,
) -> ctypes.c_void_p:
    """Write the rows of all tables' keys, flat, to `out`; without one, return a new array.

    `keys` and `out` are addresses. Without a `stream`, the rows are written when this returns.
    """
    request = _FlatRequest(
        keys, key_bytes, keys_on_gpu, num_keys.ctypes.data, ROW_TYPES.index(np.dtype(dtype)),
        stream is not None, stream,
    )  # fmt: skip
    array = ctypes.c_void_p()
    call(
        "hps_gpu_lookup_flat", model.handle, device, ctypes.byref(request), out,
        ctypes.byref(array),
    )  # fmt: skip
    return array


def update(
    model: NativeModel,
    device: int,
    table: int,
    keys: npt.NDArray[np.int64],
    rows: npt.NDArray[np.float32],
) -> None:
    """Replace the rows of int64[n] `keys`, each once, by float32[n, dim] where the GPU holds them.

    A resident table takes in keys that are new to it. The host must have the rows already.
    """
    call(
        "hps_gpu_update", model.handle, device, table, keys.ctypes.data, rows.ctypes.data, len(keys)
    )


def refresh(model: NativeModel, device: int, table: int, share: float) -> None:
    """Replace the next `share` (0 to 1) of the rows that the GPU holds by what the host has."""
    call("hps_gpu_refresh", model.handle, device, table, share)


def settle(model: NativeModel, device: int) -> None:
    """Wait until what is to be inserted in the background is."""
    call("hps_gpu_settle", model.handle, device)


def call(name: str, *arguments: Any) -> None:
    """Call a function that returns a status and takes an error last; raises HpsError for it."""
    error = Error()
    status = getattr(library(), name)(*arguments, ctypes.byref(error))
    text = error.text.decode(errors="replace")
    if status == _RESOURCE_EXHAUSTED:
        raise OutOfMemory(text, hint=_MEMORY_HINT)
    if status != _OK:
        raise HpsError(text, hint=_HINT)
