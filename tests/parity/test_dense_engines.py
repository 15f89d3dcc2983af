"""The dense part of the benchmark's DLRM in cuBLASLt's layers, beside ONNX Runtime and NumPy."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest

from hpsbench.config import DlrmConfig
from hpsbench.errors import AccuracyError, ServerError
from hpsbench.hps.native.gpu_interaction import DotInteraction
from hpsbench.models.dlrm import forward, numerical_features, seeded_weights
from hpsbench.models.keras_dlrm import dense_model
from hpsbench.models.onnx import convert, half_precision
from hpsbench.models.onnx_engine import Buffer, EngineOptions
from hpsbench.models.onnx_layers import MlpLayers, mlp_layers
from hpsbench.models.onnx_parts import split_at_interaction
from hpsbench.servers.backend import cublas_lt
from hpsbench.servers.backend.answer_check import check_answers
from hpsbench.servers.backend.cublas_engine import CublasEngine
from hpsbench.servers.backend.cuda import Stream, download, upload
from hpsbench.servers.backend.dense_engines import DenseEngine, FusedEngine, fused_engine
from hpsbench.servers.backend.device_resources import DeviceResources

pytestmark = pytest.mark.gpu

DLRM, DIM, MOST = DlrmConfig(), 128, 5000
BATCH_SIZES = (1, 7, 32, 1000, 4096, MOST)
#: Probabilities off NumPy's, by type and whether TensorFloat-32 may be used.
TOLERANCES = {("float32", False): 1e-5, ("float32", True): 1e-3, ("float16", True): 1e-3}


@pytest.fixture(scope="module")
def resources() -> Iterator[DeviceResources]:
    with DeviceResources(0) as resources:
        yield resources


@pytest.fixture(scope="module")
def stream(resources: DeviceResources) -> Stream:
    return resources.stream()


@pytest.fixture(scope="module")
def models() -> dict[str, onnx.ModelProto]:
    single = convert(dense_model(DLRM, seeded_weights(DLRM, DIM), DIM, multiple=8))
    return {"float32": single, "float16": half_precision(single)}


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, numerical features, and what they are answered with."""
    vectors = np.random.default_rng(0).uniform(-0.5, 0.5, (MOST, DLRM.num_slots, DIM))
    vectors = vectors.astype(np.float32)
    numerical = numerical_features(MOST, DLRM.num_numerical, seed=1)
    return vectors, numerical, forward(seeded_weights(DLRM, DIM), vectors, numerical)


def options(stream: Stream, **others: bool) -> EngineOptions:
    return EngineOptions(device=0, stream=stream.handle, **others)


def bound(
    engine: DenseEngine, stream: Stream, vectors: np.ndarray, numerical: np.ndarray, graph: int
) -> Callable[[], np.ndarray]:
    output = np.zeros((len(vectors), 1), np.float32)

    def on_gpu(array: np.ndarray) -> Buffer:
        return Buffer(address=upload(array), dtype=array.dtype, shape=array.shape, device=0)

    target = on_gpu(output)
    run = engine.bind(
        vectors=on_gpu(vectors), numerical=on_gpu(numerical), output=target, graph=graph
    )

    def answer() -> np.ndarray:
        run()
        download(target.address, output, stream.handle)
        return output.copy()

    return answer


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize(("dtype", "tensor_float_32"), list(TOLERANCES))
def test_either_engine_answers_as_numpy_does(
    resources: DeviceResources,
    stream: Stream,
    models: dict[str, onnx.ModelProto],
    batch: tuple[np.ndarray, np.ndarray, np.ndarray],
    dtype: str,
    tensor_float_32: bool,
    graphs: bool,
) -> None:
    asked = options(
        stream,
        cuda_graphs=graphs,
        tensor_float_32=tensor_float_32,
        half_precision=dtype == "float16",
    )
    vectors, numerical, expected = batch
    errors: dict[str, list[float]] = {}
    for layers in (True, False):
        engine = fused_engine(models[dtype], asked, resources, MOST, fused_layers=layers)
        assert isinstance(engine, CublasEngine if layers else FusedEngine)
        calls = [
            bound(engine, stream, vectors[:n].astype(dtype), numerical[:n], graph)
            for graph, n in enumerate(BATCH_SIZES, start=1)
        ]
        # Twice, and in turns: one's work leaves nothing that another's would read.
        errors[engine.description] = [
            float(np.abs(call() - expected[:n]).max())
            for call, n in (*zip(calls, BATCH_SIZES, strict=True),) * 2
        ]
    print(f"\n{dtype}, TensorFloat-32 {tensor_float_32}:", {k: max(v) for k, v in errors.items()})
    for description, found in errors.items():
        assert max(found) < TOLERANCES[dtype, tensor_float_32], description


def test_without_cublas_onnx_runtime_computes_the_layers(
    resources: DeviceResources,
    stream: Stream,
    models: dict[str, onnx.ModelProto],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cublas_lt, "_LIBRARIES", ("libcublasLt.so.0",))
    with caplog.at_level(logging.INFO, "hpsbench.servers"):
        engine = fused_engine(
            models["float16"], options(stream, half_precision=True), resources, MOST
        )
    assert isinstance(engine, FusedEngine)
    assert "ONNX Runtime computes the layers: no libcublasLt.so.0" in caplog.text


def test_a_call_that_the_library_refuses_is_an_error(
    resources: DeviceResources, stream: Stream
) -> None:
    library = cublas_lt.CublasLt(resources, stream.handle, tensor_float_32=True)
    kernel, bias = np.zeros((16, 16), np.float16), np.zeros(16, np.float16)
    weights = cublas_lt.LayerWeights.of(kernel, bias, resources)
    with pytest.raises(ServerError, match=r"cublasLt\w+: status \d+ of cuBLAS"):
        library.bind(dataclasses.replace(weights, units=0), 1, source=0, target=0)


def wrong_last(layers: MlpLayers) -> MlpLayers:
    last = dataclasses.replace(layers.last, bias=layers.last.bias + layers.last.bias.dtype.type(1))
    return dataclasses.replace(layers, last=last)


def wrong_order(layers: MlpLayers) -> MlpLayers:
    first, *rest = layers.top
    turned = dataclasses.replace(first, kernel=first.kernel[::-1].copy())
    return dataclasses.replace(layers, top=(turned, *rest))


@pytest.mark.parametrize("broken", [None, wrong_last, wrong_order])
def test_answers_that_are_not_the_models_are_found(
    resources: DeviceResources,
    stream: Stream,
    models: dict[str, onnx.ModelProto],
    broken: Callable[[MlpLayers], MlpLayers] | None,
) -> None:
    model = models["float32"]
    parts = split_at_interaction(model)
    layers = mlp_layers(parts)
    interaction = DotInteraction(
        device=0, slots=parts.slots, dim=parts.dim, width=parts.width, dtype="float32"
    )
    asked = options(stream, tensor_float_32=False)
    if broken is not None:
        layers = broken(layers)
    engine = CublasEngine(parts, layers, interaction, asked, resources, max_samples=32)
    if broken is None:
        check_answers(engine.bind, model, device=0, stream=stream.handle)
        return
    with pytest.raises(AccuracyError, match=r"its probabilities are 0\.\d+ off those of ONNX"):
        check_answers(engine.bind, model, device=0, stream=stream.handle)
