"""The few calls of CUDA's driver that a served model makes: memory, copies, streams, graphs.

By ctypes, from the library that every NVIDIA driver brings; no toolkit is needed. Nothing here is
given back but by `close` or `free`: `DeviceResources` does that for all that a model takes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import ServerError

_PORTABLE = 1
_NON_BLOCKING = 1
_NO_TIMING = 2
_POINTER_MEMORY_TYPE = 2
_HOST_MEMORY = 1
_RELAXED = 2
_THREAD_LOCAL = 1


class PinnedMemory:
    """Page-locked host memory, which the GPU copies from and to; `address` is where."""

    def __init__(self, num_bytes: int) -> None:
        address = ctypes.c_void_p()
        _call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(num_bytes), _PORTABLE)
        self.address = int(address.value or 0)
        self._num_bytes = num_bytes

    def view(self, dtype: npt.DTypeLike, shape: tuple[int, ...], first: int) -> npt.NDArray[Any]:
        """Return the array of this type and shape that begins at byte `first`; until `close`."""
        if not self.address:
            raise _closed("page-locked memory")
        memory = (ctypes.c_char * self._num_bytes).from_address(self.address)
        return np.ndarray(shape, dtype, memoryview(memory), first)

    def close(self) -> None:
        """Give it back; the GPU must be done with it."""
        if self.address:
            _call("cuMemFreeHost", ctypes.c_void_p(self.address))
            self.address = 0


class Event:
    """A place in a stream's work, for another stream to wait for; of the GPU in use."""

    def __init__(self) -> None:
        self.handle = ctypes.c_void_p()
        _call("cuEventCreate", ctypes.byref(self.handle), _NO_TIMING)

    def close(self) -> None:
        """Give it back, now or when it has come."""
        if self.handle:
            _call("cuEventDestroy_v2", self.handle)
            self.handle = ctypes.c_void_p()


class Stream:
    """Work on one GPU in order."""

    def __init__(self, device: int) -> None:
        use_device(device)
        self._pointer = ctypes.c_void_p()
        _call("cuStreamCreate", ctypes.byref(self._pointer), _NON_BLOCKING)

    @property
    def handle(self) -> int:
        """What libraries take."""
        return int(self._raw.value or 0)

    def send(self, target: int, source: int, num_bytes: int) -> None:
        """Queue a copy from page-locked host memory to the GPU; both are addresses."""
        _call("cuMemcpyHtoDAsync_v2", _address(target), _address(source), num_bytes, self._raw)

    def fetch(self, target: int, source: int, num_bytes: int) -> None:
        """Queue a copy from the GPU to page-locked host memory."""
        _call("cuMemcpyDtoHAsync_v2", _address(target), _address(source), num_bytes, self._raw)

    def record(self, event: Event) -> None:
        """Let `event` be the end of what was queued until now."""
        _call("cuEventRecord", event.handle, self._raw)

    def hold(self, event: Event) -> None:
        """Let what is queued from now on wait for `event`, where it was recorded."""
        _call("cuStreamWaitEvent", self._raw, event.handle, 0)

    def wait(self) -> None:
        """Return when all that was queued is done."""
        _call("cuStreamSynchronize", self._raw)

    def close(self) -> None:
        """Give it back; what it was given is done all the same."""
        if self._pointer:
            _call("cuStreamDestroy_v2", self._pointer)
            self._pointer = ctypes.c_void_p()

    @property
    def _raw(self) -> ctypes.c_void_p:
        if not self._pointer:
            raise _closed("stream")
        return self._pointer


class Graph:
    """Work that was captured on a stream, to be queued there at once."""

    def __init__(self, queue: Callable[[], None], stream: int) -> None:
        """Capture what `queue` queues on `stream`.

        `queue` is called twice: first to load what it needs, which a capture would not allow.
        """
        queue()
        self._stream, self._executable = ctypes.c_void_p(stream), ctypes.c_void_p()
        graph = ctypes.c_void_p()
        _call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            queue()
        finally:
            _call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            _call(
                "cuGraphInstantiateWithFlags",
                ctypes.byref(self._executable),
                graph,
                ctypes.c_ulonglong(0),
            )
        finally:
            _call("cuGraphDestroy", graph)

    def __call__(self) -> None:
        """Queue the work."""
        if not self._executable:
            raise _closed("graph")
        _call("cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        """Give it back; the stream must be done with it."""
        if self._executable:
            _call("cuGraphExecDestroy", self._executable)
            self._executable = ctypes.c_void_p()


def use_device(device: int) -> None:
    """Let this thread work on the GPU, also while another captures a graph."""
    _call("cuCtxSetCurrent", _context(device))
    _call("cuThreadExchangeStreamCaptureMode", ctypes.byref(ctypes.c_int(_RELAXED)))


def device_memory(num_bytes: int) -> int:
    """Return the address of new memory of the GPU in use, zeroed; `free` gives it back."""
    address = ctypes.c_uint64()
    _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
    _call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(num_bytes))
    return int(address.value)


def free(address: int) -> None:
    """Give memory of the GPU in use back, when all its work is done."""
    _call("cuMemFree_v2", _address(address))


def free_bytes() -> int:
    """Return how much memory of the GPU in use nobody has taken."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return int(free.value)


def is_page_locked(array: npt.NDArray[Any]) -> bool:
    """Return whether the array is one piece that the GPU reads without the processor's help."""
    kind = ctypes.c_uint()
    address = _address(array.ctypes.data)
    status = _driver().cuPointerGetAttribute(ctypes.byref(kind), _POINTER_MEMORY_TYPE, address)
    return bool(array.flags.c_contiguous and status == 0 and kind.value == _HOST_MEMORY)


def upload(array: npt.NDArray[Any]) -> int:
    """Return the address of new memory of the GPU in use that holds a contiguous array."""
    address = device_memory(array.nbytes)
    fill(address, array)
    return address


def fill(target: int, array: npt.NDArray[Any]) -> None:
    """Copy a contiguous array to memory of the GPU in use."""
    _call("cuMemcpyHtoD_v2", _address(target), ctypes.c_void_p(array.ctypes.data), array.nbytes)
    _call("cuStreamSynchronize", None)  # it may return before the GPU has got all


def download(source: int, array: npt.NDArray[Any], stream: int) -> None:
    """Fill a contiguous array from memory of the GPU, when all work on `stream` is done."""
    _call("cuStreamSynchronize", ctypes.c_void_p(stream))
    _call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), _address(source), array.nbytes)


def _address(value: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(value)


def _closed(what: str) -> ServerError:
    return ServerError(f"this {what} has been given back", hint="load the model again")


@cache
def _context(device: int) -> ctypes.c_void_p:
    _call("cuInit", 0)
    number, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(number), device)
    # The one that TensorFlow, ONNX Runtime and CUDA's runtime share, which stays.
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
    return context


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ServerError(
            f"no CUDA driver: {error}", hint="install NVIDIA's driver; see `hpsbench doctor`"
        ) from error


def _call(name: str, *arguments: Any) -> None:
    driver = _driver()
    status = getattr(driver, name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        raise ServerError(
            f"{name}: {(text.value or b'unknown').decode()}",
            hint="see what else uses the GPU (nvidia-smi)",
        )
