"""Triton's custom metrics, from inside the server: its C interface, by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

_PARAMETER_STRING = 0


class MetricFamily:
    """Metrics of one name; gone from Triton's page with the object and all of its metrics."""

    COUNTER: ClassVar[int] = 0
    GAUGE: ClassVar[int] = 1

    def __init__(self, name: str, description: str, kind: int) -> None:
        """Register the name. Raises RuntimeError in Triton's words where it is taken otherwise."""
        self._family = ctypes.c_void_p()
        _call("MetricFamilyNew", ctypes.byref(self._family), kind, _text(name), _text(description))

    def Metric(self, labels: Mapping[str, str]) -> Metric:
        """Return a new metric of the family, under the method's name in Triton."""
        return Metric(self, labels)

    @property
    def handle(self) -> ctypes.c_void_p:
        """Triton's own."""
        return self._family

    def __del__(self) -> None:
        if self._family:
            _call("MetricFamilyDelete", self._family)


class Metric:
    """One value; keeps its family."""

    def __init__(self, family: MetricFamily, labels: Mapping[str, str]) -> None:
        self._family, self._metric = family, ctypes.c_void_p()
        library = _triton()
        parameters = (ctypes.c_void_p * len(labels))(
            *(
                library.TRITONSERVER_ParameterNew(_text(key), _PARAMETER_STRING, _text(value))
                for key, value in labels.items()
            )
        )
        try:
            _call(
                "MetricNew",
                ctypes.byref(self._metric),
                family.handle,
                parameters,
                ctypes.c_uint64(len(labels)),
            )
        finally:
            for parameter in parameters:
                library.TRITONSERVER_ParameterDelete(ctypes.c_void_p(parameter))

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
        if self._metric:
            _call("MetricDelete", self._metric)


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
