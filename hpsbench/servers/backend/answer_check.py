"""Whether what runs a model on a GPU answers as ONNX defines it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.reference import ReferenceEvaluator

from hpsbench.errors import AccuracyError
from hpsbench.models.onnx import VECTORS
from hpsbench.models.onnx_engine import Buffer
from hpsbench.models.onnx_parts import NUMERICAL
from hpsbench.servers.backend.cuda import download
from hpsbench.servers.backend.device_resources import DeviceResources

_SAMPLES = 4
#: In probability; as much as the accuracy gate (`hpsbench.models.accuracy`) lets float16 be off.
_MAX_ABSOLUTE_ERROR = 2e-3


class Bind(Protocol):
    """DenseEngine's."""

    def __call__(
        self, *, vectors: Buffer, numerical: Buffer, output: Buffer, graph: int
    ) -> Callable[[], None]: ...


def check_answers(bind: Bind, model: onnx.ModelProto, *, device: int, stream: int) -> None:
    """Raise AccuracyError unless a few samples are answered as ONNX's reference answers them.

    The calling thread must use the GPU's context.
    """
    random = np.random.default_rng(0)
    given = {value.name: _uniform(random, value.type.tensor_type) for value in model.graph.input}
    (expected,) = ReferenceEvaluator(model).run(None, dict(given))
    answers = np.full((_SAMPLES, 1), np.nan, np.float32)

    # What was bound, perhaps a graph, is of no use after this, and is not run again.
    with DeviceResources(device) as resources:

        def on_gpu(array: npt.NDArray[Any]) -> Buffer:
            address = resources.upload(array)
            return Buffer(address=address, dtype=array.dtype, shape=array.shape, device=device)

        output, vectors, numerical = map(on_gpu, (answers, given[VECTORS], given[NUMERICAL]))
        bind(vectors=vectors, numerical=numerical, output=output, graph=0)()
        download(output.address, answers, stream)
    off = float(np.abs(answers - np.asarray(expected)).max())
    if not off <= _MAX_ABSOLUTE_ERROR:  # or not a number
        raise AccuracyError(
            f"its probabilities are {off:.4f} off those of ONNX's reference",
            hint="report it, with the versions of the driver and of CUDA's libraries",
        )


def _uniform(random: np.random.Generator, tensor: onnx.TypeProto.Tensor) -> npt.NDArray[Any]:
    shape = (_SAMPLES, *(dimension.dim_value for dimension in tensor.shape.dim[1:]))
    return random.uniform(-0.5, 0.5, shape).astype(tensor_dtype_to_np_dtype(tensor.elem_type))
