"""The GPU library's dot interaction (`gpu_interaction.h`) in Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpsbench.hps.native import gpu


class _Interaction(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("dense", ctypes.c_void_p),
        ("dense_stride", ctypes.c_uint64),
        ("vectors", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_samples", ctypes.c_uint64),
        ("slots", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("out_width", ctypes.c_int32),
    )


@dataclass(frozen=True, kw_only=True)
class DotInteraction:
    """The dense vector of a sample, then the products of every pair of it and `slots` vectors.

    All of `dim` values, float32 or float16, on GPU `device`; zeros follow up to `width` values.
    Raises HpsError for what the GPU library has no kernel for: more than 63 slots, vectors that do
    not fill pieces of 16 bytes, or a GPU of a compute capability below 8.0.
    """

    device: int
    slots: int
    dim: int
    width: int
    dtype: npt.DTypeLike

    def __post_init__(self) -> None:
        self.bind(0, dense=0, vectors=0, out=0, stream=0)()

    def bind(
        self,
        num_samples: int,
        *,
        dense: int,
        vectors: int,
        out: int,
        stream: int,
        dense_stride: int | None = None,
    ) -> Callable[[], None]:
        """Return a function that queues [n, dim] and [n, slots, dim] to [n, width] on `stream`.

        Memory is by address. `dense_stride` says how many values apart the dense vectors are, where
        not `dim`.
        """
        asked = _Interaction(
            gpu.ROW_TYPES.index(np.dtype(self.dtype)), dense, dense_stride or self.dim, vectors,
            out, num_samples, self.slots, self.dim, self.width,
        )  # fmt: skip
        return lambda: gpu.call("hps_gpu_interact", self.device, ctypes.byref(asked), stream)
