"""The tiers of the core (`core.h`) in Python: options, updates, counters, and databases to ask."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpsbench.errors import HpsError
from hpsbench.hps.native import build
from hpsbench.hps.native.bindings import Error, NativeModel

_FETCHED, _FETCHED_WANTS_MISSING, _FAILED = 0, 1, -1
_OVERFLOW_POLICIES = ("evict_random", "evict_least_used", "evict_oldest")


class Tier(IntEnum):
    """Where rows come from, in the order in which a key is asked."""

    VOLATILE = 0
    REDIS = 1
    UPDATED = 2
    ROCKSDB = 3
    MAPPED = 4


@dataclass(frozen=True, kw_only=True)
class VolatileOptions:
    """Bounds of the volatile tier; the fields are those of the configuration's `volatile_db`."""

    num_partitions: int = 16
    overflow_margin: int = 2**64 - 1
    overflow_policy: str = "evict_random"
    overflow_resolution_target: float = 0.8
    allocation_rate: int = 268435456


@dataclass(frozen=True, kw_only=True)
class TierOptions:
    """Which tiers a table has around its mapped rows, and in which order they come."""

    volatile: VolatileOptions | None = None
    cache_missed: bool = False
    redis: bool = False
    rocksdb: bool = False
    mapped_first: bool = False


@dataclass(frozen=True, kw_only=True)
class TierFacts:
    """What one tier of a table was asked since load, and what it holds.

    `hits` of the asked `keys` were answered by it, in `ns` nanoseconds of all threads together;
    a batch that looks below the volatile tier asks for each key once. `inserted`, `evicted`,
    `num_rows` and `num_bytes` are of tiers in this process; of the others they are 0.
    """

    keys: int
    hits: int
    ns: int
    inserted: int
    evicted: int
    num_rows: int
    num_bytes: int

    @property
    def misses(self) -> int:
        """Keys that it was asked for and does not have."""
        return self.keys - self.hits


class Databases(Protocol):
    """Databases outside the process; asked from any thread, by several at once."""

    def fetch(
        self,
        tier: Tier,
        table: int,
        keys: npt.NDArray[np.int64],
        out: npt.NDArray[np.float32],
        found: npt.NDArray[np.bool_],
    ) -> bool | None:
        """Write the rows of int64[n] `keys` to float32[n, dim] `out`, and set bool[n] `found`.

        Returns None where the tier fails, else whether it wants the rows that it lacks.
        """

    def insert(
        self,
        tier: Tier,
        table: int,
        keys: npt.NDArray[np.int64],
        rows: npt.NDArray[np.float32],
    ) -> None:
        """Take rows that the tier lacked; the arrays are valid only during the call."""


class _VolatileOptions(ctypes.Structure):
    _fields_ = (
        ("num_partitions", ctypes.c_uint32),
        ("overflow_margin", ctypes.c_uint64),
        ("overflow_policy", ctypes.c_int32),
        ("overflow_resolution_target", ctypes.c_double),
        ("allocation_rate", ctypes.c_uint64),
    )


class _TierOptions(ctypes.Structure):
    _fields_ = (
        ("has_volatile", ctypes.c_int32),
        ("volatile_tier", _VolatileOptions),
        ("cache_missed", ctypes.c_int32),
        ("redis", ctypes.c_int32),
        ("rocksdb", ctypes.c_int32),
        ("mapped_first", ctypes.c_int32),
    )


class _TierFacts(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in TierFacts.__annotations__)


_Fetch = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int32, ctypes.c_int32,
    ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p,
)  # fmt: skip
_Insert = ctypes.CFUNCTYPE(
    None, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p
)


class _Databases(ctypes.Structure):
    _fields_ = (("fetch", _Fetch), ("insert", _Insert))


@functools.cache
def _core() -> Any:
    core = ctypes.CDLL(str(build.core_library()))
    pointer, int32, uint64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64
    error = ctypes.POINTER(Error)
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "hps_model_retain": (None, (pointer,)),
        "hps_model_release": (None, (pointer,)),
        "hps_model_set_databases": (None, (pointer, ctypes.POINTER(_Databases))),
        "hps_model_set_tiers": (int32, (pointer, int32, ctypes.POINTER(_TierOptions), error)),
        "hps_model_tier_facts": (None, (pointer, int32, int32, ctypes.POINTER(_TierFacts))),
        "hps_model_preload": (int32, (pointer, int32, pointer, uint64, error)),
        "hps_model_tier_keys": (uint64, (pointer, int32, int32, pointer, uint64)),
        "hps_model_refresh": (int32, (pointer, int32, error)),
        "hps_model_update": (int32, (pointer, int32, pointer, uint64, pointer, error)),
        "hps_fetch_from": (
            int32, (pointer, int32, int32, pointer, uint64, pointer, pointer, error)
        ),
        "hps_fetch": (None, (pointer, int32, pointer, uint64, pointer, pointer)),
    }  # fmt: skip
    for name, (result, arguments) in signatures.items():
        function = getattr(core, name)
        function.restype = result
        function.argtypes = arguments
    return core


