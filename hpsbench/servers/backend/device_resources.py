"""What a model holds on a GPU, owned by one object that gives all of it back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import ServerError
from hpsbench.servers.backend import cuda
from hpsbench.servers.backend.cuda import Event, Graph, PinnedMemory, Stream

_LOG = logging.getLogger("hpsbench.servers")


class DeviceResources:
    """Streams, events, graphs, memory and whatever else of GPU `device` one model takes.

    `close` waits for the streams, then ends each in the reverse of the order in which they were
    taken, so that nothing ends before what uses it.
    """

    def __init__(self, device: int) -> None:
        """Have the calling thread use the GPU. Raises ServerError where there is no driver."""
        cuda.use_device(device)
        self.device = device
        self._streams: list[Stream] = []
        self._ends: list[Callable[[], object]] = []
        self._closed = False

    def __enter__(self) -> DeviceResources:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def use(self) -> None:
        """Have the calling thread use the GPU. Raises ServerError after `close`."""
        self._check_open()
        cuda.use_device(self.device)

    def part(self) -> DeviceResources:
        """Return resources that can be closed before these, and are closed with them."""
        self._check_open()
        part = DeviceResources(self.device)
        part._streams = self._streams
        self.keep(part.close)
        return part

    def stream(self) -> Stream:
        """Return a new stream."""
        self._check_open()
        stream = Stream(self.device)

        def end() -> None:
            self._streams.remove(stream)
            stream.close()

        self._streams.append(stream)
        self.keep(end)
        return stream

    def event(self) -> Event:
        """Return a new event."""
        self._check_open()
        event = Event()
        self.keep(event.close)
        return event

    def graph(self, queue: Callable[[], None], stream: int) -> Graph:
        """Return what `queue` queues on a stream, by its handle, as one CUDA graph."""
        self._check_open()
        graph = Graph(queue, stream)
        self.keep(graph.close)
        return graph

    def memory(self, num_bytes: int) -> int:
        """Return the address of new memory of the GPU, zeroed."""
        self._check_open()
        address = cuda.device_memory(num_bytes)
        self.keep(lambda: cuda.free(address))
        return address

    def upload(self, array: npt.NDArray[Any]) -> int:
        """Return the address of new memory of the GPU that holds an array."""
        contiguous = np.ascontiguousarray(array)
        address = self.memory(contiguous.nbytes)
        cuda.fill(address, contiguous)
        return address

    def page_locked(self, num_bytes: int) -> PinnedMemory:
        """Return new host memory that the GPU copies from and to."""
        self._check_open()
        memory = PinnedMemory(num_bytes)
        self.keep(memory.close)
        return memory

    def keep(self, end: Callable[[], object]) -> None:
        """Have `close` call `end`, before all ends that it was given until now."""
        self._check_open()
        self._ends.append(end)

    def close(self) -> None:
        """Give everything back, from any thread; again does nothing.

        What fails is logged, and the rest given back all the same.
        """
        if self._closed:
            return
        self._closed = True
        self._attempt(lambda: cuda.use_device(self.device))
        for stream in self._streams:
            self._attempt(stream.wait)
        while self._ends:
            self._attempt(self._ends.pop())

    def _attempt(self, end: Callable[[], object]) -> None:
        try:
            end()
        except Exception as error:
            words = error.problem if isinstance(error, ServerError) else repr(error)
            _LOG.warning("GPU %d: a model left something behind: %s", self.device, words)

    def _check_open(self) -> None:
        if self._closed:
            raise ServerError(
                f"the model has given back what it held on GPU {self.device}",
                hint="load the model again",
            )
