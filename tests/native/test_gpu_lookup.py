"""Lookups in a GPU cache from Python: keys of NumPy or of the GPU, rows that stay there."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hpsbench.errors import HpsError
from hpsbench.hps.configuration import Configuration, ModelConfiguration, write_configuration
from hpsbench.hps.gpu_lookup import GpuLookup
from hpsbench.hps.lookup import open_model
from hpsbench.hps.native import dlpack, gpu
from hpsbench.hps.sparse_model import write_sparse_model

pytestmark = pytest.mark.gpu

DIMS = (16, 128, 13)
DEFAULTS = (0.5, -1.0, 2.0)
NUM_KEYS = 2000
CACHES = {
    "all": {"gpucacheper": 1.0},
    "a tenth": {"gpucacheper": 0.1, "hit_rate_threshold": 1.1},
    "uvm": {"embedding_cache_type": "uvm", "gpucacheper": 0.5},
}


class Tables:
    """Three tables of a model, cached on GPU 0."""

    def __init__(self, folder, **options) -> None:
        rng = np.random.default_rng(0)
        self.rows = [rng.standard_normal((NUM_KEYS, d), dtype=np.float32) * 100 for d in DIMS]
        folders = [folder / f"{i}" for i in range(3)]
        for path, rows in zip(folders, self.rows, strict=True):
            write_sparse_model(path, np.arange(NUM_KEYS) * 3, [rows])
        model = ModelConfiguration(
            model="m",
            sparse_files=tuple(str(path) for path in folders),
            embedding_vecsize_per_table=DIMS,
            maxnum_catfeature_query_per_table_per_sample=(1, 1, 1),
            default_value_for_each_table=DEFAULTS,
            deployed_device_list=(0,),
            max_batch_size=1000,
            **options,
        )
        path = write_configuration(folder / "ps.json", Configuration(models=(model,)))
        self.opened = open_model(path, "m", gpus=True)
        self.lookup = GpuLookup(self.opened)

    def expected(self, keys, counts, dtype=np.float32):
        parts, first = [], 0
        for rows, default, count in zip(self.rows, DEFAULTS, counts, strict=True):
            asked = np.asarray(keys[first : first + count])
            there = (asked % 3 == 0) & (asked >= 0) & (asked < 3 * NUM_KEYS)
            found = rows[np.where(there, asked // 3, 0)]
            parts.append(np.where(there[:, None], found, np.float32(default)).reshape(-1))
            first += count
        return np.concatenate(parts).astype(dtype)


@pytest.fixture(params=CACHES.values(), ids=list(CACHES))
def tables(request, tmp_path):
    return Tables(tmp_path, **request.param)


def some_keys(seed: int, counts) -> np.ndarray:
    return np.random.default_rng(seed).integers(-10, 3 * NUM_KEYS + 10, sum(counts))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("key_type", [np.int32, np.int64])
def test_rows_of_all_tables_flat(tables, key_type, dtype):
    for seed, counts in enumerate([(1, 1, 1), (26, 0, 832), (0, 0, 0), (3000, 5, 1), (7, 1500, 9)]):
        keys = some_keys(seed, counts)
        rows = tables.lookup.lookup_flat(keys.astype(key_type), counts, dtype=dtype)
        assert rows.dtype == dtype
        np.testing.assert_array_equal(rows.numpy(), tables.expected(keys, counts, dtype))


def test_views_are_of_the_same_memory(tables):
    counts = (40, 26, 0)
    keys = some_keys(9, counts)
    rows = tables.lookup.lookup_flat(keys, counts)
    expected = tables.expected(keys, counts)
    second = rows[40 * 16 :].reshape(13, 2, -1)
    assert (second.shape, second.pointer - rows.pointer) == ((13, 2, 128), 40 * 16 * 4)
    del rows
    gc.collect()
    np.testing.assert_array_equal(second.numpy().reshape(-1), expected[40 * 16 :])
    np.testing.assert_array_equal(second[3:5].numpy(), second.numpy()[3:5])


def test_memory_is_reused_only_after_its_last_holder(tables):
    counts = (500, 0, 0)
    keys = some_keys(1, counts)
    rows = tables.lookup.lookup_flat(keys, counts)
    held = rows.reshape(500, 16)
    address = rows.pointer
    # What another library holds is a capsule, and no object of ours.
    capsules = [held.__dlpack__(), held.__dlpack__(stream=-1)]
    del rows, held
    gc.collect()
    for seed in range(3):
        other = tables.lookup.lookup_flat(some_keys(seed + 5, counts), counts)
        assert other.pointer != address
        del other
    capsules.clear()
    gc.collect()
    got = [tables.lookup.lookup_flat(keys, counts) for _ in range(2)]
    assert address in [rows.pointer for rows in got]


def test_rows_outlive_the_tables(tmp_path):
    tables = Tables(tmp_path, gpucacheper=1.0)
    keys, counts = some_keys(2, (9, 9, 9)), (9, 9, 9)
    rows = tables.lookup.lookup_flat(keys, counts)
    expected = tables.expected(keys, counts)
    del tables
    gc.collect()
    np.testing.assert_array_equal(rows.numpy(), expected)


def test_rows_are_written_to_memory_of_the_caller(tables):
    counts = (5, 6, 7)
    keys = some_keys(3, counts)
    target = tables.lookup.lookup_flat(np.zeros(18, np.int64), counts)
    assert tables.lookup.lookup_flat(keys, counts, out=target) is target
    np.testing.assert_array_equal(target.numpy(), tables.expected(keys, counts))
    with pytest.raises(HpsError, match=r"out is float32\[\d+\]"):
        tables.lookup.lookup_flat(keys, counts, out=target, dtype=np.float16)
    with pytest.raises(HpsError, match=r"out is float32\[13\]"):
        tables.lookup.lookup_flat(keys, counts, out=target[:13])


def test_work_goes_on_the_stream_that_is_named(tables):
    counts = (300, 300, 300)
    for seed in range(5):
        keys = some_keys(seed, counts)
        rows = tables.lookup.lookup_flat(keys, counts, stream=0)  # CUDA's default stream
        np.testing.assert_array_equal(rows.numpy(), tables.expected(keys, counts))


def test_dlpack_describes_the_memory(tables):
    rows = tables.lookup.lookup_flat(some_keys(3, (4, 0, 0)), (4, 0, 0), dtype=np.float16)
    with dlpack.on_gpu(rows.reshape(2, 2, 16)[1:], 0, 1, what="rows") as memory:
        assert memory.pointer == rows.pointer + 2 * 16 * 2
        assert (memory.shape, memory.dtype) == ((1, 2, 16), np.float16)
    assert rows.__dlpack_device__() == (2, 0)
    with pytest.raises(BufferError, match="handed over where they are"):
        rows.__dlpack__(dl_device=(1, 0))


def test_lookups_from_many_threads_hold_on_to_their_rows(tables):
    def ask(seed):
        rng = np.random.default_rng(seed)
        kept = []
        for step in range(30):
            counts = tuple(int(n) for n in rng.integers(0, 400, 3))
            keys = some_keys(100 * seed + step, counts)
            rows = tables.lookup.lookup_flat(keys, counts, dtype=(np.float32, np.float16)[step % 2])
            kept.append((rows, tables.expected(keys, counts, rows.dtype)))
            if len(kept) > 4:
                old, expected = kept.pop(int(rng.integers(0, 4)))
                np.testing.assert_array_equal(old.numpy(), expected)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))


@pytest.mark.parametrize(
    ("keys", "counts", "message"),
    [
        (np.zeros(3), (1, 1, 1), "keys are float64"),
        (np.zeros(3, np.int64), (1, 1), "NUMKEYS is int64"),
        (np.zeros(3, np.int64), (1, 1, 2), "disagree"),
    ],
)
def test_what_does_not_fit_is_refused(tables, keys, counts, message):
    with pytest.raises(HpsError, match=message):
        tables.lookup.lookup_flat(keys, counts)


def test_rows_are_no_keys(tables):
    rows = tables.lookup.lookup_flat(np.zeros(1, np.int64), (1, 0, 0))
    with pytest.raises(HpsError, match="keys are float32"):
        tables.lookup.lookup_flat(rows, (16, 0, 0))
    with pytest.raises(HpsError, match="dtype is float64"):
        tables.lookup.lookup_flat(np.zeros(1, np.int64), (1, 0, 0), dtype=np.float64)


def test_a_gpu_without_a_cache_is_named(tmp_path):
    tables = Tables(tmp_path).opened
    with pytest.raises(HpsError, match=r"no cache on GPU 7; it has on \[0\]"):
        GpuLookup(tables, 7)
    assert gpu.why_unavailable() is None
