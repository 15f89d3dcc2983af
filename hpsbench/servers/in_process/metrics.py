"""Triton's custom metrics, from inside the server: its C interface, by ctypes."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

_PARAMETER_STRING = 0

_LOCK = threading.RLock()


@dataclass
class _Shared:
    """An object of Triton's, deleted when its last user lets it go."""

    handle: ctypes.c_void_p
    users: int = 1


class _SharedObjects:
    """Triton's objects by what they are.

    Of a name, and of labels, it hands one and the same metric out to two that ask for it, as a
    model and its successor do, and one's end would be the end of the other's.
    """

    def __init__(self, delete: str) -> None:
        self._delete = delete
        self._objects: dict[Any, _Shared] = {}

    def take(self, key: Any, make: Callable[[], ctypes.c_void_p]) -> ctypes.c_void_p:
        """Return what was made for `key`; `make` is called where there is none."""
        with _LOCK:
            try:
                # In one step, in which no collection can end the other users.
                self._objects[key].users += 1
            except KeyError:
                self._objects[key] = _Shared(make())
            return self._objects[key].handle

    def let_go(self, key: Any) -> None:
        """End a use; the last one deletes the object."""
        with _LOCK:
            shared = self._objects[key]
            shared.users -= 1
            if not shared.users:
                del self._objects[key]
                _call(self._delete, shared.handle)


_FAMILIES = _SharedObjects("MetricFamilyDelete")
_METRICS = _SharedObjects("MetricDelete")


class MetricFamily:
    """Metrics of one name; gone from Triton's page with the last such object and its metrics."""

    COUNTER: ClassVar[int] = 0
    GAUGE: ClassVar[int] = 1

    def __init__(self, name: str, description: str, kind: int) -> None:
        """Register the name. Raises RuntimeError in Triton's words where it is taken otherwise."""
        self._key: tuple[str, str, int] | None = None
        self._handle = _FAMILIES.take(
            (name, description, kind), lambda: _new_family(name, description, kind)
        )
        self._key = name, description, kind

    def Metric(self, labels: Mapping[str, str]) -> Metric:
        """Return a metric of the family, under the method's name in Triton.

        Two of the same labels are one, as long as either is there.
        """
        assert self._key is not None
        return Metric(self._key, labels)

    def __del__(self) -> None:
        if self._key is not None:
            _FAMILIES.let_go(self._key)


class Metric:
    """One value; keeps its family."""

    def __init__(self, family: tuple[str, str, int], labels: Mapping[str, str]) -> None:
        self._family: tuple[str, str, int] | None = None
        self._key: Any = None
        handle = _FAMILIES.take(family, lambda: _new_family(*family))
        self._family = family
        key = family, frozenset(labels.items())
        self._metric = _METRICS.take(key, lambda: _new_metric(handle, labels))
        self._key = key

    def increment(self, value: float) -> None:
        """Add to the value."""
        _call("MetricIncrement", self._metric, ctypes.c_double(value))

    def set(self, value: float) -> None:
        """Set the value, of a gauge."""
        _call("MetricSet", self._metric, ctypes.c_double(value))

    def value(self) -> float:
        """Return the value."""
        value = ctypes.c_double()
        _call("MetricValue", self._metric, ctypes.byref(value))
        return value.value

    def __del__(self) -> None:
        if self._key is not None:
            _METRICS.let_go(self._key)
        if self._family is not None:
            _FAMILIES.let_go(self._family)


def _new_family(name: str, description: str, kind: int) -> ctypes.c_void_p:
    family = ctypes.c_void_p()
    _call("MetricFamilyNew", ctypes.byref(family), kind, _text(name), _text(description))
    return family


def _new_metric(family: ctypes.c_void_p, labels: Mapping[str, str]) -> ctypes.c_void_p:
    library, metric = _triton(), ctypes.c_void_p()
    parameters = (ctypes.c_void_p * len(labels))(
        *(
            library.TRITONSERVER_ParameterNew(_text(key), _PARAMETER_STRING, _text(value))
            for key, value in labels.items()
        )
    )
    count = ctypes.c_uint64(len(labels))
    try:
        _call("MetricNew", ctypes.byref(metric), family, parameters, count)
    finally:
        for parameter in parameters:
            library.TRITONSERVER_ParameterDelete(ctypes.c_void_p(parameter))
    return metric


def _text(value: str) -> ctypes.c_char_p:
    return ctypes.c_char_p(value.encode())


def _call(name: str, *arguments: Any) -> None:
    library = _triton()
    function = getattr(library, f"TRITONSERVER_{name}")
    function.restype = ctypes.c_void_p
    error = function(*arguments)
    if error:
        words = library.TRITONSERVER_ErrorMessage(ctypes.c_void_p(error)).decode()
        library.TRITONSERVER_ErrorDelete(ctypes.c_void_p(error))
        raise RuntimeError(words)


@cache
def _triton() -> ctypes.CDLL:
    # The server's own process has it.
    library = ctypes.CDLL(None)
    library.TRITONSERVER_ParameterNew.restype = ctypes.c_void_p
    library.TRITONSERVER_ErrorMessage.restype = ctypes.c_char_p
    library.TRITONSERVER_ErrorMessage.argtypes = [ctypes.c_void_p]
    return library
