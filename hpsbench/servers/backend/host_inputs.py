"""A request's inputs as TensorFlow's tensors, without TensorFlow's own way of copying.

`tf.convert_to_tensor` copies an array of NumPy's twice, on one thread, into fresh memory of which
the system clears each page first. Here several threads copy it once, to where the request before
had its own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

#: TensorFlow ends the process over memory of others that begins elsewhere.
_ALIGNMENT = 64
_COPY_THREADS = 4
#: Bytes that pay for handing them to a thread.
_GRAIN = 512 << 10


class HostInputs:
    """The inputs of one request at a time: the next with the same name take a tensor's memory."""

    def __init__(self) -> None:
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}
        self._pool = ThreadPoolExecutor(_COPY_THREADS, "inputs")

    def tensor(self, name: str, array: npt.NDArray[Any]) -> tf.Tensor:
        """Return the values of `array` as a tensor in host memory, for the input `name`.

        It must not be read any more when there is another tensor of that name.
        """
        if array.dtype.kind not in "iuf" or array.size == 0:
            return tf.convert_to_tensor(array)
        target = self._take(name, array.nbytes).view(array.dtype)
        self._copy(target, np.ascontiguousarray(array).reshape(-1))
        return tf.experimental.dlpack.from_dlpack(target.reshape(array.shape).__dlpack__())

    def _take(self, name: str, num_bytes: int) -> npt.NDArray[np.uint8]:
        memory = self._memory.get(name)
        if memory is None or len(memory) < num_bytes:
            unaligned = np.empty(num_bytes + _ALIGNMENT, np.uint8)
            memory = unaligned[-unaligned.ctypes.data % _ALIGNMENT :]
            self._memory[name] = memory
        return memory[:num_bytes]

    def _copy(self, target: npt.NDArray[Any], source: npt.NDArray[Any]) -> None:
        step = max(_GRAIN // source.itemsize, -(-len(source) // _COPY_THREADS))
        pieces = [slice(first, first + step) for first in range(0, len(source), step)]
        if len(pieces) == 1:
            np.copyto(target, source)
            return
        for copy in [self._pool.submit(np.copyto, target[i], source[i]) for i in pieces]:
            copy.result()
