"""The GPU library's ends of a multilayer perceptron (`gpu_mlp.h`) in Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hpsbench.hps.native import gpu


class _Widening(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("features", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_samples", ctypes.c_uint64),
        ("num_features", ctypes.c_int32),
        ("out_width", ctypes.c_int32),
    )


class _LastUnit(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("hidden", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("bias", ctypes.c_float),
        ("out", ctypes.c_void_p),
        ("num_samples", ctypes.c_uint64),
        ("width", ctypes.c_int32),
    )


def bind_widening(
    samples: int,
    *,
    features: int,
    num_features: int,
    out: int,
    width: int,
    dtype: npt.DTypeLike,
    device: int,
    stream: int,
) -> Callable[[], None]:
    """Return a function that queues float32[n, num_features] as `dtype`[n, width] on `stream`.

    Zeros follow the features. Memory is by address, on GPU `device`.
    """
    asked = _Widening(_type(dtype), features, out, samples, num_features, width)
    return lambda: gpu.call("hps_gpu_widen", device, ctypes.byref(asked), stream)


def bind_logistic(
    samples: int,
    *,
    hidden: int,
    kernel: int,
    bias: float,
    out: int,
    width: int,
    dtype: npt.DTypeLike,
    device: int,
    stream: int,
) -> Callable[[], None]:
    """Return a function that queues `dtype`[n, width] to float32[n] probabilities on `stream`.

    `kernel` is `dtype`[width]. Memory is by address, on GPU `device`.
    """
    asked = _LastUnit(_type(dtype), hidden, kernel, bias, out, samples, width)
    return lambda: gpu.call("hps_gpu_logistic", device, ctypes.byref(asked), stream)


def _type(dtype: npt.DTypeLike) -> int:
    return gpu.ROW_TYPES.index(np.dtype(dtype))
