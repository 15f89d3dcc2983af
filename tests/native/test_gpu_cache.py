"""The GPU embedding cache: whatever it holds, a lookup answers as the table on the host does."""

import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cached_tables import (
    ALWAYS_FETCH,
    INT32,
    INT64,
    SLOTS_PER_SET,
    SPECIAL,
    CachedTable,
    scattered,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsbench.errors import HpsError
from hpsbench.hps.native import gpu
from hpsbench.hps.native.bindings import NativeModel, TableSpec

pytestmark = pytest.mark.gpu

keys64 = st.integers(INT64.min, INT64.max) | st.sampled_from(SPECIAL)


KEY_KINDS = {
    "from 0": np.arange(3000),
    "from -1500": np.arange(-1500, 1500),
    "scattered": scattered(3000),
    "descending": np.arange(3000)[::-1] * 7,
}
CACHES = {
    **{f"dynamic {share}": {"share": share} for share in (0.0, 0.05, 0.2, 1.0)},
    "dynamic, not preloaded": {"share": 0.2, "preload": False},
    "static": {"cache_type": "static"},
    **{f"uvm {share}": {"cache_type": "uvm", "share": share} for share in (0.0, 0.3, 1.0)},
}


@pytest.mark.parametrize("cache", CACHES.values(), ids=list(CACHES))
@pytest.mark.parametrize("kind", KEY_KINDS.values(), ids=list(KEY_KINDS))
def test_every_cache_answers_bit_for_bit_as_the_table(tmp_path, kind, cache):
    table = CachedTable(tmp_path, kind, dim=128, **cache)
    rng = np.random.default_rng(1)
    for size in (1, 26, 832, 4000, 1, 10_000):
        asked = rng.choice(np.concatenate([kind, kind[:50], SPECIAL, [123456789, -77]]), size)
        table.check(asked)
        table.check(asked[: size // 2 + 1])
    table.check([])


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 6, 8, 13, 16, 32, 36, 64, 100, 128, 130, 256, 1024])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_rows_of_any_size(tmp_path, dim, share):
    table = CachedTable(tmp_path, scattered(600), dim=dim, share=share)
    asked = np.random.default_rng(2).choice(np.append(table.keys, 5), 1000)
    for _ in range(2):
        table.check(asked)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_int32_keys_are_the_same_keys(tmp_path, share):
    table = CachedTable(tmp_path, [INT32.min, -1, 0, 7, INT32.max], share=share)
    for _ in range(2):
        table.check([INT32.max, 8, -1, INT32.min, 0, -2, 7, 7], np.int32)


@pytest.mark.parametrize("max_keys", [1 << 20, 300_000], ids=["at once", "in parts"])
@pytest.mark.parametrize("key_type", [np.int64, np.int32])
@pytest.mark.parametrize(
    "cache", [c for n, c in CACHES.items() if n != "dynamic 0.05"],
    ids=[n for n in CACHES if n != "dynamic 0.05"],
)  # fmt: skip
def test_keys_that_come_in_pieces(tmp_path, cache, key_type, max_keys):
    """Many keys are on their way to the GPU while it looks up the first."""
    table = CachedTable(tmp_path, np.arange(50_000) * 3, dim=4, max_keys=max_keys, **cache)
    asked = np.random.default_rng(5).integers(-100, 150_100, 700_001)
    before = table.facts
    table.check(asked, key_type)
    after = table.facts
    assert (after.lookups - before.lookups, after.keys - before.keys) == (1, len(asked))
    if not after.resident and max_keys > len(asked):
        assert after.unique_keys == len(np.unique(asked))
    for _ in range(2):  # the same memory, for few keys and for many
        table.check(asked[:100], key_type)
        table.check(asked[:600_000], key_type)


@settings(deadline=None, max_examples=60)
@given(
    keys=st.lists(keys64, min_size=1, max_size=80),
    batches=st.lists(st.lists(keys64, max_size=20), max_size=4),
    share=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    preload=st.booleans(),
)
def test_any_keys_in_any_order_of_batches(tmp_path_factory, keys, batches, share, preload):
    table = CachedTable(tmp_path_factory.mktemp("table"), keys, share=share, preload=preload)
    for batch in [*batches, keys, keys[::-1], *batches]:
        table.check(batch + keys[: len(batch)])


def test_a_missing_key_never_takes_a_slot(tmp_path):
    table = CachedTable(tmp_path, np.arange(1000), share=0.5, preload=False)
    for _ in range(3):
        table.check(np.arange(-500, 0))
    assert (table.facts.inserted, table.facts.hits) == (0, 0)
    table.check(np.arange(-50, 50))
    assert table.facts.inserted == 50


def test_a_missing_key_takes_no_slot_in_the_background_either(tmp_path):
    table = CachedTable(tmp_path, np.arange(1000), share=0.5, preload=False, hit_rate_threshold=0.0)
    for _ in range(3):
        table.ask([7, -7, 8, -8])
        gpu.settle(table.model, 0)
    assert table.facts.inserted == 2
    table.check([7, -7, 8, -8])


def test_a_full_share_always_hits(tmp_path):
    table = CachedTable(tmp_path, scattered(5000), share=1.0, hit_rate_threshold=0.0)
    table.check(np.random.default_rng(0).permutation(table.keys))
    facts = table.facts
    assert facts.resident
    assert (facts.keys, facts.hits, facts.capacity) == (5000, 5000, 5000)


def test_at_the_threshold_defaults_come_now_and_rows_later(tmp_path):
    table = CachedTable(tmp_path, np.arange(1000), share=0.5, preload=False, hit_rate_threshold=0.5)
    table.check([1, 2, 3])  # no hits: below the threshold
    got = table.ask([1, 2, 3, 10, 11, 11])  # 3 of 5 unique keys
    np.testing.assert_array_equal(got[:3], table.expected([1, 2, 3]))
    np.testing.assert_array_equal(got[3:], table.expected([-1, -1, -1]))
    gpu.settle(table.model, 0)
    before = table.facts
    table.check([1, 2, 3, 10, 11, 11])
    after = table.facts
    assert after.hits - before.hits == 6
    assert (before.unique_keys, before.unique_hits, before.hits) == (8, 3, 3)


def home_of(key: int, num_sets: int) -> int:
    """Return the set of a key, as the kernels do."""
    mask = 2**64 - 1
    h = key & mask
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & mask
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB & mask
    h ^= h >> 31
    return h * num_sets >> 64


@pytest.mark.parametrize("row_type", [np.float32, np.float16])
def test_host_rows_are_read_region_by_region(tmp_path, row_type):
    keys = np.arange(700_000) * 3  # 1.8 GB, of which 1.6 GB stay on the host
    table = CachedTable(tmp_path, keys, dim=640, cache_type="uvm", share=0.1)
    rng = np.random.default_rng(0)
    for size in (2000, 10, 1999):
        asked = rng.integers(-5, 3 * len(keys) + 5, size)
        expected = table.expected(asked).astype(row_type)
        np.testing.assert_array_equal(table.ask(asked, row_type=row_type), expected)
    assert table.facts.host_bytes > 1 << 30


@pytest.mark.parametrize("seed", range(3))
def test_the_least_recently_used_row_of_a_set_is_replaced(tmp_path, seed):
    table = CachedTable(tmp_path, np.arange(400) * 31 - 900, share=0.16, preload=False)
    num_sets = table.facts.capacity // SLOTS_PER_SET
    sets = [OrderedDict() for _ in range(num_sets)]
    rng = np.random.default_rng(seed)
    hits = evicted = inserted = 0
    for _ in range(1500):
        key = int(table.keys[int(rng.zipf(1.2)) * 7 % len(table.keys)])
        slots = sets[home_of(key, num_sets)]
        if key in slots:
            hits += 1
            slots.move_to_end(key)
        else:
            if len(slots) == SLOTS_PER_SET:
                slots.popitem(last=False)
                evicted += 1
            slots[key] = None
            inserted += 1
        table.check([key, key])
    facts = table.facts
    assert (facts.unique_hits, facts.inserted, facts.evicted) == (hits, inserted, evicted)
    assert evicted > 0


def test_rows_of_one_batch_do_not_push_each_other_out(tmp_path):
    table = CachedTable(tmp_path, np.arange(2000), share=0.05, preload=False)
    table.check(np.arange(2000))
    capacity = table.facts.capacity
    assert (table.facts.evicted, table.facts.inserted) == (0, capacity)
    table.check(np.arange(2000))
    assert table.facts.hits == capacity


@pytest.mark.parametrize("threshold", [0.0, 0.5, ALWAYS_FETCH], ids=str)
@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
def test_lookups_from_many_threads(tmp_path, share, threshold):
    keys = scattered(20_000)
    table = CachedTable(tmp_path, keys, dim=32, share=share, hit_rate_threshold=threshold)

    def ask(seed):
        rng = np.random.default_rng(seed)
        for _ in range(40):
            rows = rng.integers(0, len(keys), int(rng.choice([7, 500, 9000])))
            got = table.ask(keys[rows])
            right = (got == table.rows[rows]).all(axis=1)
            default = (got == np.float32(table.default)).all(axis=1)
            allowed = right if threshold > 1 or share == 1 else right | default
            assert allowed.all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    facts = table.facts
    assert facts.lookups == 320
    assert facts.hits <= facts.keys


@pytest.mark.parametrize("cache", [{"share": 1.0}, {"share": 0.1}], ids=["all", "a tenth"])
def test_tables_that_are_asked_together(tmp_path, cache):
    specs, keys_of, rows_of = [], [], []
    rng = np.random.default_rng(4)
    for number in range(80):
        dim = (16, 128, 13)[number % 3]
        keys = np.arange(number, 300) if number % 2 else rng.permutation(400) * 17 - number
        rows = rng.random((len(keys), dim), dtype=np.float32)
        keys.tofile(tmp_path / f"{number}.key")
        rows.tofile(tmp_path / f"{number}.rows")
        specs.append(TableSpec(
            name=f"t{number}", key_path=tmp_path / f"{number}.key",
            rows_path=tmp_path / f"{number}.rows", num_keys=len(keys), embedding_dim=dim,
            default_value=number,
        ))  # fmt: skip
        keys_of.append(keys)
        rows_of.append(rows)
    model = NativeModel(specs)
    options = gpu.GpuCacheOptions(device=0, hit_rate_threshold=ALWAYS_FETCH, max_keys=64, **cache)
    gpu.attach(model, options, keys_of, range(80))
    sizes = [0, 1, 26, 333]
    tables = [int(t) for t in rng.permutation(80)] + [3, 3, 5]
    places = [rng.integers(0, len(keys_of[t]), sizes[i % 4]) for i, t in enumerate(tables)]
    for dtype in (np.int64, np.int32):
        asked = [np.append(keys_of[t][p], 10**8) for t, p in zip(tables, places, strict=True)]
        asked[1] = asked[1][:0]
        requests = [(t, a.astype(dtype)) for t, a in zip(tables, asked, strict=True)]
        got = gpu.lookup(model, 0, requests)
        for table, where, keys, rows in zip(tables, places, asked, got, strict=True):
            if len(keys):
                np.testing.assert_array_equal(rows[:-1], rows_of[table][where])
                assert (rows[-1] == table).all()
    asked_of_3 = sum(len(a) for t, a in zip(tables, asked, strict=True) if t == 3)
    assert gpu.facts(model, 0, 3).keys == 2 * asked_of_3
    assert gpu.lookup(model, 0, []) == []


def test_duplicate_keys_of_a_table(tmp_path):
    keys = [5, 1, 5, 2, 5, 1]
    for share in (0.9, 1.0):
        CachedTable(tmp_path, keys, share=share).check([5, 1, 2, 3])
    static = CachedTable(tmp_path, keys, cache_type="static")
    np.testing.assert_array_equal(static.ask([5, 1, 2]), static.rows[[0, 1, 3]])


def test_memory_that_does_not_suffice_is_explained(tmp_path):
    num_keys, dim = 100_000, 1 << 20  # 400 GB, of which the file holds nothing
    np.arange(num_keys).tofile(tmp_path / "key")
    (tmp_path / "rows").touch()
    os.truncate(tmp_path / "rows", num_keys * dim * 4)
    model = NativeModel([
        TableSpec(
            name="table", key_path=tmp_path / "key", rows_path=tmp_path / "rows",
            num_keys=num_keys, embedding_dim=dim,
        )
    ])  # fmt: skip
    for options in ({"share": 1.0}, {"share": 0.9}):
        with pytest.raises(HpsError, match=r"bytes of GPU memory: out of memory; GPU 0 had") as e:
            gpu.attach(
                model, gpu.GpuCacheOptions(device=0, **options), [np.arange(num_keys)], [0.0]
            )
        assert "lower gpucacheper" in e.value.hint
    CachedTable(tmp_path, [1, 2], share=0.5).check([2, 3])


def test_a_second_cache_on_one_gpu_is_an_error(tmp_path):
    table = CachedTable(tmp_path, [1, 2])
    with pytest.raises(HpsError, match="has a cache on GPU 0"):
        gpu.attach(table.model, gpu.GpuCacheOptions(device=0), [table.keys], [0.0])
    table.check([1, 2])


@pytest.mark.parametrize("cache", CACHES.values(), ids=list(CACHES))
@pytest.mark.parametrize("dim", [1, 6, 13, 16, 64, 128, 200])
def test_half_rows_are_rounded_to_the_nearest_even(tmp_path, cache, dim):
    table = CachedTable(tmp_path, scattered(500), dim=dim, default=0.1, **cache)
    values = np.random.default_rng(0).standard_normal(table.rows.shape).astype(np.float32)
    values *= np.float32(10.0) ** np.random.default_rng(1).integers(-9, 6, values.shape)
    # Halfway between two halves, subnormal, zero, beyond the largest.
    odd = [2049.0, 2051.0, 1 + 2**-11, 6e-8, 3e-8, 2.9e-8, -0.0, 65519.9, 65520.0, 1e30, np.inf]
    values.reshape(-1)[: len(odd)] = odd[: values.size]
    table.write(table.keys, values)
    table.update(table.keys, values)
    asked = np.append(np.random.default_rng(2).permutation(table.keys), [77, 78])
    with np.errstate(over="ignore"):
        expected = table.expected(asked).astype(np.float16)
    for _ in range(2):
        np.testing.assert_array_equal(
            table.ask(asked, row_type=np.float16).view(np.uint16), expected.view(np.uint16)
        )


def as_float8(rows: np.ndarray) -> np.ndarray:
    """Return float32 rows as E4M3 with one scale per row holds them."""
    codes = np.arange(127)
    exponent, fraction = codes >> 3, codes & 7
    values = np.where(
        exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent - 7.0)
    )
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(448)
    scale[scale == 0] = 1
    scaled = np.abs((rows / scale).astype(np.float64))
    above = np.clip(np.searchsorted(values, scaled), 1, 126)
    to_below, to_above = scaled - values[above - 1], values[above] - scaled
    tie_to_above = (to_below == to_above) & (above % 2 == 0)
    nearest = np.where((to_above < to_below) | tie_to_above, above, above - 1)
    return np.copysign(values[nearest].astype(np.float32), rows) * scale


