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


def exercise_tiers(folder: Path, rng: np.random.Generator) -> None:
    """Look up, update, refresh and count a bounded table, all at the same time."""
    keys = np.arange(3000) * 5
    model = NativeModel([spec(folder, "tiered", keys, 7)], num_threads=3)
    bounds = tiers.VolatileOptions(num_partitions=3, overflow_margin=300)
    tiers.set_tiers(model, 0, tiers.TierOptions(volatile=bounds, cache_missed=True))
    tiers.preload(model, 0, keys[:1000])

    def look_up() -> None:
        asked = rng.choice(keys, 2000) + 0
        for _ in range(20):
            out = np.empty((len(asked), 7), np.float32)
            model.lookup_flat(asked, np.array([len(asked)], np.uint64), out)

    def change() -> None:
        for i in range(20):
            tiers.update(model, 0, keys[i : i + 500], np.full((500, 7), i, np.float32))
            tiers.refresh(model, 0)
            tiers.tier_facts(model, 0, tiers.Tier.VOLATILE)

    run_together(look_up, look_up, look_up, change, change)


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
    exercise_tiers(folder, rng)
    try:
        NativeModel([*tables, spec(folder, "again", [9, 8], 16, group=0)])
        sys.exit("fused tables that overlap were accepted")
    except HpsError:
        print("done")


main(Path(sys.argv[1]), Path(sys.argv[2]))
