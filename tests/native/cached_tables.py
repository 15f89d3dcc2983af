"""Tables on the host and in a cache on GPU 0, and what they must answer."""

from pathlib import Path

import numpy as np

from hpsbench.hps import gpu_caches
from hpsbench.hps.native import gpu, tiers
from hpsbench.hps.native.bindings import NativeModel, TableSpec

INT64 = np.iinfo(np.int64)
INT32 = np.iinfo(np.int32)
ALWAYS_FETCH = 1.1
SLOTS_PER_SET = 16
SPECIAL = [0, -1, 1, INT32.min, INT32.max, INT64.min, INT64.max]


class CachedTable:
    """A table of `keys` in files, cached on GPU 0."""

    def __init__(self, folder: Path, keys, dim=8, default=-2.5, **options) -> None:
        self.keys = np.asarray(keys, np.int64)
        self.rows = np.random.default_rng(dim).random((len(self.keys), dim), dtype=np.float32)
        self.default = default
        self.last = {int(key): i for i, key in enumerate(self.keys)}
        self.keys.tofile(folder / "key")
        self.rows.tofile(folder / "rows")
        self.model = NativeModel([
            TableSpec(
                name="table", key_path=folder / "key", rows_path=folder / "rows",
                num_keys=len(self.keys), embedding_dim=dim, default_value=default,
            )
        ])  # fmt: skip
        options = {"hit_rate_threshold": ALWAYS_FETCH, "max_keys": 4096, **options}
        gpu.attach(self.model, gpu.GpuCacheOptions(device=0, **options), [self.keys], [default])

    def ask(self, keys, dtype=np.int64, row_type=np.float32):
        return gpu.lookup(self.model, 0, [(0, np.asarray(keys, dtype))], row_type)[0]

    def write(self, keys, rows) -> None:
        """Change rows on the host, of keys that are there."""
        self.rows[[self.last[int(key)] for key in keys]] = rows
        self.write_any(keys, rows)

    def write_any(self, keys, rows) -> None:
        """Change rows on the host, or add them, and say nothing to the GPU."""
        tiers.update(self.model, 0, np.asarray(keys, np.int64), np.ascontiguousarray(rows))

    def update(self, keys, rows) -> None:
        gpu_caches.update(self.model, [0], 0, np.asarray(keys, np.int64), rows)

    def refresh(self, share=1.0) -> None:
        gpu_caches.refresh(self.model, [0], [0], share)

    def expected(self, keys):
        out = np.full((len(keys), self.rows.shape[1]), self.default, np.float32)
        for i, key in enumerate(keys):
            row = self.last.get(int(key))
            if row is not None:
                out[i] = self.rows[row]
        return out

    def check(self, keys, dtype=np.int64) -> None:
        np.testing.assert_array_equal(self.ask(keys, dtype), self.expected(keys))

    @property
    def facts(self) -> gpu.GpuFacts:
        return gpu.facts(self.model, 0, 0)


def scattered(count: int) -> np.ndarray:
    keys = np.random.default_rng(3).integers(INT64.min, INT64.max, count - len(SPECIAL))
    return np.concatenate([SPECIAL, keys])
