"""The core's C interface (`core.h`) in Python: models to load, ask and register."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import BenchError, HpsError
from hpsbench.hps.native import build

_OK = 0
_ALREADY_EXISTS = 6
_FAILED_PRECONDITION = 9
_LOAD_HINT = "mend the sparse model, or the configuration that names it"
_LOAD_HINTS = {
    _ALREADY_EXISTS: "give fused tables keys of their own, or set fuse_embedding_table to false",
}
_INDEX_KINDS = ("direct", "hash")


class Error(ctypes.Structure):
    """Where the native functions write what went wrong."""

    _fields_ = (("text", ctypes.c_char * 4096),)


class _TableSpec(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("key_path", ctypes.c_char_p),
        ("rows_path", ctypes.c_char_p),
        ("num_keys", ctypes.c_uint64),
        ("embedding_dim", ctypes.c_uint64),
        ("default_value", ctypes.c_float),
        ("fusion_group", ctypes.c_int32),
    )


class _TableFacts(ctypes.Structure):
    _fields_ = (
        ("num_keys", ctypes.c_uint64),
        ("embedding_dim", ctypes.c_uint64),
        ("index_bytes", ctypes.c_uint64),
        ("index_kind", ctypes.c_int),
        ("lookups", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("missing_keys", ctypes.c_uint64),
    )


_Initializer = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, ctypes.POINTER(Error)
)


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One table to load: `num_keys` int64 keys in one file, float32 rows in another."""

    name: str
    key_path: Path
    rows_path: Path
    num_keys: int
    embedding_dim: int
    default_value: float = 0.0
    fusion_group: int = -1
    """Tables of one group, from 0, share one index; -1: an index of its own."""


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """A loaded table, and how often it was asked: counts since load.

    `index_bytes` is what the index takes beyond the rows; tables of one fusion group share it.
    """

    num_keys: int
    embedding_dim: int
    index_bytes: int
    index_kind: str
    lookups: int
    keys: int
    missing_keys: int


@functools.cache
def _core() -> Any:
    core = ctypes.CDLL(str(build.core_library()))
    pointer, int32, uint64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "hps_model_load": (
            ctypes.c_int,
            (ctypes.POINTER(_TableSpec), int32, int32, ctypes.POINTER(pointer),
             ctypes.POINTER(Error)),
        ),
        "hps_model_release": (None, (pointer,)),
        "hps_model_num_tables": (int32, (pointer,)),
        "hps_model_table_facts": (None, (pointer, int32, ctypes.POINTER(_TableFacts))),
        "hps_lookup_flat_int64": (None, (pointer, pointer, pointer, pointer)),
        "hps_lookup_flat_int32": (None, (pointer, pointer, pointer, pointer)),
        "hps_registry_put": (None, (ctypes.c_char_p, pointer)),
        "hps_registry_get": (pointer, (ctypes.c_char_p,)),
        "hps_registry_clear": (None, ()),
        "hps_registry_remove": (None, (ctypes.c_char_p,)),
        "hps_registry_generation": (uint64, ()),
        "hps_set_initializer": (None, (_Initializer,)),
        "hps_initialize": (
            ctypes.c_int,
            (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, ctypes.POINTER(Error)),
        ),
    }  # fmt: skip
    for name, (result, arguments) in signatures.items():
        function = getattr(core, name)
        function.restype = result
        function.argtypes = arguments
    return core


class NativeModel:
    """A loaded model: tables by number, asked on `num_threads` threads (0: one per core).

    Raises HpsError where a file cannot be mapped or fused tables hold the same key.
    """

    def __init__(self, tables: Sequence[TableSpec], *, num_threads: int = 0) -> None:
        specs = (_TableSpec * len(tables))()
        for spec, table in zip(specs, tables, strict=True):
            spec.name = table.name.encode()
            spec.key_path = str(table.key_path).encode()
            spec.rows_path = str(table.rows_path).encode()
            spec.num_keys = table.num_keys
            spec.embedding_dim = table.embedding_dim
            spec.default_value = table.default_value
            spec.fusion_group = table.fusion_group
        self._handle = ctypes.c_void_p()
        self._release: Callable[[Any], None] = _core().hps_model_release
        error = Error()
        status = _core().hps_model_load(
            specs, len(tables), num_threads, ctypes.byref(self._handle), ctypes.byref(error)
        )
        if status != _OK:
            raise HpsError(
                error.text.decode(errors="replace"), hint=_LOAD_HINTS.get(status, _LOAD_HINT)
            )
        self.embedding_dims = tuple(self.facts(t).embedding_dim for t in range(len(tables)))

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Give the memory back now, on the host and on GPUs; nothing may be asked any more."""
        if getattr(self, "_handle", None):
            self._release(self._handle)
            self._handle = ctypes.c_void_p()

    @property
    def handle(self) -> ctypes.c_void_p:
        """The model, for other native libraries; valid until `release`, which makes it an error."""
        if not self._handle:
            raise HpsError("these tables have been released", hint="open the model again")
        return self._handle

    def facts(self, table: int) -> TableFacts:
        """Return what table number `table` is, and its counters."""
        facts = _TableFacts()
        _core().hps_model_table_facts(self.handle, table, ctypes.byref(facts))
        values = {name: getattr(facts, name) for name, _ in _TableFacts._fields_}
        return TableFacts(**{**values, "index_kind": _INDEX_KINDS[values["index_kind"]]})

    def lookup_flat(
        self, keys: npt.NDArray[Any], num_keys: npt.NDArray[np.uint64], out: npt.NDArray[np.float32]
    ) -> None:
        """Write the rows of `num_keys[t]` keys per table t, flat, table after table, to `out`.

        `keys` is int64 or int32; all arrays are contiguous, and of lengths that agree: this does
        not check them.
        """
        core = _core()
        function = (
            core.hps_lookup_flat_int64 if keys.dtype == np.int64 else core.hps_lookup_flat_int32
        )
        function(self.handle, keys.ctypes.data, num_keys.ctypes.data, out.ctypes.data)

    def register(self, model_name: str) -> None:
        """Let the TensorFlow operation find this model under `model_name`."""
        _core().hps_registry_put(model_name.encode(), self.handle)


def remove_from_registry(model_name: str) -> None:
    """Forget one registered model; does nothing where there is none."""
    _core().hps_registry_remove(model_name.encode())


def clear_registry() -> None:
    """Forget all registered models; operations are initialised anew when they run next."""
    _core().hps_registry_clear()


def set_initializer(initialize: Callable[[str, str, int], None]) -> Callable[[], None]:
    """Let the operation call `initialize(model_name, ps_config_file, global_batch_size)`.

    What it raises becomes the operation's error. Returns a function that takes the initializer
    back, which must be called before the interpreter ends.
    """

    def call(name: bytes, path: bytes, global_batch_size: int, error: Any) -> int:
        try:
            initialize(name.decode(), path.decode(), global_batch_size)
        except Exception as problem:
            text = f"{problem}" if isinstance(problem, BenchError) else f"{problem!r}"
            error.contents.text = text.encode()[:4095]
            return _FAILED_PRECONDITION
        return _OK

    callback = _Initializer(call)
    _core().hps_set_initializer(callback)

    def take_back(kept: Any = callback) -> None:
        _core().hps_set_initializer(_Initializer())

    return take_back
