"""The dot interaction on the GPU beside NumPy's, for any shape that there is a kernel for."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest

from hpsbench.errors import HpsError
from hpsbench.hps.native.gpu_interaction import DotInteraction
from hpsbench.models.dlrm import dot_interaction
from hpsbench.servers.backend import cuda

pytestmark = pytest.mark.gpu

SAMPLES = (0, 1, 31, 32, 33, 1000)
SLOTS = (1, 15, 26, 31, 32, 40, 63)
DIMS = (16, 64, 72, 128, 256)
MOST = 1000 * 63 * 256 * 4
GUARDS = 3  # rows of the output before and behind what is asked for
UNTOUCHED = 0xA5


class Device:
    """A stream, and memory of the GPU that every case uses again."""

    def __init__(self) -> None:
        self.stream = cuda.Stream(0)
        self.dense, self.vectors, self.out = (cuda.device_memory(MOST) for _ in range(3))
        self._host = cuda.PinnedMemory(MOST)

    def write(self, address: int, values: np.ndarray) -> None:
        if not values.size:
            return
        self._host.view(values.dtype, values.shape, 0)[:] = values
        self.stream.send(address, self._host.address, values.nbytes)
        self.stream.wait()

    def read(self, address: int, dtype: np.dtype, *shape: int) -> np.ndarray:
        self.stream.fetch(self._host.address, address, int(np.prod(shape)) * dtype.itemsize)
        self.stream.wait()
        return self._host.view(dtype, shape, 0).copy()


@pytest.fixture(scope="module")
def device() -> Device:
    return Device()


@dataclass(kw_only=True)
class Case:
    """Random vectors of a shape, and what comes of them in float64."""

    dense: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, samples: int, slots: int, dim: int, dtype: str, seed: int = 0) -> Case:
        random = np.random.default_rng(seed)
        values = random.standard_normal((samples, 1 + slots, dim), np.float32)
        values = values.astype(dtype)
        return cls(dense=values[:, 0].copy(), vectors=values[:, 1:].copy())

    @cached_property
    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """What is to come, and how far it may be off: summed up in float32, rounded once."""
        dense, vectors = self.dense.astype(np.float64), self.vectors.astype(np.float64)
        values = dot_interaction(dense, vectors)
        added = dot_interaction(np.abs(dense), np.abs(vectors))
        return values, 0.5001 * np.spacing(np.abs(values).astype(self.dense.dtype)) + 1e-6 * added

    def check(self, given: np.ndarray) -> None:
        samples, dim = self.dense.shape
        expected, allowed = self.expected
        width = expected.shape[1]
        assert given.shape[0] == samples
        np.testing.assert_array_equal(given[:, :dim], self.dense)
        wrong = np.abs(given[:, :width] - expected) > allowed
        assert not wrong.any(), f"{wrong.sum()} of {wrong.size}, first at {np.argwhere(wrong)[0]}"
        assert not given[:, width:].any()


def padded(width: int, multiple: int) -> int:
    return width + -width % multiple


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("slots", SLOTS)
def test_products_of_every_pair_and_nothing_else_is_written(
    device: Device, slots: int, dim: int, dtype: str
) -> None:
    kind = np.dtype(dtype)
    least = dim + slots * (slots + 1) // 2
    for samples in SAMPLES:
        case = Case.of(samples, slots, dim, dtype, seed=samples)
        device.write(device.vectors, case.vectors)
        device.write(device.dense, case.dense)
        for width in (padded(least, 8), padded(least, 8) + 16, padded(least, 8) + 1):
            before = 16 * width * kind.itemsize  # begins at a multiple of 16 bytes
            rows = samples + GUARDS
            all_bytes = np.full(before + rows * width * kind.itemsize, UNTOUCHED, np.uint8)
            device.write(device.out, all_bytes)
            DotInteraction(device=0, slots=slots, dim=dim, width=width, dtype=kind).bind(
                samples,
                dense=device.dense,
                vectors=device.vectors,
                out=device.out + before,
                stream=device.stream.handle,
            )()
            found = device.read(device.out, np.dtype(np.uint8), all_bytes.size)
            assert (found[:before] == UNTOUCHED).all()
            values = found[before:].view(kind).reshape(rows, width)
            assert (values[samples:].view(np.uint8) == UNTOUCHED).all()
            case.check(values[:samples])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dense_vectors_may_be_any_stride_apart(device: Device, dtype: str) -> None:
    samples, slots, dim, width = 100, 26, 128, 480
    case = Case.of(samples, slots, dim, dtype)
    wide = np.full((samples, 6 * dim), np.nan, dtype)
    wide[:, :dim] = case.dense
    device.write(device.dense, wide)
    device.write(device.vectors, case.vectors)
    DotInteraction(device=0, slots=slots, dim=dim, width=width, dtype=dtype).bind(
        samples,
        dense=device.dense,
        dense_stride=6 * dim,
        vectors=device.vectors,
        out=device.out,
        stream=device.stream.handle,
    )()
    case.check(device.read(device.out, np.dtype(dtype), samples, width))


def test_it_is_captured_in_a_cuda_graph(device: Device) -> None:
    samples, slots, dim, width = 1000, 26, 128, 480
    queue = DotInteraction(device=0, slots=slots, dim=dim, width=width, dtype="float16").bind(
        samples,
        dense=device.dense,
        vectors=device.vectors,
        out=device.out,
        stream=device.stream.handle,
    )
    queue()  # the first launch loads the kernel
    stream = ctypes.c_void_p(device.stream.handle)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    cuda._call("cuStreamBeginCapture_v2", stream, 0)  # global: what is unsafe anywhere fails
    queue()
    cuda._call("cuStreamEndCapture", stream, ctypes.byref(graph))
    cuda._call(
        "cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0)
    )
    for seed in range(2):
        case = Case.of(samples, slots, dim, "float16", seed)
        device.write(device.dense, case.dense)
        device.write(device.vectors, case.vectors)
        cuda._call("cuGraphLaunch", executable, stream)
        case.check(device.read(device.out, np.dtype(np.float16), samples, width))


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ({"slots": 64, "width": 4000}, "1 to 63 slots, not 64"),
        ({"slots": 0}, "1 to 63 slots, not 0"),
        ({"dim": 12}, "the vectors have 12 values, and the dense ones are 12 values apart"),
        ({"width": 478}, "479 to 6144 output values per sample, not 478"),
        ({"width": 6145}, "479 to 6144 output values per sample, not 6145"),
        ({"dtype": "float32", "width": 3073}, "479 to 3072 output values per sample, not 3073"),
    ],
)
def test_what_there_is_no_kernel_for_is_an_error(shape: dict[str, object], problem: str) -> None:
    asked = {"device": 0, "slots": 26, "dim": 128, "width": 480, "dtype": "float16"}
    with pytest.raises(HpsError, match=problem):
        DotInteraction(**{**asked, **shape})


def test_memory_that_is_not_aligned_is_an_error(device: Device) -> None:
    interaction = DotInteraction(device=0, slots=26, dim=128, width=480, dtype="float16")
    addresses = {"dense": device.dense, "vectors": device.vectors, "out": device.out}
    for name in addresses:
        moved = {**addresses, name: addresses[name] + 8}
        with pytest.raises(HpsError, match="memory must begin at a multiple of 16 bytes"):
            interaction.bind(1, stream=device.stream.handle, **moved)()
