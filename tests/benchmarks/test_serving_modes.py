"""The dense part of DLRM in every mode that can serve it on a GPU, per batch size.

`pytest tests/benchmarks/test_serving_modes.py -s` prints medians in microseconds, of vectors and
numerical features that are on the GPU already, and which mode wins. Modes alternate in one process.
Set TF_FORCE_GPU_ALLOW_GROWTH=true, or TensorFlow leaves no memory for ONNX Runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import onnx
import pytest
import tensorflow as tf

from hpsbench.models.dlrm import forward, numerical_features, seeded_weights
from hpsbench.models.keras_dlrm import dense_model
from hpsbench.models.onnx import convert, half_precision
from hpsbench.models.onnx_engine import Buffer, EngineOptions
from hpsbench.presets import load_suite
from hpsbench.servers.backend.batch_parts import LARGEST, parts
from hpsbench.servers.backend.dense_engines import (
    DenseEngine,
    WholeEngine,
    fused_engine,
    onnx_engine,
)
from hpsbench.servers.backend.device_resources import DeviceResources

pytestmark = pytest.mark.gpu

BATCH_SIZES = (32, 256, 1024, 4096, 16_384, 131_072)
SLOTS, DIM, FEATURES = 26, 128, 13
CHECKED = 256
#: TensorFloat-32 and float16 keep 10 bits of mantissa.
TOLERANCE = 1e-3
ROUNDS, ROUND_S = 5, 0.05
FUSED_LAYERS = ", fused layers"

Call = Callable[[], np.ndarray]


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    bound = (9.0 / DIM) ** 0.25
    some = np.random.default_rng(0).uniform(-bound, bound, (4096, SLOTS, DIM))
    vectors = np.tile(some.astype(np.float32), (max(BATCH_SIZES) // 4096, 1, 1))
    return vectors, numerical_features(max(BATCH_SIZES), FEATURES, seed=1)


class Modes:
    """Functions that compute one batch and return its answer, by mode."""

    def __init__(
        self, vectors: np.ndarray, numerical: np.ndarray, resources: DeviceResources
    ) -> None:
        suite = load_suite("smoke")
        self.weights = seeded_weights(suite.dlrm, DIM)
        self._dense = dense_model(suite.dlrm, self.weights, DIM)
        single = convert(dense_model(suite.dlrm, self.weights, DIM, multiple=8))
        self._models = {"float32": single, "float16": half_precision(single)}
        self._resources, self._stream = resources, resources.stream()
        count = len(vectors)
        self._numerical = resources.memory(numerical.nbytes)
        self._output = resources.memory(count * 4)
        self._answer = resources.page_locked(count * 4)
        self._vectors = {}
        self._send(self._numerical, numerical)
        for dtype in self._models:
            array = vectors.astype(dtype)
            self._vectors[dtype] = resources.memory(array.nbytes)
            self._send(self._vectors[dtype], array)
        self._on_device = vectors, numerical
        self._engines = {
            f"onnx {dtype}{fused}{', graph' * graph}": (
                dtype,
                self._engine(model, dtype, fused, graph),
            )
            for dtype, model in self._models.items()
            for fused in ("", ", fused interaction", FUSED_LAYERS)
            for graph in (False, True)
        }

    def of(self, size: int) -> Iterator[tuple[str, Call]]:
        vectors, numerical = (tf.constant(a[:size]) for a in self._on_device)
        for name, jit in (("tf.function", False), ("tf.function, XLA", True)):
            call = tf.function(lambda v, n: self._dense([v, n], training=False), jit_compile=jit)

            def run(call: Callable = call) -> np.ndarray:
                return call(vectors, numerical).numpy()

            yield name, run
        for name, (dtype, engine) in self._engines.items():
            runs = list(self._bound(engine, dtype, size))

            def run_all(runs: list[Callable[[], None]] = runs) -> np.ndarray:
                for run in runs:
                    run()
                self._stream.fetch(self._answer.address, self._output, size * 4)
                self._stream.wait()
                return self._answer.view(np.float32, (size, 1), 0)

            yield name, run_all

    def _engine(self, model: onnx.ModelProto, dtype: str, fused: str, graph: bool) -> DenseEngine:
        options = EngineOptions(
            device=0,
            stream=self._stream.handle,
            cuda_graphs=graph,
            half_precision=dtype == "float16",
        )
        engine: DenseEngine | None
        if fused:
            layers = fused == FUSED_LAYERS
            engine = fused_engine(model, options, self._resources, LARGEST, fused_layers=layers)
            assert engine is not None
            assert ("fused layers" in engine.description) == layers
        else:
            whole = onnx_engine(model.SerializeToString(), options, self._resources)
            assert whole.on_gpu
            engine = WholeEngine(whole)
        print(f"{engine.description}, {dtype}")
        assert "on the CPU" not in engine.description
        return engine

    def _bound(self, engine: DenseEngine, dtype: str, size: int) -> Iterator[Callable[[], None]]:
        width = np.dtype(dtype).itemsize * SLOTS * DIM
        for part in parts(size):

            def at(base: int, each: int, kind: str, *dims: int, part=part) -> Buffer:
                shape = (part.bucket, *dims)
                return Buffer(address=base + part.first * each, dtype=kind, shape=shape, device=0)

            yield engine.bind(
                vectors=at(self._vectors[dtype], width, dtype, SLOTS, DIM),
                numerical=at(self._numerical, 4 * FEATURES, "float32", FEATURES),
                output=at(self._output, 4, "float32", 1),
                graph=1 + size.bit_length() * 16 + part.first // part.bucket,
            )

    def _send(self, target: int, array: np.ndarray) -> None:
        # A part at a time, through page-locked memory.
        flat = array.reshape(-1).view(np.uint8)
        step = 64 << 20
        staged = self._resources.page_locked(min(step, flat.size))
        for first in range(0, flat.size, step):
            some = flat[first : first + step]
            staged.view(np.uint8, some.shape, 0)[:] = some
            self._stream.send(target + first, staged.address, some.size)
            self._stream.wait()


def microseconds(call: Call) -> float:
    times = []
    until = time.perf_counter() + ROUND_S
    while not times or time.perf_counter() < until:
        begun = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - begun)
    return median(times) / 1e3


@pytest.fixture(scope="module")
def modes(sample: tuple[np.ndarray, np.ndarray]) -> Iterator[Modes]:
    with DeviceResources(0) as resources:
        yield Modes(*sample, resources)


@pytest.mark.parametrize("size", BATCH_SIZES)
def test_modes_agree_and_which_is_fastest(
    modes: Modes, sample: tuple[np.ndarray, np.ndarray], size: int
) -> None:
    expected = forward(modes.weights, *(array[:CHECKED] for array in sample))
    calls, first_s = {}, {}
    for name, call in modes.of(size):
        begun = time.perf_counter()
        given = call()[:CHECKED]
        first_s[name] = time.perf_counter() - begun
        np.testing.assert_allclose(
            given, expected[: len(given)], rtol=0, atol=TOLERANCE, err_msg=f"{name} at {size}"
        )
        calls[name] = call
    rounds = [{n: microseconds(c) for n, c in calls.items()} for _ in range(ROUNDS)]
    found = {name: median(r[name] for r in rounds) for name in calls}
    print(f"\nbatch {size}")
    for name, taken_us in found.items():
        fastest = "  <- fastest" if taken_us == min(found.values()) else ""
        print(f"  {name:38}{taken_us:10.1f} us, first call {first_s[name]:6.2f} s{fastest}")
    assert found[f"onnx float16{FUSED_LAYERS}, graph"] == pytest.approx(
        min(found.values()), rel=0.05
    )
