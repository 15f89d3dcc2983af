"""`triton_python_backend_utils` for models inside the server: the part of it that ours use.

Of the same names and meaning as in Triton's Python backend, with tensors in host memory only. An
input's array lies in memory that is the next request's when this one is answered, and cannot be
written to. What that backend lacks is `take_output`.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hpsbench.servers.in_process.metrics import MetricFamily

__all__ = [
    "InferenceRequest",
    "InferenceResponse",
    "MetricFamily",
    "OutputMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "get_input_tensor_by_name",
]

#: TRITONSERVER_DataType, but for strings and bfloat16, which NumPy lacks.
_NAMES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16",
    "float32", "float64",
)  # fmt: skip
_TYPES: Mapping[int, np.dtype[Any]] = {n: np.dtype(name) for n, name in enumerate(_NAMES, 1)}
_NUMBERS = {dtype: number for number, dtype in _TYPES.items()}

#: Name, data type, shape, address and bytes.
GivenTensor: TypeAlias = tuple[str, int, tuple[int, ...], int, int]
#: The same, and the array that keeps them.
NamedTensor: TypeAlias = tuple[str, int, tuple[int, ...], int, int, npt.NDArray[Any]]


class TritonModelException(Exception):
    """Raised by a model; its words are the client's."""


class TritonError:
    """Why a request was not answered."""

    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        """Return the words."""
        return self._message


class Tensor:
    """A named array in host memory."""

    def __init__(self, name: str, array: npt.NDArray[Any]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        """Return the name in the model's configuration."""
        return self._name

    def is_cpu(self) -> bool:
        """Return True."""
        return True

    def as_numpy(self) -> npt.NDArray[Any]:
        """Return the array itself, not a copy."""
        return self._array

    def described(self) -> NamedTensor:
        """Return what the backend hands to Triton. Raises TypeError for a type without a number."""
        array = np.ascontiguousarray(self._array)
        number = _NUMBERS.get(array.dtype)
        if number is None:
            raise TypeError(f"output {self._name} is {array.dtype}, which Triton cannot send")
        address = array.__array_interface__["data"][0]
        return self._name, number, self._array.shape, address, array.nbytes, array


class _TakenOutput(ctypes.Structure):
    """As in `outputs.h`."""

    _fields_ = (
        ("response", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("byte_size", ctypes.c_uint64),
        ("gpu", ctypes.c_int64),
        ("dims_count", ctypes.c_uint32),
        ("datatype", ctypes.c_int32),
        ("address", ctypes.c_void_p),
        ("is_on_gpu", ctypes.c_int32),
        ("problem", ctypes.c_char * 256),
    )


_TAKE_OUTPUT = ctypes.CFUNCTYPE(None, ctypes.POINTER(_TakenOutput))


@dataclass(frozen=True, kw_only=True)
class OutputMemory:
    """Memory of a response, valid until that is sent: on the GPU that was named, or on the host."""

    address: int
    is_on_gpu: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def on_host(self) -> npt.NDArray[Any]:
        """Return it as an array, where it is on the host."""
        num_bytes = self.dtype.itemsize * math.prod(self.shape)
        memory = (ctypes.c_char * num_bytes).from_address(self.address) if num_bytes else b""
        return np.ndarray(self.shape, self.dtype, memoryview(memory))


class InferenceRequest:
    """A request's inputs, where the backend gathered them, and memory for its answer.

    `response` is the server's, and `take_output` the address of a function of the backend.
    """

    def __init__(self, inputs: Sequence[GivenTensor], response: int, take_output: int) -> None:
        self._inputs = {given[0]: Tensor(given[0], _array(given)) for given in inputs}
        self._response, self._take_output = response, take_output

    def take_output(
        self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], gpu: int | None = None
    ) -> OutputMemory:
        """Add an output to the response, which the model is to write before it answers.

        It is asked for on GPU `gpu`, or on the host; a client's is on the host nevertheless. Raises
        TritonModelException where the server has no memory.
        """
        dtype = np.dtype(dtype)
        output = _TakenOutput(
            response=self._response,
            name=name.encode(),
            shape=(ctypes.c_int64 * len(shape))(*shape),
            byte_size=dtype.itemsize * math.prod(shape),
            gpu=-1 if gpu is None else gpu,
            dims_count=len(shape),
            datatype=_NUMBERS[dtype],
        )
        _TAKE_OUTPUT(self._take_output)(ctypes.byref(output))
        if output.problem:
            raise TritonModelException(output.problem.decode(errors="replace"))
        return OutputMemory(
            address=output.address or 0, is_on_gpu=bool(output.is_on_gpu), dtype=dtype, shape=shape
        )

    def inputs(self) -> list[Tensor]:
        """Return all inputs, as the client ordered them."""
        return list(self._inputs.values())

    def input(self, name: str) -> Tensor | None:
        """Return an input, None where the client sent none of the name."""
        return self._inputs.get(name)


class InferenceResponse:
    """The outputs that answer a request, or an error."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        self._tensors, self._error = list(output_tensors), error

    def has_error(self) -> bool:
        """Return whether there is an error instead of outputs."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """Return the error, if there is one."""
        return self._error

    def output_tensors(self) -> list[Tensor]:
        """Return the outputs."""
        return self._tensors


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """Return the request's input of that name, None where it has none."""
    return request.input(name)


def _array(given: GivenTensor) -> npt.NDArray[Any]:
    name, number, shape, address, num_bytes = given
    dtype = _TYPES.get(number)
    if dtype is None:
        raise TritonModelException(f"input {name} has Triton's data type {number}, not a number's")
    memory = (ctypes.c_char * num_bytes).from_address(address) if num_bytes else bytearray()
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, memoryview(memory))
    array.flags.writeable = False
    return array
