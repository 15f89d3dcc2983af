"""Rows in Redis: one node or a cluster, shared by any number of processes.

Layout: a table has `num_partitions` hashes, named
`{hps_et.<model>.<table>@<version>/<num_partitions>.<partition>}`, where the version is that of the
sparse model's content, so that processes that serve different versions never meet. A field is a key
(8 bytes, little-endian), its value a row (float32, little-endian), so a row is read and written
whole. The field of no bytes says that the partition was loaded. The braces have a cluster keep a
partition on one node.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from hpsbench.hps.configuration import VolatileDatabase
from hpsbench.hps.tiers.redis_client import RedisClient
from hpsbench.hps.tiers.store import Keys, Rows, StoredTable

_LOG = logging.getLogger("hpsbench.hps")
_LOADED = b""
#: Rows sent at a time when many are written, whatever max_batch_size says.
_WRITE_ROWS = 4096


class RedisStore:
    """The `redis_cluster` of a configuration; see `Store`."""

    def __init__(self, section: VolatileDatabase) -> None:
        """Connect nothing yet. Raises HpsError where the section's TLS files are not there."""
        self.name = f"Redis at {section.address}"
        self.writable = True
        self.inserted = self.evicted = 0
        self._section = section
        self._client = RedisClient(section)
        self._tables: list[StoredTable] = []
        self._counting = threading.Lock()

    def add_table(self, table: StoredTable) -> None:
        """See `Store.add_table`."""
        self._tables.append(table)

    def load(self, table: int) -> int:
        """Write the first rows of a table, as `initial_cache_rate` says, where nobody has.

        Returns how many rows were sent. Rows that are there already are left alone: they may have
        been updated.
        """
        model = self._tables[table].sparse_model
        count = int(np.ceil(self._section.initial_cache_rate * len(model.keys)))
        partitions = range(self._section.num_partitions)
        pipeline = self._client.pipeline()
        for partition in partitions:
            pipeline.hexists(self._hash(table, partition), _LOADED)
        missing = np.flatnonzero(~np.array(pipeline.execute(), bool))
        if missing.size == 0:
            return 0
        sent = 0
        # From the end, so that of a repeated key the last row is the first to come, and stays.
        for begin in range((count - 1) // _WRITE_ROWS * _WRITE_ROWS, -1, -_WRITE_ROWS):
            keys = np.asarray(model.keys[begin : min(begin + _WRITE_ROWS, count)])[::-1]
            rows = np.asarray(model.rows[begin : min(begin + _WRITE_ROWS, count)])[::-1]
            wanted = np.isin(self._partitions(keys), missing)
            if wanted.any():
                self._write(table, keys[wanted], rows[wanted], replace=False)
                sent += int(wanted.sum())
        pipeline = self._client.pipeline()
        for partition in missing:
            pipeline.hset(self._hash(table, int(partition)), _LOADED, b"1")
        pipeline.execute()
        return sent

    def fetch(self, table: int, keys: Keys, out: Rows, found: npt.NDArray[np.bool_]) -> bool:
        """See `Store.fetch`; with `cache_missed_embeddings` it wants all, else what it lost."""
        wants_missing = self._section.cache_missed_embeddings
        size = self._section.max_batch_size
        for begin in range(0, len(keys), size):
            piece = slice(begin, begin + size)
            loaded = self._fetch_piece(table, keys[piece], out[piece], found[piece])
            wants_missing = wants_missing or not loaded
        return wants_missing

    def _fetch_piece(self, table: int, keys: Keys, out: Rows, found: npt.NDArray[np.bool_]) -> bool:
        pipeline = self._client.pipeline()
        parts = []
        for partition, positions in self._by_partition(keys):
            pipeline.hmget(self._hash(table, partition), [*_fields(keys[positions]), _LOADED])
            parts.append(positions)
        answers = pipeline.execute()
        row_bytes = 4 * self._tables[table].dim
        all_loaded = True
        for positions, values in zip(parts, answers, strict=True):
            all_loaded &= values.pop() is not None
            there = np.fromiter(
                (v is not None and len(v) == row_bytes for v in values), np.bool_, len(values)
            )
            if there.any():
                content = b"".join(v for v, t in zip(values, there, strict=True) if t)
                rows = np.frombuffer(content, "<f4").reshape(-1, self._tables[table].dim)
                out[positions[there]] = rows
            found[positions] = there
        return all_loaded or not self._section.initialize_after_startup

    def update(self, table: int, keys: Keys, rows: Rows) -> None:
        """See `Store.update`."""
        self._write_all(table, keys, rows, replace=True)

    def insert(self, table: int, keys: Keys, rows: Rows) -> None:
        """See `Store.insert`."""
        self._write_all(table, keys, rows, replace=False)

    def probe(self) -> None:
        """See `Store.probe`."""
        self._client.ping()

    def may_have_lost_updates(self) -> bool:
        """Return whether a server was started anew: then it has an older state, or none."""
        return self._client.forget_restart()

    def close(self) -> None:
        """See `Store.close`."""
        self._client.close()

    def _write_all(self, table: int, keys: Keys, rows: Rows, *, replace: bool) -> None:
        size = min(_WRITE_ROWS, self._section.max_batch_size)
        for begin in range(0, len(keys), size):
            piece = slice(begin, begin + size)
            self._write(table, keys[piece], rows[piece], replace=replace)

    def _write(self, table: int, keys: Keys, rows: Rows, *, replace: bool) -> None:
        values = np.ascontiguousarray(rows, "<f4").view(f"V{rows.shape[1] * 4}").ravel()
        pipeline = self._client.pipeline()
        replies, partitions = [], []
        for partition, positions in self._by_partition(keys):
            name = self._hash(table, partition)
            fields, contents = _fields(keys[positions]), values[positions].tolist()
            if replace:
                pipeline.hset(name, mapping=dict(zip(fields, contents, strict=True)))
                replies.append(1)
            else:
                for field, content in zip(fields, contents, strict=True):
                    pipeline.hsetnx(name, field, content)
                replies.append(len(fields))
            pipeline.hlen(name)
            partitions.append(partition)
        answers = iter(pipeline.execute())
        inserted, too_large = 0, {}
        for partition, count in zip(partitions, replies, strict=True):
            inserted += sum(int(next(answers)) for _ in range(count))
            size = int(next(answers)) - 1  # beside the mark
            if size > self._section.overflow_margin:
                too_large[partition] = size
        with self._counting:
            self.inserted += inserted
        if too_large:
            self._evict(table, too_large)

    def _evict(self, table: int, sizes: dict[int, int]) -> None:
        target = int(self._section.overflow_resolution_target * self._section.overflow_margin)
        pipeline = self._client.pipeline()
        for partition, size in sizes.items():
            pipeline.hrandfield(self._hash(table, partition), size - target + 1)
        drawn = pipeline.execute()
        pipeline = self._client.pipeline()
        for (partition, size), fields in zip(sizes.items(), drawn, strict=True):
            evicted = [f for f in fields if f != _LOADED][: size - target]
            random.shuffle(evicted)
            if evicted:
                pipeline.hdel(self._hash(table, partition), *evicted)
        evicted_count = sum(map(int, pipeline.execute()))
        with self._counting:
            self.evicted += evicted_count

    def _hash(self, table: int, partition: int) -> str:
        stored = self._tables[table]
        return (
            f"{{{stored.tag}@{stored.fingerprint[:16]}/{self._section.num_partitions}.{partition}}}"
        )

    def _partitions(self, keys: Keys) -> npt.NDArray[np.int64]:
        # The finalizer of splitmix64, as in the native tables.
        h = keys.view(np.uint64)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        h = h ^ (h >> np.uint64(31))
        return (h % np.uint64(self._section.num_partitions)).astype(np.int64)

    def _by_partition(self, keys: Keys) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Yield each partition that has keys, and their positions."""
        partitions = self._partitions(keys)
        order = np.argsort(partitions, kind="stable")
        present, begins = np.unique(partitions[order], return_index=True)
        for partition, positions in zip(present, np.split(order, begins[1:]), strict=True):
            yield int(partition), positions


def _fields(keys: Keys) -> list[bytes]:
    fields: list[bytes] = np.ascontiguousarray(keys, "<i8").view("V8").tolist()
    return fields
