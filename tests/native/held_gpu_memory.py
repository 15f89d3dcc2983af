"""Another process that holds memory of GPU 0, as a neighbour would.

As a program it takes all but a number of bytes; to each line of its input it answers with what is
free, and it ends with its input.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from collections.abc import Iterator


class HeldGpuMemory:
    """The process; it has taken the memory."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def free_bytes(self) -> int:
        """Return what is free on the GPU now, as CUDA tells it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def release(self) -> None:
        """Give the memory back; again does nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        assert self._process.wait(timeout=30) == 0


@contextlib.contextmanager
def held_gpu_memory(leave: int) -> Iterator[HeldGpuMemory]:
    """Hold all memory of GPU 0 but about `leave` bytes, as long as the context."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(leave)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        left = int(process.stdout.readline())
        # An allocation takes a little for itself, and leaves less than a piece.
        assert leave - (16 << 20) <= left < leave + (512 << 20), left
        yield (held := HeldGpuMemory(process))
        held.release()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def main(leave: int) -> None:
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        status = getattr(cuda, name)(*arguments)
        if status:
            sys.exit(f"{name} failed with {status}")

    def free_bytes() -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    device, context = ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    address = ctypes.c_uint64()
    if free_bytes() > leave:
        taken = (free_bytes() - leave) >> 21 << 21  # memory comes in pieces of 2 MiB
        call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(taken))
    print(free_bytes(), flush=True)
    for _ in sys.stdin:
        print(free_bytes(), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
