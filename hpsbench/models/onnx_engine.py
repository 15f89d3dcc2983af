"""ONNX Runtime as an engine that reads and writes memory by address, on the device it runs on."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before the import, which starts its telemetry and writes a device's id into the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import numpy.typing as npt
import onnxruntime

from hpsbench.errors import ServerError
from hpsbench.machine import find_gpus
from hpsbench.models.cuda_capture import one_at_a_time_at_first

TENSORRT, CUDA, CPU = (
    f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "CPU")
)  # fmt: skip
#: TensorRT's library of the major version that ONNX Runtime is built for.
_TENSORRT_LIBRARY = "libnvinfer.so.10"


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A tensor in memory of GPU `device`, or of the host; whoever made it keeps it alive."""

    address: int
    dtype: npt.DTypeLike
    shape: tuple[int, ...]
    device: int | None = None

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Buffer:
        """Return the memory of a contiguous array."""
        return cls(address=array.ctypes.data, dtype=array.dtype, shape=array.shape)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine runs; all but `device` count on a GPU alone.

    `device` is a GPU's number, None for the CPU. `stream` is the CUDA stream's handle that work is
    queued on, None for the engine's own. With `cuda_graphs`, what is bound with a `graph` number is
    captured when it first runs and replayed from then on. `batch_sizes` are the least and the most
    samples that TensorRT builds for.
    """

    device: int | None = None
    stream: int | None = None
    cuda_graphs: bool = False
    tensor_float_32: bool = True
    half_precision: bool = False
    batch_sizes: tuple[int, int] = (1, 1024)


class OnnxEngine:
    """One model in ONNX Runtime, on TensorRT where it is installed, else CUDA, else the CPU."""

    def __init__(self, model: Path | bytes, options: EngineOptions) -> None:
        """Load the model. Raises what ONNX Runtime raises for one that it cannot run."""
        self._options = options
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 3
        # Threads that wait in a loop would take the cores from the models served beside this one.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if options.device is not None:
            preload_cuda()  # what is missing shows in `provider`
        self._its_session: onnxruntime.InferenceSession | None = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            session_options,
            providers=_providers(model, options),
        )
        self.inputs = {i.name: i for i in self._session.get_inputs()}
        self.provider: str = self._session.get_providers()[0]
        #: Nodes that run on the CPU although the engine is on a GPU; their values are copied.
        self.fallback_nodes = self._fallback_nodes()

    def close(self) -> None:
        """Give memory and threads back, as soon as what was bound is gone, too.

        Until then, running it is a ServerError.
        """
        # Each of the inputs holds the session, too.
        self._its_session, self.inputs = None, {}

    @property
    def description(self) -> str:
        """What runs the model: `ONNX Runtime 1.31.1, CUDA, CUDA graphs`."""
        parts = [
            f"ONNX Runtime {onnxruntime.__version__}",
            self.provider.removesuffix("ExecutionProvider"),
        ]
        if self.uses_cuda_graphs:
            parts.append("CUDA graphs")
        if self.fallback_nodes:
            parts.append(f"on the CPU: {' '.join(self.fallback_nodes)}")
        return ", ".join(parts)

    @property
    def on_gpu(self) -> bool:
        return self.provider != CPU

    @property
    def uses_cuda_graphs(self) -> bool:
        return self.on_gpu and self._options.cuda_graphs

    def bind(
        self,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        graph: int | None = None,
    ) -> Callable[[], None]:
        """Return a function that runs the model from and to these buffers, as often as called.

        With all buffers on a GPU it returns as soon as the work is queued. `graph` numbers the CUDA
        graph of these buffers and shapes, where graphs are on.
        """
        binding = self._session.io_binding()
        for bind, buffers in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, b in buffers.items():
                device = ("cpu", 0) if b.device is None else ("cuda", b.device)
                bind(name, *device, np.dtype(b.dtype).type, b.shape, b.address)
        options = onnxruntime.RunOptions()
        if all(b.device is not None for b in (*inputs.values(), *outputs.values())):
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self.uses_cuda_graphs:
            options.add_run_config_entry("gpu_graph_id", str(-1 if graph is None else graph))

        def run() -> None:
            self._session.run_with_iobinding(binding, options)

        return one_at_a_time_at_first(run) if self.uses_cuda_graphs else run

    def run(
        self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return outputs, all or those named, of arrays in host memory."""
        names = list(outputs or [o.name for o in self._session.get_outputs()])
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    @property
    def _session(self) -> onnxruntime.InferenceSession:
        if self._its_session is None:
            raise ServerError("this engine has been closed", hint="load the model again")
        return self._its_session

    def _fallback_nodes(self) -> tuple[str, ...]:
        if not self.on_gpu:
            return ()
        return tuple(
            node.name or node.op_type
            for part in self._session.get_provider_graph_assignment_info()
            if part.ep_name == CPU
            for node in part.get_nodes()
        )


def _providers(model: Path | bytes, options: EngineOptions) -> list[tuple[str, dict[str, str]]]:
    """Return the providers to try in turn, with their options."""
    if options.device is None or not find_gpus():
        return [(CPU, {})]
    device = {"device_id": str(options.device)}
    if options.stream is not None:
        device["user_compute_stream"] = str(options.stream)
    cuda = {
        **device,
        "use_tf32": str(int(options.tensor_float_32)),
        "enable_cuda_graph": str(int(options.cuda_graphs)),
        # The arena would else double with each batch size that is larger than the last.
        "arena_extend_strategy": "kSameAsRequested",
    }
    installed = onnxruntime.get_available_providers()
    wanted = [(CUDA, cuda), (CPU, {})]
    if has_tensorrt():
        wanted.insert(0, (TENSORRT, {**device, **_tensorrt(model, options)}))
    return [(name, settings) for name, settings in wanted if name in installed]


def _tensorrt(model: Path | bytes, options: EngineOptions) -> dict[str, str]:
    """Return TensorRT's options: one engine for all batch sizes, kept beside the model's file."""
    import onnx

    graph = (onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)).graph
    fixed = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim[1:]] for i in graph.input}

    def shapes(batch_size: int) -> str:
        return ",".join(
            f"{name}:{'x'.join(map(str, [batch_size, *dims]))}" for name, dims in fixed.items()
        )

    least, most = options.batch_sizes
    settings = {
        "trt_fp16_enable": str(int(options.half_precision)),
        "trt_cuda_graph_enable": str(int(options.cuda_graphs)),
        "trt_profile_min_shapes": shapes(least),
        "trt_profile_opt_shapes": shapes(min(max(1024, least), most)),
        "trt_profile_max_shapes": shapes(most),
    }
    if isinstance(model, Path):
        settings |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(model.parent)}
    return settings


def preload_cuda() -> None:
    """Load CUDA's libraries of PyPI's packages, which then are found by their names."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls()


def has_tensorrt() -> bool:
    """Return whether TensorRT's library is installed."""
    # ONNX Runtime names the provider whether or not TensorRT itself is there.
    try:
        ctypes.CDLL(_TENSORRT_LIBRARY)
    except OSError:
        return False
    return True
