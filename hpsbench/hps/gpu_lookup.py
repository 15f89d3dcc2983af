"""Lookups in a model's cache on a GPU, asked from Python without TensorFlow."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import HpsError
from hpsbench.hps.lookup import ModelTables
from hpsbench.hps.native import dlpack, gpu
from hpsbench.hps.native.gpu_arrays import DeviceArray


class GpuLookup:
    """Asks the tables of a model in the cache on one GPU; the rows stay in its memory.

    For a Triton model in Python, ONNX Runtime, PyTorch and other libraries that take GPU memory:

        tables = open_model("ps.json", "dlrm", gpus=True)
        rows = GpuLookup(tables).lookup_flat(keys, num_keys).reshape(-1, 26, 128)
        pb_utils.Tensor.from_dlpack("EMBEDDINGS", rows)

    Lookups may come from any number of threads; each has a stream of its own. Memory of rows that
    nobody uses any more is kept for later lookups, and given back with the tables.
    """

    def __init__(self, tables: ModelTables, device: int = 0) -> None:
        """Raise HpsError where `tables` has no cache on GPU `device`."""
        if device not in tables.gpus:
            raise HpsError(
                f"model {tables.model_name} has no cache on GPU {device}; it has on "
                f"{list(tables.gpus) or 'none'}",
                hint="open it with gpus=True, and set gpucache and deployed_device_list"
                + (f" ({missing})" if (missing := gpu.why_unavailable()) else ""),
            )
        self.device = device
        self._tables = tables

    def lookup_flat(
        self,
        keys: Any,
        num_keys: npt.ArrayLike,
        *,
        dtype: npt.DTypeLike = np.float32,
        stream: int | None = None,
        out: Any = None,
    ) -> Any:
        """Return `dtype`[sum of dim x num_keys]: rows of all tables, one table after another.

        `keys` is int64[n] or int32[n], `num_keys[0]` keys of the first table, and so on: a NumPy
        array, copied by way of page-locked memory, or an object with `__dlpack__` in the memory of
        this GPU, used where it is. `dtype` is float32, or float16, rounded to the nearest, ties to
        even. The answer is a `DeviceArray`, or `out` where that is given: an object with
        `__dlpack__`, or a `DeviceMemory`, of as many values of `dtype` there, which is written to.

        Without `stream`, the rows are written when this returns; work of others on `keys` and `out`
        counts as far as CUDA's default stream knows it. With `stream`, the handle of a CUDA stream,
        keys are read and rows written in its order, perhaps after this returned: until then the
        caller keeps `keys` and `out` alive. The stream must outlive the answer.

        Raises HpsError for other keys, counts or types, and where GPU memory is used up.
        """
        if np.dtype(dtype) not in gpu.ROW_TYPES:
            raise HpsError(
                f"dtype is {np.dtype(dtype)}", hint="rows are float32, or float16 when asked for"
            )
        with ExitStack() as held:
            ready_on = stream or dlpack.DEFAULT_STREAM
            on_gpu = hasattr(keys, "__dlpack_device__") and not isinstance(keys, np.ndarray)
            if on_gpu:
                memory = held.enter_context(
                    dlpack.on_gpu(keys, self.device, ready_on, what="an array of keys")
                )
                pointer, size, key_type = memory.pointer, memory.size, np.dtype(memory.dtype)
            else:
                host = np.ascontiguousarray(keys)
                pointer, size, key_type = host.ctypes.data, host.size, host.dtype
            if key_type not in (np.int64, np.int32):
                raise HpsError(
                    f"model {self._tables.model_name}: keys are {key_type}",
                    hint="pass int64 or int32 keys",
                )
            counts = self._tables.counts_per_table(num_keys, size)
            num_values = self._tables.num_values(counts)
            target = None
            if out is not None:
                target = held.enter_context(dlpack.on_gpu(out, self.device, ready_on, what="out"))
                if target.dtype != np.dtype(dtype) or target.size != num_values:
                    raise HpsError(
                        f"out is {target.dtype}{list(target.shape)}",
                        hint=f"pass {num_values} values of {np.dtype(dtype)}, or none",
                    )
                if num_values == 0:
                    return out
            array = gpu.lookup_flat(
                self._tables.native, self.device, pointer, counts,
                key_bytes=key_type.itemsize, keys_on_gpu=on_gpu, dtype=dtype, stream=stream,
                out=None if target is None else target.pointer,
            )  # fmt: skip
        if target is not None:
            return out
        return DeviceArray.own(array, self.device, dtype, num_values)
