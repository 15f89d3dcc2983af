"""Rows in RocksDB: written once, found again after a restart, updated rows with them.

Layout: a table has the column family `hps_et.<model>.<table>`, whose keys are the table's (8 bytes,
big-endian) and whose values are rows (float32, little-endian); and beside it
`hps_et.<model>.<table>/updated`, with the keys that were updated and no values. The default column
family says for each table, once all its rows are there, which sparse model they are of.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from hpsbench.errors import HpsError
from hpsbench.hps.configuration import PersistentDatabase
from hpsbench.hps.tiers.store import Keys, Rows, StoredTable

_LOG = logging.getLogger("hpsbench.hps")
_PACKAGE_HINT = "pip install 'hpsbench[tiers]', or pip install rocksdict"
_CACHE_MIB = 64
_WRITE_ROWS = 65536


class _Database:
    """A database that is open in this process, for all models that name its path."""

    _opened: ClassVar[dict[str, _Database]] = {}
    _lock = threading.Lock()

    def __init__(self, path: str, section: PersistentDatabase, rocksdict: Any) -> None:
        self.rocksdict, self.read_only = rocksdict, section.read_only
        self._path, self._users = path, 0
        access = rocksdict.AccessType
        exists = (Path(path) / "CURRENT").exists()
        if section.read_only and not exists:
            raise HpsError(
                f"persistent_db: there is no database at {path}, and read_only is true",
                hint="let a process with read_only false write it first",
            )
        options = self._options(section.num_threads)
        try:
            families = rocksdict.Rdict.list_cf(path, options) if exists else []
            self.db = rocksdict.Rdict(
                path,
                options,
                column_families={name: options for name in families if name != "default"},
                access_type=access.read_only() if section.read_only else access.read_write(),
            )
        except Exception as error:
            raise _explained(path, error) from error
        self._families = {name: self.db.get_column_family(name) for name in families}
        self._options_of_families = options

    def _options(self, num_threads: int) -> Any:
        options = self.rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.increase_parallelism(num_threads)
        options.optimize_for_point_lookup(_CACHE_MIB)
        # Rows do not get smaller, and reading them should cost no time.
        options.set_compression_type(self.rocksdict.DBCompressionType.none())
        return options

    @classmethod
    def open(cls, section: PersistentDatabase) -> _Database:
        """Return the database at `section.path`, opened once; `release` gives it back."""
        try:
            import rocksdict
        except ImportError as error:
            raise HpsError(
                "persistent_db: rocks_db needs the package rocksdict", hint=_PACKAGE_HINT
            ) from error
        path = os.path.realpath(section.path)
        with cls._lock:
            database = cls._opened.get(path)
            if database is None:
                database = cls._opened[path] = cls(path, section, rocksdict)
            elif database.read_only and not section.read_only:
                raise HpsError(
                    f"persistent_db: {path} is open in this process with read_only true",
                    hint="give all models of a process the same read_only",
                )
            database._users += 1
            return database

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                del self._opened[self._path]
                self._families.clear()
                self.db.close()

    def family(self, name: str) -> Any:
        """Return a column family, or None."""
        return self._families.get(name)

    def new_family(self, name: str) -> Any:
        """Return the column family, empty."""
        if name in self._families:
            del self._families[name]
            self.db.drop_column_family(name)
        self._families[name] = self.db.create_column_family(name, self._options_of_families)
        return self._families[name]


class RocksDbStore:
    """The `rocks_db` of a configuration; see `Store`."""

    def __init__(self, section: PersistentDatabase) -> None:
        """Open the database.

        Raises HpsError where the package is missing, another process has the database open, it is
        damaged, or it is to be read only and not there.
        """
        self.name = f"RocksDB at {section.path}"
        self.inserted = self.evicted = 0
        self.writable = not section.read_only
        self._section = section
        self._database = _Database.open(section)
        self._rocksdict = self._database.rocksdict
        self._tables: list[StoredTable] = []

    def add_table(self, table: StoredTable) -> None:
        """See `Store.add_table`."""
        self._tables.append(table)

    def load(self, table: int) -> int:
        """Write a table's rows, unless they are all there; return how many were written.

        Raises HpsError where they are not there and the database is to be read only.
        """
        stored = self._tables[table]
        written = self._database.db.get(stored.tag.encode())
        mark = json.loads(written) if written else None
        version = {"fingerprint": stored.fingerprint, "dim": stored.dim}
        if mark == version:
            return 0
        if not self.writable:
            state = "is not there, or not whole" if mark is None else "is of another sparse model"
            raise HpsError(
                f"persistent_db: table {stored.tag} in {self._section.path} {state}, and read_only "
                "is true",
                hint="let a process with read_only false write it first",
            )
        if not self._section.initialize_after_startup and mark is None:
            self._database.new_family(stored.tag)
            self._database.new_family(_updates(stored.tag))
            self._database.db[stored.tag.encode()] = json.dumps(version).encode()
            return 0
        return self._write_all(stored, version)

    def _write_all(self, stored: StoredTable, version: dict[str, Any]) -> int:
        started = time.monotonic()
        # Without its mark the table is written again, should this be the end of the process.
        self._database.db.delete(stored.tag.encode())
        family = self._database.new_family(stored.tag)
        self._database.new_family(_updates(stored.tag))
        unlogged = self._rocksdict.WriteOptions()
        unlogged.disable_wal = True
        model = stored.sparse_model
        handle = self._database.db.get_column_family_handle(stored.tag)
        for begin in range(0, len(model.keys), _WRITE_ROWS):
            piece = slice(begin, begin + _WRITE_ROWS)
            batch = self._rocksdict.WriteBatch(raw_mode=True)
            values = np.ascontiguousarray(model.rows[piece], "<f4")
            for key, value in zip(_keys(model.keys[piece]), _values(values), strict=True):
                batch.put(key, value, handle)
            self._database.db.write(batch, unlogged)
        family.flush()
        self._database.db[stored.tag.encode()] = json.dumps(version).encode()
        self.inserted += len(model.keys)
        _LOG.info(
            "table %s: %d rows written to %s in %.1f s; the next start finds them",
            stored.tag, len(model.keys), self.name, time.monotonic() - started,
        )  # fmt: skip
        return len(model.keys)

    def updated(self, table: int) -> Iterator[tuple[Keys, Rows]]:
        """Yield all rows of a table that were updated since its sparse model was written."""
        family = self._database.family(_updates(self._tables[table].tag))
        if family is None:
            return
        found: list[bytes] = []
        for key in family.keys():  # noqa: SIM118 (not a dict)
            found.append(key)
            if len(found) == _WRITE_ROWS:
                yield self._read_back(table, found)
                found = []
        if found:
            yield self._read_back(table, found)

    def _read_back(self, table: int, encoded: list[bytes]) -> tuple[Keys, Rows]:
        keys = np.frombuffer(b"".join(encoded), ">i8").astype(np.int64)
        rows = np.empty((len(keys), self._tables[table].dim), np.float32)
        found = np.empty(len(keys), np.bool_)
        self.fetch(table, keys, rows, found)
        return keys[found], rows[found]

    def fetch(self, table: int, keys: Keys, out: Rows, found: npt.NDArray[np.bool_]) -> bool:
        """See `Store.fetch`."""
        stored = self._tables[table]
        family = self._database.family(stored.tag)
        row_bytes = 4 * stored.dim
        for begin in range(0, len(keys), self._section.max_batch_size):
            piece = slice(begin, begin + self._section.max_batch_size)
            values = family.get(_keys(keys[piece]))
            there = np.fromiter(
                (v is not None and len(v) == row_bytes for v in values), np.bool_, len(values)
            )
            if there.any():
                content = b"".join(v for v, t in zip(values, there, strict=True) if t)
                out[piece][there] = np.frombuffer(content, "<f4").reshape(-1, stored.dim)
            found[piece] = there
        return False

    def update(self, table: int, keys: Keys, rows: Rows) -> None:
        """See `Store.update`. The rows are there after a crash of the process, too."""
        stored = self._tables[table]
        rows_handle = self._database.db.get_column_family_handle(stored.tag)
        updates_handle = self._database.db.get_column_family_handle(_updates(stored.tag))
        for begin in range(0, len(keys), self._section.max_batch_size):
            piece = slice(begin, begin + self._section.max_batch_size)
            batch = self._rocksdict.WriteBatch(raw_mode=True)
            values = np.ascontiguousarray(rows[piece], "<f4")
            for key, value in zip(_keys(keys[piece]), _values(values), strict=True):
                batch.put(key, value, rows_handle)
                batch.put(key, b"", updates_handle)
            self._database.db.write(batch)

    def insert(self, table: int, keys: Keys, rows: Rows) -> None:
        """Do nothing: the rows of the sparse model are all there."""

    def probe(self) -> None:
        """See `Store.probe`."""
        for stored in self._tables:
            self._database.db.get(stored.tag.encode())

    def may_have_lost_updates(self) -> bool:
        """Return False: what it took it has logged."""
        return False

    def close(self) -> None:
        """See `Store.close`."""
        self._database.release()


def _updates(tag: str) -> str:
    return f"{tag}/updated"


def _keys(keys: Keys) -> list[bytes]:
    encoded: list[bytes] = np.ascontiguousarray(keys, ">i8").view("V8").tolist()
    return encoded


def _values(rows: Rows) -> list[bytes]:
    encoded: list[bytes] = rows.view(f"V{4 * rows.shape[1]}").ravel().tolist()
    return encoded


def _explained(path: str, error: Exception) -> HpsError:
    if "lock" in str(error).lower():
        return HpsError(
            f"persistent_db: {path} is open in another process ({error})",
            hint="give each process a path of its own, or have all but one set read_only to true",
        )
    return HpsError(
        f"persistent_db: {path} cannot be opened: {error}",
        hint="mend or delete that folder; its rows are then written again, updates are lost",
    )
