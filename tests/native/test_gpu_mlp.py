"""What an MLP is made of on the GPU, beside NumPy: its features, its layers, its last unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hpsbench.errors import HpsError
from hpsbench.hps.native.gpu_mlp import bind_logistic, bind_widening
from hpsbench.servers.backend.cublas_lt import CublasLt, LayerWeights
from hpsbench.servers.backend.cuda import Stream, download, upload
from hpsbench.servers.backend.device_resources import DeviceResources

pytestmark = pytest.mark.gpu

SAMPLES = (1, 3, 33, 1000, 4097)
GUARDS = 64  # bytes behind what is asked for
UNTOUCHED = 0xA5


@pytest.fixture(scope="module")
def resources() -> Iterator[DeviceResources]:
    with DeviceResources(0) as resources:
        yield resources


@pytest.fixture(scope="module")
def stream(resources: DeviceResources) -> Stream:
    return resources.stream()


class Output:
    """Memory for an array, with bytes behind it that nobody may write."""

    def __init__(self, dtype: str, *shape: int) -> None:
        self._size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._dtype, self._shape = dtype, shape
        self.address = upload(np.full(self._size + GUARDS, UNTOUCHED, np.uint8))

    def read(self, stream: Stream) -> np.ndarray:
        found = np.empty(self._size + GUARDS, np.uint8)
        download(self.address, found, stream.handle)
        assert (found[self._size :] == UNTOUCHED).all()
        return found[: self._size].view(self._dtype).reshape(self._shape)


def uniform(seed: int, dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("features", "width"), [(13, 16), (13, 13), (1, 8), (40, 40)])
def test_features_are_widened_by_zeros(
    stream: Stream, features: int, width: int, dtype: str
) -> None:
    for samples in SAMPLES:
        given = uniform(samples, "float32", samples, features)
        out = Output(dtype, samples, width)
        bind_widening(
            samples,
            features=upload(given),
            num_features=features,
            out=out.address,
            width=width,
            dtype=dtype,
            device=0,
            stream=stream.handle,
        )()
        expected = np.pad(given.astype(dtype), [(0, 0), (0, width - features)])
        np.testing.assert_array_equal(out.read(stream), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("width", [1, 13, 32, 256, 1000])
def test_the_last_unit_is_a_probability(stream: Stream, width: int, dtype: str) -> None:
    kernel, bias = uniform(1, dtype, width), 0.25
    for samples in SAMPLES:
        hidden = uniform(samples, dtype, samples, width)
        hidden[0] = np.sign(kernel)  # far from the middle
        out = Output("float32", samples)
        bind_logistic(
            samples,
            hidden=upload(hidden),
            kernel=upload(kernel),
            bias=bias,
            out=out.address,
            width=width,
            dtype=dtype,
            device=0,
            stream=stream.handle,
        )()
        logit = hidden.astype(np.float64) @ kernel.astype(np.float64) + bias
        np.testing.assert_allclose(out.read(stream), 1 / (1 + np.exp(-logit)), atol=1e-6, rtol=1e-5)


def test_no_sample_is_no_work(stream: Stream) -> None:
    place = {"dtype": "float32", "device": 0, "stream": stream.handle, "out": 0}
    bind_widening(0, features=0, num_features=1, width=1, **place)()
    bind_logistic(0, hidden=0, kernel=0, bias=0, width=1, **place)()


def test_widths_that_do_not_fit_are_errors(stream: Stream) -> None:
    place = {"dtype": "float32", "device": 0, "stream": stream.handle, "out": 0}
    with pytest.raises(HpsError, match="13 features do not fit a width of 12"):
        bind_widening(1, features=0, num_features=13, width=12, **place)()
    with pytest.raises(HpsError, match="the last unit has 0 inputs"):
        bind_logistic(1, hidden=0, kernel=0, bias=0, width=0, **place)()


#: Inputs and units: those of DLRM, and odd ones.
LAYERS = [(16, 512), (512, 256), (480, 1024), (1024, 1024), (13, 64), (64, 10), (7, 5)]
#: Of float32's sum: its rounding, TensorFloat-32's of each factor, float16's of the result.
PRECISIONS = {
    "float32": ("float32", False, 1e-6),
    "TensorFloat-32": ("float32", True, 2e-3),
    "float16": ("float16", False, 1e-3),
}


class Layer:
    """A layer on the GPU, and what comes of it in float64."""

    def __init__(
        self, resources: DeviceResources, stream: Stream, precision: str, inputs: int, units: int
    ) -> None:
        self.dtype, tensor_float_32, self.allowed = PRECISIONS[precision]
        self._stream, self._kernel = stream, uniform(1, self.dtype, inputs, units)
        self._bias = uniform(2, self.dtype, units)
        self._weights = LayerWeights.of(self._kernel, self._bias, resources)
        self._cublas = CublasLt(resources, stream.handle, tensor_float_32=tensor_float_32)

    def bind(self, samples: int, source: int) -> tuple[Callable[[], None], Output]:
        out = Output(self.dtype, samples, len(self._bias))
        queue = self._cublas.bind(self._weights, samples, source=source, target=out.address)
        return queue, out

    def error(self, given: np.ndarray, found: np.ndarray) -> float:
        """Return the largest error, as a share of the sum of what was added up."""
        left, right, bias = (a.astype(np.float64) for a in (given, self._kernel, self._bias))
        added = np.abs(left) @ np.abs(right) + np.abs(bias)
        return float((np.abs(found - np.maximum(left @ right + bias, 0)) / added).max())


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize(("inputs", "units"), LAYERS)
def test_a_layer_is_a_product_a_bias_and_relu(
    resources: DeviceResources, stream: Stream, inputs: int, units: int, precision: str
) -> None:
    layer = Layer(resources, stream, precision, inputs, units)
    for samples in SAMPLES:
        given = uniform(samples, layer.dtype, samples, inputs)
        queue, out = layer.bind(samples, upload(given))
        queue()
        found = out.read(stream)
        assert not found.all()  # ReLU cuts
        assert layer.error(given, found) < layer.allowed


def test_tensor_float_32_is_used_where_it_may_be_and_only_there(
    resources: DeviceResources, stream: Stream
) -> None:
    given = uniform(0, "float32", 1000, 480)
    errors = {}
    for precision in ("float32", "TensorFloat-32"):
        layer = Layer(resources, stream, precision, 480, 1024)
        queue, out = layer.bind(len(given), upload(given))
        queue()
        errors[precision] = layer.error(given, out.read(stream))
    assert errors["float32"] < 1e-6
    assert errors["TensorFloat-32"] > 1e-5


def test_layers_are_captured_in_a_graph(resources: DeviceResources, stream: Stream) -> None:
    layer = Layer(resources, stream, "float16", 480, 1024)
    source = resources.memory(1000 * 480 * 2)
    queue, out = layer.bind(1000, source)
    launch = resources.graph(queue, stream.handle)
    empty = out.read(stream)
    given = uniform(5, "float16", 1000, 480)
    copy = upload(given)
    widened = bind_widening(
        1000,
        features=upload(given.astype(np.float32)),
        num_features=480,
        out=source,
        width=480,
        dtype="float16",
        device=0,
        stream=stream.handle,
    )
    widened()
    launch()
    found = out.read(stream)
    assert (found != empty).any()
    queue_again, again = layer.bind(1000, copy)
    queue_again()
    np.testing.assert_array_equal(found, again.read(stream))
    assert layer.error(given, found) < layer.allowed
