"""Lookup and engine on one GPU: a request is one copy there, one lookup, one run, one copy back.

A large batch goes in parts. While the GPU computes one, the features of the next are copied there
and looked up on a stream of their own; where they are not in page-locked memory, threads bring them
into such first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from hpsbench.hps.lookup import ModelTables
from hpsbench.hps.native import gpu
from hpsbench.models.onnx_engine import Buffer
from hpsbench.servers.backend.batch_parts import LARGEST, Part, buckets, parts
from hpsbench.servers.backend.cuda import Event, Stream, is_page_locked
from hpsbench.servers.backend.dense_engines import DenseEngine
from hpsbench.servers.backend.device_resources import DeviceResources
from hpsbench.servers.backend.stages import Mark, ignore

_VALUE_BYTES = 4
#: As many copy one part, so that the first is soon there.
_COPY_THREADS = 4
#: What is less is staged, whatever memory it comes in: its features are then one copy, not two.
_LEAST_DIRECT_BYTES = 256 << 10


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


@dataclass(frozen=True, kw_only=True)
class _PartMemory:
    """Memory of the GPU for one part's features and vectors, by address."""

    features: int
    vectors: int
    runs: dict[int, Callable[[], None]]
    """The engine's work of these, by bucket."""
    filled: Event
    read: Event


