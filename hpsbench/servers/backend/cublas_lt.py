"""Fully connected layers by cuBLASLt: a product of matrices, its bias and ReLU in one kernel.

By ctypes, from the library that ONNX Runtime's CUDA provider needs as well; no toolkit is needed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import ServerError
from hpsbench.models.onnx_engine import preload_cuda
from hpsbench.servers.backend.device_resources import DeviceResources

#: Of either major version of CUDA that ONNX Runtime is built for; the newer one first.
_LIBRARIES = ("libcublasLt.so.13", "libcublasLt.so.12")
_HINT = "install ONNX Runtime for CUDA with its libraries (onnxruntime-gpu[cuda,cudnn])"
#: What its makers advise for Hopper; older GPUs need less.
_WORKSPACE_BYTES = 32 << 20

# Of library_types.h, cublas_api.h and cublasLt.h.
_FLOAT32, _FLOAT16 = 0, 2
_COMPUTE_FLOAT32, _COMPUTE_TENSOR_FLOAT_32 = 68, 77
_MATMUL_TRANSPOSES_LEFT, _MATMUL_EPILOGUE, _MATMUL_BIAS = 3, 7, 8
_BIAS_AND_RELU = 6
_SEARCH_MAX_WORKSPACE = 1


class _Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """A layer's weights in memory of the GPU, by address; `transposed` is [units, inputs]."""

    kernel: int
    bias: int
    inputs: int
    units: int
    dtype: np.dtype[Any]
    transposed: bool

    @classmethod
    def of(
        cls, kernel: npt.NDArray[Any], bias: npt.NDArray[Any], resources: DeviceResources
    ) -> LayerWeights:
        """Copy a kernel [inputs, units] and its bias [units] to the GPU of `resources`."""
        # Of TensorFloat-32, kernels that read both operands along the inputs are up to twice as
        # fast; of float16 they are a little slower.
        transposed = kernel.dtype == np.float32
        return cls(
            kernel=resources.upload(kernel.T if transposed else kernel),
            bias=resources.upload(bias),
            inputs=kernel.shape[0],
            units=kernel.shape[1],
            dtype=kernel.dtype,
            transposed=transposed,
        )


class CublasLt:
    """The library on the GPU in use and one stream, on which one layer runs after another.

    What it makes, `resources` own: nothing that was bound may be called when they are closed.
    """

    def __init__(self, resources: DeviceResources, stream: int, *, tensor_float_32: bool) -> None:
        """Take memory for its work. Raises ServerError where the library is missing or fails."""
        self._library = _library()
        self._resources = resources
        self._stream = ctypes.c_void_p(stream)
        self._tensor_float_32 = tensor_float_32
        self._handle = self._made("cublasLt")
        self._workspace = ctypes.c_void_p(resources.memory(_WORKSPACE_BYTES))

    @property
    def version(self) -> str:
        """The library's: `13.1.0`."""
        version = self._library.cublasLtGetVersion()
        return f"{version // 10_000}.{version // 100 % 100}.{version % 100}"

    def bind(
        self, layer: LayerWeights, samples: int, *, source: int, target: int
    ) -> Callable[[], None]:
        """Return a function that queues [samples, inputs] at `source` to [samples, units].

        Raises ServerError where the library has no kernel for it.
        """
        # It speaks of columns, which are our rows: target' = kernel' x source'.
        kind = _FLOAT16 if layer.dtype == np.float16 else _FLOAT32
        product = self._product(layer, kind)
        kernel = (
            self._matrix(kind, layer.inputs, layer.units)
            if layer.transposed
            else self._matrix(kind, layer.units, layer.inputs)
        )
        given = self._matrix(kind, layer.inputs, samples)
        made = self._matrix(kind, layer.units, samples)
        chosen = self._fastest(product, kernel, given, made)
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        at_source, at_target = ctypes.c_void_p(source), ctypes.c_void_p(target)
        arguments = (
            self._handle, product,
            ctypes.byref(one), ctypes.c_void_p(layer.kernel), kernel, at_source, given,
            ctypes.byref(zero), at_target, made, at_target, made,
            ctypes.byref(chosen.algorithm), self._workspace, ctypes.c_size_t(_WORKSPACE_BYTES),
            self._stream,
        )  # fmt: skip
        return lambda: self._call("cublasLtMatmul", *arguments)

    def _product(self, layer: LayerWeights, kind: int) -> ctypes.c_void_p:
        """Return the description of a product with bias and ReLU, added up in float32."""
        uses_tensor_float = kind == _FLOAT32 and self._tensor_float_32
        precision = _COMPUTE_TENSOR_FLOAT_32 if uses_tensor_float else _COMPUTE_FLOAT32
        product = self._made("cublasLtMatmulDesc", precision, _FLOAT32)
        for attribute, value in (
            (_MATMUL_TRANSPOSES_LEFT, ctypes.c_int32(layer.transposed)),
            (_MATMUL_EPILOGUE, ctypes.c_uint32(_BIAS_AND_RELU)),
            (_MATMUL_BIAS, ctypes.c_void_p(layer.bias)),
        ):
            self._set("cublasLtMatmulDescSetAttribute", product, attribute, value)
        return product

    def _matrix(self, kind: int, rows: int, columns: int) -> ctypes.c_void_p:
        return self._made(
            "cublasLtMatrixLayout", kind, ctypes.c_uint64(rows), ctypes.c_uint64(columns),
            ctypes.c_int64(rows),
        )  # fmt: skip

    def _fastest(self, product: ctypes.c_void_p, *matrices: ctypes.c_void_p) -> _Algorithm:
        """Return what the library takes for the fastest way to compute a product."""
        search, chosen, count = self._made("cublasLtMatmulPreference"), _Algorithm(), ctypes.c_int()
        self._set(
            "cublasLtMatmulPreferenceSetAttribute", search, _SEARCH_MAX_WORKSPACE,
            ctypes.c_uint64(_WORKSPACE_BYTES),
        )  # fmt: skip
        left, right, made = matrices
        self._call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, product, left, right, made, made,
            search, 1, ctypes.byref(chosen), ctypes.byref(count),
        )  # fmt: skip
        return chosen

    def _made(self, kind: str, *arguments: Any) -> ctypes.c_void_p:
        """Return a new object of the library's."""
        made = ctypes.c_void_p()
        self._call(f"{kind}Create", ctypes.byref(made), *arguments)
        self._resources.keep(lambda: self._call(f"{kind}Destroy", made))
        return made

    def _set(self, function: str, owner: ctypes.c_void_p, attribute: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        self._call(function, owner, attribute, ctypes.byref(value), size)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise ServerError(f"{function}: status {status} of cuBLAS", hint=_HINT)


def _library() -> ctypes.CDLL:
    preload_cuda()
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cublasLtGetVersion.restype = ctypes.c_size_t
        return library
    raise ServerError(f"no {' or '.join(_LIBRARIES)}", hint=_HINT)
