"""DLRM's dense part without ONNX Runtime: ten kernels in a row, one CUDA graph per batch size."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np

from hpsbench.hps.native.gpu_interaction import DotInteraction
from hpsbench.hps.native.gpu_mlp import bind_logistic, bind_widening
from hpsbench.models.onnx_engine import Buffer, EngineOptions
from hpsbench.models.onnx_layers import MlpLayers
from hpsbench.models.onnx_parts import OnnxParts
from hpsbench.servers.backend.cublas_lt import CublasLt, LayerWeights
from hpsbench.servers.backend.device_resources import DeviceResources

#: Tensor cores take features in pieces of as many values.
_FEATURES_MULTIPLE = 8


class CublasEngine:
    """A layer is one kernel of cuBLASLt, with its bias and ReLU; the interaction is ours."""

    def __init__(
        self,
        parts: OnnxParts,
        layers: MlpLayers,
        interaction: DotInteraction,
        options: EngineOptions,
        resources: DeviceResources,
        *,
        max_samples: int,
    ) -> None:
        """Take memory for the weights, and for what goes from one layer to the next.

        `options` name the device of `resources`, whose context the calling thread uses, and a
        stream. Raises ServerError where cuBLASLt is missing.
        """
        assert options.device is not None
        assert options.stream is not None
        self._dtype, self._interaction, self._options = parts.dtype, interaction, options
        self._device, self._stream = options.device, options.stream
        self._resources = resources
        self._cublas = CublasLt(resources, options.stream, tensor_float_32=options.tensor_float_32)
        first, *rest = layers.bottom
        self._features = first.inputs
        self._width = first.inputs + -first.inputs % _FEATURES_MULTIPLE
        widened = np.pad(first.kernel, [(0, self._width - first.inputs), (0, 0)])
        self._bottom = [
            LayerWeights.of(widened, first.bias, resources),
            *(LayerWeights.of(layer.kernel, layer.bias, resources) for layer in rest),
        ]
        self._top = [LayerWeights.of(layer.kernel, layer.bias, resources) for layer in layers.top]
        self._last_kernel = resources.upload(layers.last.kernel[:, 0])
        self._last_bias, self._last_inputs = float(layers.last.bias[0]), layers.last.inputs
        sample = max_samples * parts.dtype.itemsize
        self._joined = resources.memory(sample * parts.width)
        # Layers read one and write the other.
        widest = max(self._width, *(layer.units for layer in chain(self._bottom, self._top)))
        self._hidden = [resources.memory(sample * widest) for _ in range(2)]

    @property
    def description(self) -> str:
        """What runs the model: `cuBLASLt 13.1.0, CUDA graphs, fused layers, fused interaction`."""
        graphs = ["CUDA graphs"] if self._options.cuda_graphs else []
        return ", ".join(
            [f"cuBLASLt {self._cublas.version}", *graphs, "fused layers", "fused interaction"]
        )

    def bind(
        self, *, vectors: Buffer, numerical: Buffer, output: Buffer, graph: int
    ) -> Callable[[], None]:
        """As DenseEngine's. Each call captures a graph of its own; `graph` does not count."""
        samples = output.shape[0]
        work = self._work(samples, vectors.address, numerical.address, output.address)

        def queue() -> None:
            for kernel in work:
                kernel()

        return self._resources.graph(queue, self._stream) if self._options.cuda_graphs else queue

    def _work(
        self, samples: int, vectors: int, numerical: int, output: int
    ) -> list[Callable[[], None]]:
        place = {"device": self._device, "stream": self._stream}
        source, target = self._hidden
        work = [
            bind_widening(
                samples,
                features=numerical,
                num_features=self._features,
                out=source,
                width=self._width,
                dtype=self._dtype,
                **place,
            )
        ]
        for layer in self._bottom:
            work.append(self._cublas.bind(layer, samples, source=source, target=target))
            source, target = target, source
        work.append(
            self._interaction.bind(
                samples, dense=source, vectors=vectors, out=self._joined, stream=self._stream
            )
        )
        source, (target, other) = self._joined, self._hidden
        for layer in self._top:
            work.append(self._cublas.bind(layer, samples, source=source, target=target))
            source, target, other = target, other, target
        work.append(
            bind_logistic(
                samples,
                hidden=source,
                kernel=self._last_kernel,
                bias=self._last_bias,
                out=output,
                width=self._last_inputs,
                dtype=self._dtype,
                **place,
            )
        )
        return work
