"""The stages of a lookup, from the whole of it inwards, and the peers that do the same work."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.hps.gpu_lookup import GpuLookup
from hpsbench.hps.lookup import ModelTables
from hpsbench.hps.native.tiers import Tier, fetch
from hpsbench.profiling.batches import Batch
from hpsbench.profiling.subject import Subject

PEERS = ("tensorflow", "numpy", "none")


class _AllTables:
    """A stage that asks each key of all tables."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def size(self, batch: Batch) -> tuple[int, int]:
        """Return the keys of a batch, and the bytes of their rows."""
        keys = [keys.size for keys in batch.keys]
        return sum(keys), 4 * int(np.dot(keys, self._subject.embedding_dims))


class _FlatLookup(_AllTables):
    """A stage that asks all tables in one call, table after table."""

    def __init__(self, subject: Subject, tables: ModelTables) -> None:
        super().__init__(subject)
        self._tables = tables

    def prepare(self, batch: Batch) -> Any:
        """Return the flat keys, and the count for each table."""
        counts = np.zeros(len(self._tables.table_names), np.uint64)
        flat: list[npt.NDArray[Any]] = []
        for table, keys in sorted(
            zip(self._subject.table_ids, batch.keys, strict=True), key=lambda pair: pair[0]
        ):
            counts[table] = keys.size
            flat.append(keys.ravel())
        return np.concatenate(flat), counts


class GpuCacheLookup(_FlatLookup):
    """The cache on a GPU, asked from Python; keys come from the host, rows stay there."""

    meaning = "hpsbench.hps.gpu_lookup: keys to the GPU, rows in its memory, without TensorFlow"

    def __init__(self, subject: Subject, tables: ModelTables, device: int) -> None:
        """Ask the cache of `tables` on this GPU."""
        super().__init__(subject, tables)
        self.name = f"GPU {device} cache"
        self._lookup = GpuLookup(tables, device)

    def ask(self, prepared: Any) -> object:
        """Look the keys of all tables up in one call."""
        return self._lookup.lookup_flat(*prepared)


class HostLookup(_FlatLookup):
    """The model's tables asked from Python: what TensorFlow adds is not in it."""

    name = "host tables"
    meaning = "hpsbench.hps.lookup: index, tiers and copy, without TensorFlow"

    def __init__(self, subject: Subject, tables: ModelTables) -> None:
        """Ask `tables`, loaded from the subject."""
        super().__init__(subject, tables)
        self._rooms = _Rooms()

    def ask(self, prepared: Any) -> object:
        """Look the keys of all tables up in one call."""
        keys, counts = prepared
        size = int(np.dot(counts.astype(np.int64), self._tables.embedding_dims))
        return self._tables.lookup_flat(keys, counts, self._rooms.of(0, (size,)))


class TierLookup:
    """One tier of one table, and those below it, asked as a cache asks that misses a key."""

    def __init__(self, subject: Subject, tables: ModelTables, number: int, tier: Tier) -> None:
        """Ask the subject's table `number`, without the tiers before `tier`."""
        self.name = f"from {tier.name.lower()} on"
        if len(subject.table_ids) > 1:
            self.name = f"{subject.table_names[number]} {self.name}"
        self.meaning = "this tier and those below it, of one table, as a cache asks them"
        self._table, self._number = subject.table_ids[number], number
        # None: from the top. The volatile tier is there, and on the threads of the model.
        self._native, self._first = tables.native, None if tier is Tier.VOLATILE else tier
        self._row_bytes = 4 * subject.embedding_dims[number]

    def size(self, batch: Batch) -> tuple[int, int]:
        """Return the unique keys of the table in a batch, and the bytes of their rows."""
        keys = len(np.unique(batch.keys[self._number]))
        return keys, keys * self._row_bytes

    def prepare(self, batch: Batch) -> Any:
        """Return the unique keys, which is what a tier is asked."""
        return np.unique(batch.keys[self._number]).astype(np.int64)

    def ask(self, prepared: Any) -> object:
        """Fetch the rows."""
        return fetch(self._native, self._table, prepared, self._first)