class DeviceDlrm:
    """DLRM on the GPU of `resources`, for one request at a time; the tables must be cached there.

    Everything it takes is theirs, and given back when they are closed; a later request is a
    ServerError.
    """

    def __init__(
        self,
        tables: ModelTables,
        engine: DenseEngine,
        resources: DeviceResources,
        stream: Stream,
        shape: Shape,
        *,
        vector_dtype: npt.DTypeLike,
        max_batch_size: int,
    ) -> None:
        """Take memory for requests of `max_batch_size` samples; larger ones go one after another.

        Every bucket is run, so that nothing is compiled or captured when requests come.
        """
        self._tables, self._stream, self._shape = tables, stream, shape
        self._resources, self._device = resources, resources.device
        self._vector_dtype = np.dtype(vector_dtype)
        sizes = buckets(max_batch_size)
        largest = sizes[-1]
        self._capacity = -(-max_batch_size // largest) * largest
        self._staged = resources.page_locked(self._capacity * shape.feature_bytes)
        self._answers = resources.page_locked(self._capacity * _VALUE_BYTES)
        self._output = resources.memory(largest * _VALUE_BYTES)
        self._pool = ThreadPoolExecutor(_COPY_THREADS, "features")
        resources.keep(self._pool.shutdown)
        self._ahead = resources.stream()
        # With two, one part is copied and looked up while another is computed.
        count = 2 if self._capacity > largest else 1
        self._memory = [self._part_memory(engine, sizes, number) for number in range(count)]
        # What is bound goes before the engine that it is bound in.
        resources.keep(self._memory.clear)
        for size in sizes:
            keys = np.zeros((size, shape.slots), np.int32)
            self(keys, np.zeros((size, shape.features), np.float32))
            for memory in self._memory[1:]:
                memory.runs[size]()
        self._stream.wait()

    def __call__(
        self,
        keys: npt.NDArray[np.int32],
        numerical: npt.NDArray[np.float32],
        mark: Mark = ignore,
    ) -> npt.NDArray[np.float32]:
        """Return float32[n, 1] for int32[n, slots] and float32[n, features].

        `mark` is called with the name of each stage as it ends.
        """
        self._resources.use()
        answer = np.empty((len(keys), 1), np.float32)
        for first in range(0, len(keys), self._capacity):
            some = slice(first, first + self._capacity)
            answer[some, 0] = self._answer(keys[some], numerical[some], mark)
        return answer

    def wait(self) -> None:
        """Return when the GPU has done all of it."""
        self._ahead.wait()
        self._stream.wait()

    def _answer(
        self, keys: npt.NDArray[np.int32], numerical: npt.NDArray[np.float32], mark: Mark
    ) -> npt.NDArray[np.float32]:
        try:
            self._queue(keys, numerical, mark)
        finally:
            # Also where a part failed: the next request uses the same memory.
            self.wait()
        mark("copy out")
        return self._answers.view(np.float32, (len(keys),), 0)

    def _queue(
        self, keys: npt.NDArray[np.int32], numerical: npt.NDArray[np.float32], mark: Mark
    ) -> None:
        several = len(keys) > LARGEST
        direct = (
            len(keys) * self._shape.feature_bytes >= _LEAST_DIRECT_BYTES
            and is_page_locked(keys)
            and is_page_locked(numerical)
        )
        send = partial(self._send, keys, numerical) if direct else self._send_staged
        found = parts(len(keys)) if direct else self._staged_parts(keys, numerical)
        for number, part in enumerate(found):
            mark("stage")
            memory = self._memory[number % len(self._memory)]
            stream = self._ahead if several else self._stream
            if several:
                stream.hold(memory.read)
            send(part, memory, stream)
            mark("copy in")
            self._look_up(part, memory, stream)
            mark("lookup")
            if several:
                stream.record(memory.filled)
                self._stream.hold(memory.filled)
            memory.runs[part.bucket]()
            if several:
                self._stream.record(memory.read)
            mark("engine")
            self._stream.fetch(
                self._answers.address + part.first * _VALUE_BYTES,
                self._output,
                part.count * _VALUE_BYTES,
            )

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

    def _send_staged(self, part: Part, memory: _PartMemory, stream: Stream) -> None:
        source = self._staged.address + part.first * self._shape.feature_bytes
        stream.send(memory.features, source, part.bucket * self._shape.feature_bytes)

    def _send(
        self,
        keys: npt.NDArray[np.int32],
        numerical: npt.NDArray[np.float32],
        part: Part,
        memory: _PartMemory,
        stream: Stream,
    ) -> None:
        for target, array in (
            (memory.features, numerical),
            (memory.features + self._keys_offset(part.bucket), keys),
        ):
            row_bytes = array.shape[1] * _VALUE_BYTES
            source = array.ctypes.data + part.first * row_bytes
            stream.send(target, source, part.count * row_bytes)

    def _look_up(self, part: Part, memory: _PartMemory, stream: Stream) -> None:
        gpu.lookup_flat(
            self._tables.native,
            self._device,
            memory.features + self._keys_offset(part.bucket),
            np.array([part.count * self._shape.slots], np.uint64),
            key_bytes=_VALUE_BYTES,
            keys_on_gpu=True,
            dtype=self._vector_dtype,
            stream=stream.handle,
            out=memory.vectors,
        )

    def _keys_offset(self, bucket: int) -> int:
        return bucket * self._shape.features * _VALUE_BYTES

    def _part_memory(self, engine: DenseEngine, sizes: list[int], number: int) -> _PartMemory:
        shape, largest = self._shape, sizes[-1]
        features = self._resources.memory(largest * shape.feature_bytes)
        vectors = self._resources.memory(
            largest * shape.slots * shape.dim * self._vector_dtype.itemsize
        )

        def on_gpu(address: int, dtype: npt.DTypeLike, *dims: int) -> Buffer:
            return Buffer(address=address, dtype=dtype, shape=dims, device=self._device)

        runs = {
            size: engine.bind(
                vectors=on_gpu(vectors, self._vector_dtype, size, shape.slots, shape.dim),
                numerical=on_gpu(features, np.float32, size, shape.features),
                output=on_gpu(self._output, np.float32, size, 1),
                graph=graph,
            )
            for graph, size in enumerate(sizes, start=1 + number * len(sizes))
        }
        return _PartMemory(
            features=features,
            vectors=vectors,
            runs=runs,
            filled=self._resources.event(),
            read=self._resources.event(),
        )


def pieces(count: int) -> list[slice]:
    """Return which samples of a part of `count` each thread copies."""
    step = -(-count // _COPY_THREADS)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
