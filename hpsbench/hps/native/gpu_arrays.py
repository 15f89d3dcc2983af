"""Rows in GPU memory, as Python objects that other libraries take by DLPack."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import HpsError
from hpsbench.hps.native import dlpack, gpu


class _Memory:
    """A reference to an array of the GPU library, given back with this object."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self.handle = handle
        self.release = gpu.library().hps_gpu_array_release

    def __del__(self) -> None:
        self.release(self.handle)


class DeviceArray:
    """Values in the memory of a GPU, contiguous; a view where made from another.

    The memory is given back to later lookups when neither this object, nor a view of it, nor what
    another library made of it by DLPack is left, and after the work on the streams that were named
    to `__dlpack__`. `pointer` is for libraries that take an address: it is valid as long as this
    object, and work with it must have ended before.
    """

    def __init__(
        self,
        memory: _Memory,
        device: int,
        dtype: npt.DTypeLike,
        shape: tuple[int, ...],
        first: int = 0,
    ) -> None:
        self._memory = memory
        self._first = first
        self.device = device
        self.dtype = np.dtype(dtype)
        self.shape = shape
        start = gpu.library().hps_gpu_array_data(memory.handle) or 0
        self.pointer: int = start + first * self.dtype.itemsize

    @classmethod
    def own(cls, handle: ctypes.c_void_p, device: int, dtype: npt.DTypeLike, size: int) -> Any:
        """Return the flat array of `handle`, whose reference it takes over."""
        return cls(_Memory(handle), device, dtype, (size,))

    @property
    def size(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Their size in bytes."""
        return self.size * self.dtype.itemsize

    def reshape(self, *shape: int) -> DeviceArray:
        """Return a view with other lengths, of which one may be -1."""
        known = math.prod(n for n in shape if n != -1)
        lengths = tuple(self.size // max(known, 1) if n == -1 else n for n in shape)
        if math.prod(lengths) != self.size or shape.count(-1) > 1 or min(lengths, default=0) < 0:
            raise HpsError(
                f"an array of shape {list(self.shape)} cannot have shape {list(shape)}",
                hint="give lengths whose product is the number of values",
            )
        return DeviceArray(self._memory, self.device, self.dtype, lengths, self._first)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> DeviceArray:
        """Return a view of consecutive entries of the first axis."""
        begin, end, step = part.indices(self.shape[0])
        if step != 1:
            raise HpsError(f"a slice has step {step}", hint="take consecutive entries")
        rest = self.shape[1:]
        return DeviceArray(
            self._memory, self.device, self.dtype, (max(0, end - begin), *rest),
            self._first + begin * math.prod(rest),
        )  # fmt: skip

    def numpy(self) -> npt.NDArray[Any]:
        """Return a copy in host memory."""
        out = np.empty(self.shape, self.dtype)
        gpu.call("hps_gpu_array_read", self._memory.handle, self._first, out.size, out.ctypes.data)
        return out

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's number for CUDA, and the GPU's."""
        return dlpack.CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a capsule that holds on to the memory; `stream` will wait until it is written.

        `stream` is a CUDA stream's handle, 1 or None for the default stream, -1 for none: whoever
        passes that must have finished its work before the last reference goes.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("rows are handed over where they are; copy them afterwards")
        if stream != -1:
            gpu.call("hps_gpu_array_use", self._memory.handle, stream or dlpack.DEFAULT_STREAM)
        lengths = (ctypes.c_int64 * len(self.shape))(*self.shape)
        return gpu.python_library().hps_gpu_array_capsule(
            self._memory.handle, self._first, lengths, len(self.shape)
        )
