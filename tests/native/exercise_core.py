"""Asks a core library all it can: `exercise_core.py LIBRARY FOLDER`, run under a sanitizer."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpsbench.errors import HpsError
from hpsbench.hps.native import build, tiers
from hpsbench.hps.native.bindings import NativeModel, TableSpec, clear_registry


def spec(folder: Path, name: str, keys, dim: int, group: int = -1) -> TableSpec:
    key_path, rows_path = folder / f"{name}.key", folder / f"{name}.rows"
    np.asarray(keys, np.int64).tofile(key_path)
    np.zeros((len(keys), dim), np.float32).tofile(rows_path)
    return TableSpec(
        name=name, key_path=key_path, rows_path=rows_path, num_keys=len(keys),
        embedding_dim=dim, fusion_group=group,
    )  # fmt: skip


class Databases:
    """Have every even key, and are asked by many threads."""

    def fetch(self, tier, table, keys, out, found):
        found[:] = keys % 2 == 0
        out[found] = 5
        return True

    def insert(self, tier, table, keys, rows):
        pass


def exercise_tiers(folder: Path) -> None:
    """Look up, update, preload, refresh and count tables with tiers, all at the same time."""
    tables = [
        spec(folder, name, np.arange(1001) * step, dim)
        for name, step, dim in (("a", 1, 13), ("b", 3, 16), ("c", 1, 1), ("d", 2, 128))
    ]
    model = NativeModel(tables, num_threads=3)
    policies = ("evict_random", "evict_least_used", "evict_oldest")
    for table, policy in enumerate(policies):
        bounds = tiers.VolatileOptions(
            num_partitions=3, overflow_margin=50, overflow_policy=policy, allocation_rate=1000
        )
        options = tiers.TierOptions(
            volatile=bounds, cache_missed=True, redis=table == 0, rocksdb=True
        )
        tiers.set_tiers(model, table, options)
    take_back = tiers.set_databases(model, Databases())

    def look_up() -> None:
        rng = np.random.default_rng(threading.get_ident())
        for _ in range(30):
            counts = rng.integers(0, 900, len(tables)).astype(np.uint64)
            out = np.empty(int(np.dot(counts, model.embedding_dims)), np.float32)
            model.lookup_flat(rng.integers(-5, 3100, int(counts.sum())), counts, out)
            tiers.fetch(model, int(rng.integers(4)), rng.integers(-5, 3100, 300))

    def change() -> None:
        rng = np.random.default_rng(threading.get_ident())
        for _ in range(30):
            table = int(rng.integers(4))
            keys = rng.integers(-5, 3100, 200)
            rows = np.zeros((200, model.embedding_dims[table]), np.float32)
            tiers.update(model, table, keys, rows)
            tiers.preload(model, table, keys)
            tiers.refresh(model, table)
            tiers.tier_keys(model, table, tiers.Tier.VOLATILE)
            tiers.tier_facts(model, table, tiers.Tier.UPDATED)

    run_together(look_up, look_up, look_up, change, change, take_back)


def run_together(*functions: Callable[[], None]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(library: Path, folder: Path) -> None:
    build.core_library = lambda: library
    rng = np.random.default_rng(0)
    scattered = rng.integers(-(2**63), 2**63 - 1, 100_000)
    # The sizes end in the middle of a cache line, and of a page.
    tables = [
        spec(folder, "range", np.arange(1001), 13),
        spec(folder, "scattered", scattered, 3),
        spec(folder, "one", [7], 128),
        spec(folder, "left", [1, 9, 5], 16, group=0),
        spec(folder, "right", [2, 4], 16, group=0),
    ]
    model = NativeModel(tables, num_threads=3)

    def ask(dtype: type) -> None:
        for size in (0, 1, 23, 24, 25, 700, 20_000):
            keys = [rng.integers(-5, 1100, size).astype(dtype) for _ in tables]
            keys[1] = rng.choice(scattered, size).astype(dtype)
            out = np.empty(size * sum(model.embedding_dims), np.float32)
            counts = np.full(len(tables), size, np.uint64)
            model.lookup_flat(np.concatenate(keys), counts, out)

    threads = [threading.Thread(target=ask, args=(t,)) for t in (np.int64, np.int32) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model.register("model")
    model.register("model")
    clear_registry()
    exercise_tiers(folder)
    try:
        NativeModel([*tables, spec(folder, "again", [9, 8], 16, group=0)])
        sys.exit("fused tables that overlap were accepted")
    except HpsError:
        print("done")


main(Path(sys.argv[1]), Path(sys.argv[2]))