@pytest.mark.parametrize("dim", [1, 8, 13, 16, 64, 128, 130])
@pytest.mark.parametrize("kind", ["from -1500", "scattered"])
def test_float8_rows_have_three_bits_after_the_first(tmp_path, kind, dim):
    table = CachedTable(tmp_path, KEY_KINDS[kind], dim=dim, cache_type="static", float8=True)
    rows = np.random.default_rng(0).standard_normal(table.rows.shape).astype(np.float32)
    rows *= np.float32(10.0) ** np.random.default_rng(1).integers(-6, 6, (len(rows), 1))
    rows[3] = 0
    table.check([5 * 10**9])  # the default is exact
    table.write(table.keys, rows)
    table.update(table.keys, rows)
    rows = as_float8(table.rows)
    asked = np.random.default_rng(2).permutation(table.keys)
    expected = rows[[table.last[int(key)] for key in asked]]
    np.testing.assert_array_equal(table.ask(asked), expected)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            table.ask(asked, row_type=np.float16), expected.astype(np.float16)
        )
    largest = np.abs(table.rows).max(axis=1, keepdims=True)
    assert (np.abs(rows - table.rows) <= np.abs(table.rows) / 16 + largest * 2**-18).all()
    assert table.facts.device_bytes < len(rows) * (dim + 4 + 32) + 8 * dim + 64


def test_float8_rows_are_encoded_when_loaded(tmp_path):
    table = CachedTable(tmp_path, np.arange(3000), dim=128, cache_type="static", float8=True)
    np.testing.assert_array_equal(table.ask(np.arange(3000)), as_float8(table.rows))


def test_stages_are_timed(tmp_path):
    table = CachedTable(tmp_path, np.arange(20_000), dim=128, share=0.2, preload=False)
    table.check(np.arange(4000))
    facts = table.facts
    assert facts.sampled_lookups == 1
    assert min(facts.probe_ns, facts.fetch_ns, facts.merge_ns, facts.insertion_ns) > 0
    assert facts.probe_ns + facts.fetch_ns + facts.merge_ns + facts.insertion_ns < 60e9
    for _ in range(63):
        table.check([1])
    assert table.facts.sampled_lookups == 1
    table.check([1])
    assert table.facts.sampled_lookups == 2
    resident = CachedTable(tmp_path, np.arange(20_000), dim=128, share=1.0)
    resident.check(np.arange(4000))
    assert resident.facts.probe_ns > 0
    assert resident.facts.fetch_ns == 0
