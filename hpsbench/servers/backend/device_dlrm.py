"""Lookup and engine on one GPU: a request is one copy there, one lookup, one run, one copy back.

A large batch goes in parts. While the GPU computes one, threads bring the features of the next into
page-locked memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpsbench.hps.lookup import ModelTables
from hpsbench.hps.native import gpu
from hpsbench.models.onnx_engine import Buffer
from hpsbench.servers.backend.batch_parts import LARGEST, Part, buckets, parts
from hpsbench.servers.backend.cuda import PinnedMemory, Stream, device_memory
from hpsbench.servers.backend.dense_engines import DenseEngine
from hpsbench.servers.backend.stages import Mark, ignore

_VALUE_BYTES = 4
#: As many copy one part, so that the first is soon there.
_COPY_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A sample's: keys, numerical features, values per embedding vector."""

    slots: int
    features: int
    dim: int

    @property
    def feature_bytes(self) -> int:
        """Bytes of a sample's keys (int32) and numerical features (float32)."""
        return _VALUE_BYTES * (self.slots + self.features)


class DeviceDlrm:
    """DLRM on GPU `device`, for one request at a time; the tables must have a cache there."""

    def __init__(
        self,
        tables: ModelTables,
        engine: DenseEngine,
        stream: Stream,
        shape: Shape,
        *,
        device: int,
        vector_dtype: npt.DTypeLike,
        max_batch_size: int,
    ) -> None:
        """Take memory for requests of `max_batch_size` samples; larger ones go one after another.

        Every bucket is run, so that nothing is compiled or captured when requests come.
        """
        self._tables, self._stream, self._shape, self._device = tables, stream, shape, device
        self._vector_dtype = np.dtype(vector_dtype)
        sizes = buckets(max_batch_size)
        largest = sizes[-1]
        self._capacity = -(-max_batch_size // largest) * largest
        self._staged = PinnedMemory(self._capacity * shape.feature_bytes)
        self._answers = PinnedMemory(self._capacity * _VALUE_BYTES)
        self._features = device_memory(largest * shape.feature_bytes)
        values = largest * shape.slots * shape.dim
        self._vectors = device_memory(values * self._vector_dtype.itemsize)
        self._output = device_memory(largest * _VALUE_BYTES)
        self._pool = ThreadPoolExecutor(_COPY_THREADS, "features")
        self._runs = {
            size: self._bound(engine, size, graph) for graph, size in enumerate(sizes, start=1)
        }
        for size in sizes:
            keys = np.zeros((size, shape.slots), np.int32)
            self(keys, np.zeros((size, shape.features), np.float32))

    def __call__(
        self,
        keys: npt.NDArray[np.int32],
        numerical: npt.NDArray[np.float32],
        mark: Mark = ignore,
    ) -> npt.NDArray[np.float32]:
        """Return float32[n, 1] for int32[n, slots] and float32[n, features].

        `mark` is called with the name of each stage as it ends.
        """
        self._stream.use()
        answer = np.empty((len(keys), 1), np.float32)
        for first in range(0, len(keys), self._capacity):
            some = slice(first, first + self._capacity)
            answer[some, 0] = self._answer(keys[some], numerical[some], mark)
        return answer

    def wait(self) -> None:
        """Return when the GPU has done all of it."""
        self._stream.wait()

    def _answer(
        self, keys: npt.NDArray[np.int32], numerical: npt.NDArray[np.float32], mark: Mark
    ) -> npt.NDArray[np.float32]:
        for part in self._staged_parts(keys, numerical):
            mark("stage")
            source = self._staged.address + part.first * self._shape.feature_bytes
            self._stream.send(self._features, source, part.bucket * self._shape.feature_bytes)
            mark("copy in")
            self._look_up(part)
            mark("lookup")
            self._runs[part.bucket]()
            mark("engine")
            self._stream.fetch(
                self._answers.address + part.first * _VALUE_BYTES,
                self._output,
                part.count * _VALUE_BYTES,
            )
        self._stream.wait()
        mark("copy out")
        return self._answers.view(np.float32, (len(keys),), 0)

    def _staged_parts(
        self, keys: npt.NDArray[np.int32], numerical: npt.NDArray[np.float32]
    ) -> Generator[Part, None, None]:
        """Yield the parts in order, each when its features are in page-locked memory."""
        if len(keys) <= LARGEST:
            for part in parts(len(keys)):
                self._stage(part, slice(0, part.count), keys, numerical)
                yield part
            return
        staged: list[tuple[Part, list[Future[None]]]] = [
            (
                part,
                [
                    self._pool.submit(self._stage, part, some, keys, numerical)
                    for some in pieces(part.count)
                ],
            )
            for part in parts(len(keys))
        ]
        try:
            for part, copies in staged:
                for copy in copies:
                    copy.result()
                yield part
        finally:
            # Where a part failed: no thread may still write when the next request comes.
            futures = [copy for _, copies in staged for copy in copies]
            for future in futures:
                future.cancel()
            wait(futures)

    def _stage(
        self,
        part: Part,
        some: slice,
        keys: npt.NDArray[np.int32],
        numerical: npt.NDArray[np.float32],
    ) -> None:
        """Copy `some` samples of the part."""
        first = part.first * self._shape.feature_bytes
        of_all = slice(part.first + some.start, part.first + some.stop)
        target = self._staged.view(np.float32, (part.count, self._shape.features), first)
        np.copyto(target[some], numerical[of_all])
        target = self._staged.view(
            np.int32, (part.count, self._shape.slots), first + self._keys_offset(part.bucket)
        )
        np.copyto(target[some], keys[of_all])

    def _look_up(self, part: Part) -> None:
        gpu.lookup_flat(
            self._tables.native,
            self._device,
            self._features + self._keys_offset(part.bucket),
            np.array([part.count * self._shape.slots], np.uint64),
            key_bytes=_VALUE_BYTES,
            keys_on_gpu=True,
            dtype=self._vector_dtype,
            stream=self._stream.handle,
            out=self._vectors,
        )

    def _keys_offset(self, bucket: int) -> int:
        return bucket * self._shape.features * _VALUE_BYTES

    def _bound(self, engine: DenseEngine, size: int, graph: int) -> Callable[[], None]:
        shape = self._shape

        def on_gpu(address: int, dtype: npt.DTypeLike, *dims: int) -> Buffer:
            return Buffer(address=address, dtype=dtype, shape=(size, *dims), device=self._device)

        return engine.bind(
            vectors=on_gpu(self._vectors, self._vector_dtype, shape.slots, shape.dim),
            numerical=on_gpu(self._features, np.float32, shape.features),
            output=on_gpu(self._output, np.float32, 1),
            graph=graph,
        )


def pieces(count: int) -> list[slice]:
    """Return which samples of a part of `count` each thread copies."""
    step = -(-count // _COPY_THREADS)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
