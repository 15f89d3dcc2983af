"""The tiers of a configured model: which there are, how they are filled, asked and updated."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import queue
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsbench.errors import HpsError
from hpsbench.hps.configuration import (
    Configuration,
    ModelConfiguration,
    PersistentDatabase,
    VolatileDatabase,
)
from hpsbench.hps.native import tiers
from hpsbench.hps.native.bindings import NativeModel
from hpsbench.hps.native.tiers import Tier, TierOptions, VolatileOptions
from hpsbench.hps.sparse_model import SparseModel
from hpsbench.hps.tiers.fingerprint import fingerprint
from hpsbench.hps.tiers.redis_store import RedisStore
from hpsbench.hps.tiers.rocksdb_store import RocksDbStore
from hpsbench.hps.tiers.store import GuardedStore, Keys, Rows, StoredTable

_LOG = logging.getLogger("hpsbench.hps")
#: Batches of rows that wait to be inserted into Redis; with more, some are missed again.
_MAX_INSERTS = 64


class _Databases:
    """What the native core asks; it must not know the native model, which would then never go."""

    def __init__(self) -> None:
        self.stores: dict[Tier, GuardedStore] = {}
        self._inserts: queue.Queue[tuple[int, Keys, Rows] | None] = queue.Queue(_MAX_INSERTS)
        self._inserter: threading.Thread | None = None

    def fetch(
        self, tier: Tier, table: int, keys: Keys, out: Rows, found: npt.NDArray[np.bool_]
    ) -> bool | None:
        return self.stores[tier].fetch(table, keys, out, found)

    def insert(self, tier: Tier, table: int, keys: Keys, rows: Rows) -> None:
        # In the background: the lookup need not wait for it.
        with contextlib.suppress(queue.Full):
            self._inserts.put_nowait((table, keys.copy(), rows.copy()))

    def start(self) -> None:
        if Tier.REDIS in self.stores:
            self._inserter = threading.Thread(target=self._serve, name="hps inserts", daemon=True)
            self._inserter.start()

    def _serve(self) -> None:
        while (job := self._inserts.get()) is not None:
            self.stores[Tier.REDIS].insert(*job)

    def close(self) -> None:
        if self._inserter is not None:
            while True:  # jobs that wait are no longer worth doing
                try:
                    self._inserts.put_nowait(None)
                    break
                except queue.Full:
                    with contextlib.suppress(queue.Empty):
                        self._inserts.get_nowait()
            self._inserter.join()
        for store in self.stores.values():
            store.close()
        self.stores.clear()


class ModelTiers:
    """The tiers of one model around its native tables."""

    def __init__(
        self,
        configuration: Configuration,
        model: ModelConfiguration,
        native: NativeModel,
        sparse_models: Sequence[SparseModel],
    ) -> None:
        """Open and fill what `volatile_db` and `persistent_db` name.

        Raises HpsError where a database cannot be used as it is configured; a Redis that only does
        not answer is warned of, and used when it does.
        """
        self._native = native
        self._tags = tuple(f"hps_et.{model.model}.{name}" for name in model.embedding_table_names)
        self._volatile_filters = _filters(configuration.volatile_db)
        self._persistent_filters = _filters(configuration.persistent_db)
        self._updates = threading.RLock()
        self._databases = _Databases()
        self._close: Callable[[], object] = self._databases.close
        self._plan = plan_tiers(configuration)
        try:
            self._open(configuration, sparse_models)
        except BaseException:
            self.close()
            raise

    def _open(self, configuration: Configuration, sparse_models: Sequence[SparseModel]) -> None:
        options, stores = self._plan, self._databases.stores
        if options == TierOptions():
            return
        for table in range(len(self._tags)):
            tiers.set_tiers(self._native, table, options)
        rocksdb, redis = _stores(configuration)
        for tier, store in ((Tier.ROCKSDB, rocksdb), (Tier.REDIS, redis)):
            if store is not None:
                stores[tier] = GuardedStore(
                    store, len(self._tags), self._updates, self._updated_rows()
                )
        if stores:
            for tag, sparse_model in zip(self._tags, sparse_models, strict=True):
                stored = StoredTable(
                    tag=tag, sparse_model=sparse_model, fingerprint=fingerprint(sparse_model)
                )
                for guarded in stores.values():
                    guarded.store.add_table(stored)
        if rocksdb is not None:
            self._fill_rocksdb(rocksdb)
        if redis is not None:
            self._fill_redis(redis, configuration.volatile_db)
        if stores:
            self._databases.start()
            take_back = tiers.set_databases(self._native, self._databases)
            self._close = weakref.finalize(self, _close, take_back, self._databases)
        self._fill_volatile(configuration.volatile_db, sparse_models)

    def _fill_rocksdb(self, store: RocksDbStore) -> None:
        for table in range(len(self._tags)):
            store.load(table)
            for keys, rows in store.updated(table):
                tiers.update(self._native, table, keys, np.ascontiguousarray(rows))

    def _fill_redis(self, store: RedisStore, section: VolatileDatabase | None) -> None:
        assert section is not None
        guarded = self._databases.stores[Tier.REDIS]
        try:
            store.probe()
            store.may_have_lost_updates()
            for table in range(len(self._tags)):
                # Before the older rows of the sparse model, and without touching what is there.
                store.insert(table, *self._updated_rows()(table))
                if section.initialize_after_startup:
                    count = store.load(table)
                    _LOG.info("table %s: %d rows sent to %s", self._tags[table], count, store.name)
        except Exception as error:
            if _is_refusal(error):
                raise HpsError(
                    f"{store.name} refuses this process: {error}",
                    hint="mend user_name, password or the TLS fields of volatile_db",
                ) from error
            guarded.fail(error)

    def _fill_volatile(
        self, section: VolatileDatabase | None, sparse_models: Sequence[SparseModel]
    ) -> None:
        if self._plan.volatile is None or section is None:
            return
        section = section.near_cache or section
        if not section.initialize_after_startup:
            return
        most = section.num_partitions * section.overflow_margin
        for table, sparse_model in enumerate(sparse_models):
            count = math.ceil(section.initial_cache_rate * len(sparse_model.keys))
            tiers.preload(self._native, table, np.asarray(sparse_model.keys[: min(count, most)]))

    def _updated_rows(self) -> Any:
        """Return a function of a table: its rows that were updated in this process."""
        native = weakref.ref(self._native)

        def updated_rows(table: int) -> tuple[Keys, Rows]:
            model = native()
            if model is None:
                return np.empty(0, np.int64), np.empty((0, 1), np.float32)
            keys = tiers.tier_keys(model, table, Tier.UPDATED)
            rows, _ = tiers.fetch(model, table, keys, Tier.UPDATED)
            return keys, rows

        return updated_rows

    def update(self, table: int, keys: Keys, rows: Rows) -> None:
        """Set the rows, contiguous float32[n, dim], of contiguous int64[n] `keys`, in each tier.

        Each tier takes them whose `update_filters` match the table's tag. A lookup that starts
        when this has returned gets the new rows. Raises HpsError where no tier may take them.
        """
        tag = self._tags[table]
        volatile = _match(self._volatile_filters, tag)
        persistent = _match(self._persistent_filters, tag)
        stores = self._databases.stores
        rocksdb, redis = stores.get(Tier.ROCKSDB), stores.get(Tier.REDIS)
        if rocksdb is not None and not rocksdb.store.writable:
            rocksdb = None
        if not volatile and (rocksdb is None or not persistent):
            raise HpsError(
                f"no tier takes updates of table {tag}",
                hint="let a pattern of update_filters match that name",
            )
        with self._updates:
            if rocksdb is not None and persistent:
                rocksdb.update(table, keys, rows)
            if redis is not None and volatile:
                redis.update(table, keys, rows)
            if volatile:
                tiers.update(self._native, table, keys, rows)

    def refresh(self) -> None:
        """Rewrite the copies in host memory from what lies below them."""
        for table in range(len(self._tags)):
            tiers.refresh(self._native, table)

    def close(self) -> None:
        """Have no database asked any more, and give them back; again does nothing."""
        self._close()

    def updated_rows(self, table: int) -> tuple[Keys, Rows]:
        """Return the rows that are not those of the sparse model, since now or an earlier run."""
        rows: tuple[Keys, Rows] = self._updated_rows()(table)
        return rows

    def statistics(self, table: int) -> dict[str, dict[str, Any]]:
        """Return the `TierFacts` of each tier that the table has, as a dict, by its name.

        Those of databases also have `available`, `failures` and `owed_rows`: updated rows that
        wait for the database's recovery.
        """
        asked = {
            Tier.VOLATILE: self._plan.volatile is not None,
            Tier.REDIS: self._plan.redis,
            Tier.UPDATED: True,
            Tier.ROCKSDB: self._plan.rocksdb,
            Tier.MAPPED: True,
        }
        return {
            tier.name.lower(): self._tier_statistics(tier, table)
            for tier, there in asked.items()
            if there
        }

    def _tier_statistics(self, tier: Tier, table: int) -> dict[str, Any]:
        facts = tiers.tier_facts(self._native, table, tier)
        values = {**dataclasses.asdict(facts), "misses": facts.misses}
        guarded = self._databases.stores.get(tier)
        if guarded is None:
            return values
        del values["num_rows"], values["num_bytes"]
        return {
            **values,
            "inserted": guarded.store.inserted,
            "evicted": guarded.store.evicted,
            "available": guarded.available,
            "failures": guarded.failures,
            "owed_rows": guarded.owed_rows(table),
        }


def plan_tiers(configuration: Configuration) -> TierOptions:
    """Return the tiers that a configuration asks for, around the mapped rows."""
    section, persistent = configuration.volatile_db, configuration.persistent_db
    rocksdb = persistent is not None and persistent.type == "rocks_db"
    if section is None or section.type == "disabled":
        return TierOptions(rocksdb=rocksdb)
    if section.type == "redis_cluster":
        near = section.near_cache
        return TierOptions(
            volatile=None if near is None else _bounds(near),
            cache_missed=near is not None and near.cache_missed_embeddings,
            redis=True,
            rocksdb=rocksdb,
        )
    if not section.bounded:
        # The mapped rows are the volatile tier: in host memory, all of them, and not copied.
        return TierOptions(rocksdb=rocksdb, mapped_first=rocksdb)
    return TierOptions(
        volatile=_bounds(section), cache_missed=section.cache_missed_embeddings, rocksdb=rocksdb
    )


def _bounds(section: VolatileDatabase) -> VolatileOptions:
    names = (f.name for f in dataclasses.fields(VolatileOptions))
    return VolatileOptions(**{name: getattr(section, name) for name in names})


def _stores(configuration: Configuration) -> tuple[RocksDbStore | None, RedisStore | None]:
    volatile, persistent = configuration.volatile_db, configuration.persistent_db
    redis = rocksdb = None
    if volatile is not None and volatile.type == "redis_cluster":
        redis = RedisStore(volatile)
    if persistent is not None and persistent.type == "rocks_db":
        rocksdb = RocksDbStore(persistent)
    return rocksdb, redis


def _filters(section: VolatileDatabase | PersistentDatabase | None) -> tuple[str, ...] | None:
    return None if section is None or section.type == "disabled" else section.update_filters


def _match(filters: tuple[str, ...] | None, tag: str) -> bool:
    return filters is None or any(re.search(pattern, tag) for pattern in filters)


def _is_refusal(error: BaseException) -> bool:
    """Tell a server that refuses us, which no waiting changes, from one that does not answer."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"AuthenticationError", "NoPermissionError"}:
        return True
    return any(text in str(error) for text in ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER"))


def _close(take_back: Any, databases: _Databases) -> None:
    take_back()
    databases.close()
