"""What a database of embedding rows does, whichever it is, and the guard around it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpsbench.hps.sparse_model import SparseModel
from hpsbench.hps.tiers.circuit import Circuit

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class StoredTable:
    """A table as databases know it: its `tag`, and the version of its rows."""

    tag: str
    sparse_model: SparseModel
    fingerprint: str

    @property
    def dim(self) -> int:
        """Return the values in a row."""
        return int(self.sparse_model.rows.shape[1])


class Store(Protocol):
    """A database that holds rows of numbered tables; its functions raise what goes wrong.

    They are called by many threads at once, `update` by one at a time.
    """

    name: str
    writable: bool
    inserted: int
    evicted: int

    def add_table(self, table: StoredTable) -> None:
        """Number the next table."""

    def fetch(self, table: int, keys: Keys, out: Rows, found: npt.NDArray[np.bool_]) -> bool:
        """Write the rows of int64[n] `keys` to float32[n, dim] `out`, and set bool[n] `found`.

        Returns whether it wants the rows that it lacks.
        """

    def update(self, table: int, keys: Keys, rows: Rows) -> None:
        """Set the rows of keys, new or not."""

    def insert(self, table: int, keys: Keys, rows: Rows) -> None:
        """Add rows; those of keys that are there stay as they are."""

    def probe(self) -> None:
        """Return if it can be asked again."""

    def may_have_lost_updates(self) -> bool:
        """Return whether rows that it had taken before it failed may be older ones now."""

    def close(self) -> None:
        """Give back what it holds."""


class GuardedStore:
    """A store that never raises: what it cannot take is kept, and delivered before it is asked."""

    def __init__(
        self,
        store: Store,
        num_tables: int,
        updates: threading.RLock,
        updated_rows: Callable[[int], tuple[Keys, Rows]],
    ) -> None:
        """`updates` is locked by whoever updates; `updated_rows(table)` are all that were."""
        self.store = store
        self.failures = 0
        self._updated_rows = updated_rows
        self._circuit = Circuit(store.name, store.probe, self._settle, updates)
        self._owed: list[dict[int, Rows]] = [{} for _ in range(num_tables)]
        # Until all are delivered: a store says only once that it may have lost updates.
        self._owes_all = False

    @property
    def available(self) -> bool:
        """Whether it is asked."""
        return not self._circuit.open

    def owed_rows(self, table: int) -> int:
        """Return how many updated rows wait for its recovery."""
        return len(self._owed[table])

    def fail(self, error: BaseException) -> None:
        """Leave it alone until it recovers."""
        self.failures += 1
        self._circuit.fail(error)

    def fetch(self, table: int, keys: Keys, out: Rows, found: npt.NDArray[np.bool_]) -> bool | None:
        """Do what `Store.fetch` does; returns None where the store fails, or is left alone."""
        if self._circuit.open:
            return None
        try:
            return self.store.fetch(table, keys, out, found)
        except Exception as error:
            self.fail(error)
            return None

    def insert(self, table: int, keys: Keys, rows: Rows) -> None:
        """Do what `Store.insert` does, or nothing."""
        if self._circuit.open:
            return
        try:
            self.store.insert(table, keys, rows)
        except Exception as error:
            self.fail(error)

    def update(self, table: int, keys: Keys, rows: Rows) -> None:
        """Do what `Store.update` does, now or before the store is asked again."""
        if not self._circuit.open:
            try:
                self.store.update(table, keys, rows)
                return
            except Exception as error:
                self.fail(error)
        self._owed[table].update(zip(keys.tolist(), rows.copy(), strict=True))

    def close(self) -> None:
        """Stop waiting for recovery, and close the store."""
        self._circuit.close()
        self.store.close()

    def _settle(self) -> None:
        self._owes_all |= self.store.may_have_lost_updates()
        for table, owed in enumerate(self._owed):
            if self._owes_all:
                self._deliver(table, *self._updated_rows(table))
            if owed:
                keys = np.fromiter(owed, np.int64, len(owed))
                self._deliver(table, keys, np.stack(list(owed.values())))
                owed.clear()
        self._owes_all = False

    def _deliver(self, table: int, keys: Keys, rows: Rows) -> None:
        if len(keys):
            self.store.update(table, keys, rows)