class TensorFlowLookup(_AllTables):
    """The operation that a served model runs, on the device on which TensorFlow puts it."""

    name = "end to end"
    meaning = "hps.LookupLayer in a tf.function"

    def __init__(self, subject: Subject, *, device: str) -> None:
        """Ask the model that is registered under the subject's name."""
        import tensorflow as tf

        import hpsbench.hps as hps

        super().__init__(subject)
        self._device = _Device(device)
        model, tables, dims = subject.model.model, subject.table_ids, subject.embedding_dims
        if len(tables) == 1:
            one = hps.LookupLayer(model, tables[0], dims[0], tf.float32)
            self._function = tf.function(lambda ids: [one(ids[0])])
        else:
            self.meaning = "hps.MultiLookupLayer in a tf.function"
            self._function = tf.function(hps.MultiLookupLayer(model, tables, dims, tf.float32))

    def prepare(self, batch: Batch) -> Any:
        """Return the keys as tensors on the device."""
        return self._device.tensors(batch.keys)

    def ask(self, prepared: Any) -> object:
        """Look the keys up."""
        return self._device.call(self._function, prepared)


class TensorFlowPeer(_AllTables):
    """`tf.nn.embedding_lookup` of variables that hold the same rows, on the same device."""

    name = "tf.nn.embedding_lookup"
    meaning = "of tf.Variables that hold the same rows, in a tf.function"

    def __init__(self, subject: Subject, *, device: str) -> None:
        """Copy the rows into variables."""
        import tensorflow as tf

        super().__init__(subject)
        self._device = _Device(device)
        with tf.device(device):
            variables = [tf.Variable(model.rows) for model in subject.sparse_models]
        self._function = tf.function(
            lambda ids: [tf.nn.embedding_lookup(v, i) for v, i in zip(variables, ids, strict=True)]
        )

    def prepare(self, batch: Batch) -> Any:
        """Return the rows' numbers as tensors on the device."""
        return self._device.tensors(batch.rows)

    def ask(self, prepared: Any) -> object:
        """Look the rows up."""
        return self._device.call(self._function, prepared)


class NumpyPeer(_AllTables):
    """`numpy.take` of the mapped rows, on one thread for each caller."""

    name = "numpy.take"
    meaning = "of the mapped rows, by their numbers"

    def __init__(self, subject: Subject) -> None:
        """Take from the rows of the subject."""
        super().__init__(subject)
        self._rows = [model.rows for model in subject.sparse_models]
        self._rooms = _Rooms()

    def prepare(self, batch: Batch) -> Any:
        """Return the rows' numbers."""
        return batch.rows

    def ask(self, prepared: Any) -> object:
        """Take the rows of all tables."""
        answers = []
        for i, (rows, numbers) in enumerate(zip(self._rows, prepared, strict=True)):
            out = self._rooms.of(i, (*numbers.shape, rows.shape[1]))
            # "clip" spares the copy that NumPy makes to leave `out` alone in case of an error.
            answers.append(rows.take(numbers, axis=0, out=out, mode="clip"))
        return answers


class _Rooms(threading.local):
    """Memory for answers, of each thread's own and used again, as TensorFlow does with its own."""

    def __init__(self) -> None:
        self._rooms: dict[int, npt.NDArray[np.float32]] = {}

    def of(self, number: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        room = self._rooms.get(number)
        if room is None or room.shape != shape:
            room = self._rooms[number] = np.zeros(shape, np.float32)
        return room


class _Device:
    """Where TensorFlow keeps the keys and runs the calls; a GPU's are waited for."""

    def __init__(self, name: str) -> None:
        import tensorflow as tf

        self._tf = tf
        self._name = name
        self._waits = "GPU" in name

    def tensors(self, arrays: Sequence[npt.NDArray[Any]]) -> list[Any]:
        with self._tf.device(self._name):
            return [self._tf.identity(self._tf.constant(array)) for array in arrays]

    def call(self, function: Any, tensors: list[Any]) -> object:
        with self._tf.device(self._name):
            answer = function(tensors)
        if self._waits:
            self._tf.test.experimental.sync_devices()
        return answer
