"""Asks a core library all it can: `exercise_core.py LIBRARY FOLDER`, run under a sanitizer."""

import sys
import threading
from pathlib import Path

import numpy as np

from hpsbench.errors import HpsError
from hpsbench.hps.native import build
from hpsbench.hps.native.bindings import NativeModel, TableSpec, clear_registry


def spec(folder: Path, name: str, keys, dim: int, group: int = -1) -> TableSpec:
    key_path, rows_path = folder / f"{name}.key", folder / f"{name}.rows"
    np.asarray(keys, np.int64).tofile(key_path)
    np.zeros((len(keys), dim), np.float32).tofile(rows_path)
    return TableSpec(
        name=name, key_path=key_path, rows_path=rows_path, num_keys=len(keys),
        embedding_dim=dim, fusion_group=group,
    )  # fmt: skip


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
    try:
        NativeModel([*tables, spec(folder, "again", [9, 8], 16, group=0)])
        sys.exit("fused tables that overlap were accepted")
    except HpsError:
        print("done")


main(Path(sys.argv[1]), Path(sys.argv[2]))
