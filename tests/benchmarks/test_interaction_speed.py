"""The dot interaction's kernel beside a copy of its vectors on the GPU.

`pytest tests/benchmarks/test_interaction_speed.py -s` prints microseconds per part of 16,384
samples, and bytes that the kernel must read and write per second. Needs no TensorFlow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest

from hpsbench.hps.native.gpu_interaction import DotInteraction
from hpsbench.servers.backend import cuda
from hpsbench.servers.backend.batch_parts import LARGEST

pytestmark = pytest.mark.gpu

SLOTS, DIM, WIDTH = 26, 128, 480
CALLS, ROUNDS = 100, 5


def microseconds(stream: cuda.Stream, call: Callable[[], None]) -> float:
    """Return what one of many calls takes that the GPU works on one after another."""
    begun = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    stream.wait()
    return (time.perf_counter_ns() - begun) / CALLS / 1e3


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_it_takes_about_what_reading_the_vectors_takes(dtype: str) -> None:
    stream, size = cuda.Stream(0), np.dtype(dtype).itemsize
    vectors = LARGEST * SLOTS * DIM * size
    source, target = cuda.device_memory(vectors), cuda.device_memory(vectors)
    dense = cuda.device_memory(LARGEST * DIM * size)
    out = cuda.device_memory(LARGEST * WIDTH * size)
    interact = DotInteraction(device=0, slots=SLOTS, dim=DIM, width=WIDTH, dtype=dtype).bind(
        LARGEST, dense=dense, vectors=source, out=out, stream=stream.handle
    )

    def copy() -> None:
        cuda._call("cuMemcpyDtoDAsync_v2", *map(cuda._address, (target, source)), vectors,
                   stream._raw)  # fmt: skip

    rounds = [(microseconds(stream, copy), microseconds(stream, interact)) for _ in range(ROUNDS)]
    copied_us, taken_us = (median(times) for times in zip(*rounds[1:], strict=True))
    moved = LARGEST * (SLOTS * DIM + DIM + WIDTH) * size
    print(
        f"\n{dtype}: interaction {taken_us:.0f} us ({moved / taken_us / 1e3:.0f} GB/s), "
        f"copy of the vectors {copied_us:.0f} us ({2 * vectors / copied_us / 1e3:.0f} GB/s)"
    )
    # A copy reads them once and writes as much.
    assert taken_us <= (1.0 if dtype == "float16" else 1.5) * copied_us
