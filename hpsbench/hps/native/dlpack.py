"""Arrays of other libraries in GPU memory, by way of DLPack."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import HpsError

CUDA = 2
DEFAULT_STREAM = 1
_KINDS = {0: "int", 1: "uint", 2: "float"}
_NAME = b"dltensor"


class _Tensor(ctypes.Structure):
    """`DLTensor` of DLPack 0."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_number", ctypes.c_int32),
        ("num_dims", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Contiguous values at an address of a GPU's memory."""

    pointer: int
    shape: tuple[int, ...]
    dtype: npt.DTypeLike

    @property
    def size(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)


@contextmanager
def on_gpu(array: Any, device: int, stream: int, *, what: str) -> Iterator[DeviceMemory]:
    """Give the memory of `array`, an object with `__dlpack__`, ready in the order of `stream`.

    Its owner keeps a `DeviceMemory`, which is given as it is; anything else is held on to until the
    block ends. Raises HpsError, which calls the array `what`, where it is not on GPU `device` or
    not contiguous.
    """
    if isinstance(array, DeviceMemory):
        yield array
        return
    where = tuple(array.__dlpack_device__())
    if (int(where[0]), int(where[1])) != (CUDA, device):
        raise HpsError(
            f"{what} is on DLPack device {(int(where[0]), int(where[1]))}, not on GPU {device}",
            hint=f"pass a NumPy array, or one in the memory of GPU {device}",
        )
    try:
        capsule = array.__dlpack__(stream=stream)
    except (TypeError, RuntimeError):  # TensorFlow takes no stream, and waits for the values itself
        capsule = array.__dlpack__()
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype = ctypes.c_void_p
    pointer_of.argtypes = (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer_of(capsule, _NAME))
    dims = range(tensor.num_dims)
    shape = tuple(tensor.shape[i] for i in dims)
    if tensor.strides and math.prod(shape):
        expected = [math.prod(shape[i + 1 :]) for i in dims]
        if any(shape[i] != 1 and tensor.strides[i] != expected[i] for i in dims):
            raise HpsError(
                f"{what} of shape {list(shape)} is not contiguous", hint="pass a contiguous array"
            )
    kind = _KINDS.get(tensor.type_code)
    if kind is None or tensor.type_lanes != 1:
        raise HpsError(f"{what} has values of DLPack type {tensor.type_code}", hint=f"copy {what}")
    yield DeviceMemory(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        dtype=np.dtype(f"{kind}{tensor.type_bits}"),
    )
    del capsule