def _call(name: str, *arguments: Any) -> None:
    error = Error()
    if getattr(_core(), name)(*arguments, ctypes.byref(error)) != 0:
        raise HpsError(
            error.text.decode(errors="replace"),
            hint="give the process more memory, or bound the tables: initial_cache_rate, "
            "overflow_margin",
        )


def set_tiers(model: NativeModel, table: int, options: TierOptions) -> None:
    """Give a table the tiers of `options`; once, before it is asked."""
    volatile = _VolatileOptions()
    if options.volatile is not None:
        volatile = _VolatileOptions(
            options.volatile.num_partitions,
            options.volatile.overflow_margin,
            _OVERFLOW_POLICIES.index(options.volatile.overflow_policy),
            options.volatile.overflow_resolution_target,
            options.volatile.allocation_rate,
        )
    native = _TierOptions(
        options.volatile is not None, volatile, options.cache_missed, options.redis,
        options.rocksdb, options.mapped_first,
    )  # fmt: skip
    _call("hps_model_set_tiers", model.handle, table, ctypes.byref(native))


def tier_facts(model: NativeModel, table: int, tier: Tier) -> TierFacts:
    """Return what a tier of a table holds, and its counters."""
    facts = _TierFacts()
    _core().hps_model_tier_facts(model.handle, table, tier, ctypes.byref(facts))
    return TierFacts(**{name: getattr(facts, name) for name in TierFacts.__annotations__})


def preload(model: NativeModel, table: int, keys: npt.NDArray[np.int64]) -> None:
    """Copy the rows of int64[n] `keys` into the volatile tier, from what lies below it."""
    keys = np.ascontiguousarray(keys)
    _call("hps_model_preload", model.handle, table, keys.ctypes.data, len(keys))


def tier_keys(model: NativeModel, table: int, tier: Tier) -> npt.NDArray[np.int64]:
    """Return int64[n], the keys that VOLATILE or UPDATED holds now, in no order."""
    count = tier_facts(model, table, tier).num_rows
    while True:  # more may come meanwhile
        keys = np.empty(count, np.int64)
        held = _core().hps_model_tier_keys(model.handle, table, tier, keys.ctypes.data, count)
        if held <= count:
            return keys[:held]
        count = held


def refresh(model: NativeModel, table: int) -> None:
    """Rewrite the rows of the volatile tier from what lies below it."""
    _call("hps_model_refresh", model.handle, table)


def update(
    model: NativeModel, table: int, keys: npt.NDArray[np.int64], rows: npt.NDArray[np.float32]
) -> None:
    """Set the rows, contiguous float32[n, dim], of contiguous int64[n] `keys`, in host memory."""
    _call("hps_model_update", model.handle, table, keys.ctypes.data, len(keys), rows.ctypes.data)


def fetch(
    model: NativeModel, table: int, keys: npt.NDArray[np.int64], first: Tier | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the rows float32[n, dim] of int64[n] `keys` as caches get them, and which there are.

    `first` leaves out the tiers before it.
    """
    keys = np.ascontiguousarray(keys)
    out = np.empty((len(keys), model.embedding_dims[table]), np.float32)
    found = np.empty(len(keys), np.bool_)
    arguments = (keys.ctypes.data, len(keys), out.ctypes.data, found.ctypes.data)
    if first is None:
        _core().hps_fetch(model.handle, table, *arguments)
    else:
        _call("hps_fetch_from", model.handle, table, first, *arguments)
    return out, found


def set_databases(model: NativeModel, databases: Databases) -> Callable[[], None]:
    """Have lookups ask `databases` for the tiers REDIS and ROCKSDB.

    Returns a function that takes them back, and returns when no lookup is with them any more. It is
    called by itself when `model` goes, and before the interpreter ends; again does nothing.
    """
    dims = model.embedding_dims

    def fetch(tier: int, table: int, keys: int, count: int, out: int, found: int) -> int:
        try:
            wants_missing = databases.fetch(
                Tier(tier),
                table,
                _array(keys, ctypes.c_int64, (count,)),
                _array(out, ctypes.c_float, (count, dims[table])),
                _array(found, ctypes.c_uint8, (count,)).view(np.bool_),
            )
        except BaseException:  # nothing may leave a callback, and the next tier answers
            return _FAILED
        if wants_missing is None:
            return _FAILED
        return _FETCHED_WANTS_MISSING if wants_missing else _FETCHED

    def insert(tier: int, table: int, keys: int, count: int, rows: int) -> None:
        databases.insert(
            Tier(tier),
            table,
            _array(keys, ctypes.c_int64, (count,)),
            _array(rows, ctypes.c_float, (count, dims[table])),
        )

    native = _Databases(_Fetch(fetch), _Insert(insert))
    core, handle = _core(), ctypes.c_void_p(model.handle.value)
    core.hps_model_retain(handle)  # `model` may be gone when they are taken back
    core.hps_model_set_databases(handle, ctypes.byref(native))

    def take_back(kept: Any = native) -> None:
        core.hps_model_set_databases(handle, None)
        core.hps_model_release(handle)

    return weakref.finalize(model, take_back)


def _array(address: int, item: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    count = int(np.prod(shape))
    return np.frombuffer((item * count).from_address(address), item).reshape(shape)
