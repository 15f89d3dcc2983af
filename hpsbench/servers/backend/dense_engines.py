"""The dense part on a GPU: in cuBLASLt's layers, or in ONNX Runtime as a whole or in two parts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from hpsbench.errors import BenchError, HpsError, ServerError
from hpsbench.hps.native.gpu_interaction import DotInteraction
from hpsbench.models.onnx import OUTPUT, VECTORS
from hpsbench.models.onnx_engine import CUDA, Buffer, EngineOptions, OnnxEngine, has_tensorrt
from hpsbench.models.onnx_layers import mlp_layers
from hpsbench.models.onnx_parts import NUMERICAL, Inseparable, OnnxParts, split_at_interaction
from hpsbench.servers.backend.answer_check import check_answers
from hpsbench.servers.backend.cublas_engine import CublasEngine
from hpsbench.servers.backend.device_resources import DeviceResources

_LOG = logging.getLogger("hpsbench.servers")


class DenseEngine(Protocol):
    """The dense part of DLRM; everything bound is on its GPU."""

    @property
    def description(self) -> str:
        """What runs the model."""
        ...

    def bind(
        self, *, vectors: Buffer, numerical: Buffer, output: Buffer, graph: int
    ) -> Callable[[], None]:
        """Return a function that queues the work of these buffers, [n, ...], on the stream."""
        ...


class WholeEngine:
    """One engine for all of it."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine

    @property
    def description(self) -> str:
        return self._engine.description

    def bind(
        self, *, vectors: Buffer, numerical: Buffer, output: Buffer, graph: int
    ) -> Callable[[], None]:
        inputs = {VECTORS: vectors, NUMERICAL: numerical}
        return self._engine.bind(inputs, {OUTPUT: output}, graph=graph)


class FusedEngine:
    """An engine for the bottom MLP, one kernel for the interaction, an engine for the top MLP."""

    def __init__(
        self,
        parts: OnnxParts,
        interaction: DotInteraction,
        bottom: OnnxEngine,
        top: OnnxEngine,
        resources: DeviceResources,
        *,
        stream: int,
        max_samples: int,
    ) -> None:
        """Take memory for what goes from one to the next, of `max_samples` at a time."""
        self._parts, self._interaction, self._bottom, self._top = parts, interaction, bottom, top
        self._stream = stream
        row = max_samples * parts.dtype.itemsize
        self._dense = resources.memory(row * parts.dim)
        self._joined = resources.memory(row * parts.width)

    @property
    def description(self) -> str:
        # One text, unless nodes of one of them fell back to the CPU.
        engines = dict.fromkeys((self._top.description, self._bottom.description))
        return ", ".join((*engines, "fused interaction"))

    def bind(
        self, *, vectors: Buffer, numerical: Buffer, output: Buffer, graph: int
    ) -> Callable[[], None]:
        parts, samples = self._parts, output.shape[0]

        def between(address: int, width: int) -> Buffer:
            return Buffer(
                address=address, dtype=parts.dtype, shape=(samples, width), device=output.device
            )

        dense = between(self._dense, parts.dim)
        joined = between(self._joined, parts.width)
        bottom = self._bottom.bind({NUMERICAL: numerical}, {parts.dense: dense}, graph=graph)
        interaction = self._interaction.bind(
            samples,
            dense=dense.address,
            vectors=vectors.address,
            out=joined.address,
            stream=self._stream,
        )
        top = self._top.bind({parts.joined: joined}, {OUTPUT: output}, graph=graph)

        def run() -> None:
            bottom()
            interaction()
            top()

        return run


def read_model(model: Path) -> onnx.ModelProto:
    """Return the model in a file. Raises ServerError, which names it, where there is none."""
    try:
        return onnx.load(model)
    except (OSError, DecodeError) as error:
        raise ServerError(
            f"{model} is no ONNX model: {error}", hint="build the model repository again"
        ) from error


def fused_engine(
    model: Path | onnx.ModelProto,
    options: EngineOptions,
    resources: DeviceResources,
    max_samples: int,
    *,
    fused_layers: bool = True,
) -> CublasEngine | FusedEngine | None:
    """Return what runs the model's parts on the stream of `options` and the GPU of `resources`.

    Its layers are cuBLASLt's where that answers a few samples as ONNX's reference does, else ONNX
    Runtime's; those alone without `fused_layers`. None where the model cannot be split, the GPU
    library has no kernel for its shape or this GPU, or where ONNX Runtime runs models on something
    else than CUDA: TensorRT fuses by itself.
    """
    if options.device is None or options.stream is None or has_tensorrt():
        return None
    whole = read_model(model) if isinstance(model, Path) else model
    try:
        parts = split_at_interaction(whole)
        interaction = DotInteraction(
            device=options.device,
            slots=parts.slots,
            dim=parts.dim,
            width=parts.width,
            dtype=np.dtype(parts.dtype),
        )
    except (Inseparable, HpsError) as reason:
        _LOG.info("the dense part is run as a whole: %s", reason.problem)
        return None
    if fused_layers:
        its_own = resources.part()
        try:
            layers = mlp_layers(parts)
            engine = CublasEngine(
                parts, layers, interaction, options, its_own, max_samples=max_samples
            )
            check_answers(engine.bind, whole, device=options.device, stream=options.stream)
        except BenchError as reason:
            its_own.close()
            _LOG.warning("ONNX Runtime computes the layers: %s", reason.problem)
        else:
            return engine
    its_own = resources.part()
    bottom, top = (
        onnx_engine(p.SerializeToString(), options, its_own) for p in (parts.bottom, parts.top)
    )
    if {bottom.provider, top.provider} != {CUDA}:
        its_own.close()
        return None
    return FusedEngine(
        parts, interaction, bottom, top, its_own, stream=options.stream, max_samples=max_samples
    )


def onnx_engine(
    model: Path | bytes, options: EngineOptions, resources: DeviceResources
) -> OnnxEngine:
    """Return an engine that is closed with `resources`."""
    engine = OnnxEngine(model, options)
    resources.keep(engine.close)
    return engine
