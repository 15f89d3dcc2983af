"""The native core, asked through its C interface: any keys, any table, any number of threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsbench.errors import HpsError
from hpsbench.hps.native.bindings import NativeModel, TableSpec

INT64 = np.iinfo(np.int64)
INT32 = np.iinfo(np.int32)
keys64 = st.integers(INT64.min, INT64.max) | st.sampled_from([0, -1, 1, INT64.min, INT64.max])


def rows_for(keys, dim, seed=0):
    return np.random.default_rng(seed).random((len(keys), dim), dtype=np.float32)


def spec(folder: Path, keys, rows, *, name="table", **options) -> TableSpec:
    """Write the table's files and describe them."""
    key_path, rows_path = folder / f"{name}.key", folder / f"{name}.rows"
    np.asarray(keys, np.int64).tofile(key_path)
    np.asarray(rows, np.float32).tofile(rows_path)
    return TableSpec(
        name=name, key_path=key_path, rows_path=rows_path,
        num_keys=len(keys), embedding_dim=np.shape(rows)[1], **options,
    )  # fmt: skip


def ask(model: NativeModel, keys, *, table=0, dtype=np.int64):
    """Look `keys` up in one table."""
    keys = np.asarray(keys, dtype)
    counts = np.zeros(len(model.embedding_dims), np.uint64)
    counts[table] = len(keys)
    out = np.full((len(keys), model.embedding_dims[table]), np.nan, np.float32)
    model.lookup_flat(keys, counts, out)
    return out


def expected(keys, rows, asked, default):
    """Answer as a dict does, in which the last of duplicate keys wins."""
    last = {int(key): i for i, key in enumerate(keys)}
    missing = np.full(np.shape(rows)[1], default, np.float32)
    return np.array(
        [rows[last[int(key)]] if int(key) in last else missing for key in asked], np.float32
    ).reshape(len(asked), np.shape(rows)[1])


@settings(deadline=None)
@given(
    keys=st.lists(keys64, min_size=1, max_size=60),
    others=st.lists(keys64, max_size=40),
    dim=st.sampled_from([1, 3, 8, 16, 24, 32, 64, 128, 130]),
    default=st.floats(-4, 4, width=32),
)
def test_any_keys_are_answered_as_by_a_dict(tmp_path_factory, keys, others, dim, default):
    rows = rows_for(keys, dim)
    folder = tmp_path_factory.mktemp("table")
    model = NativeModel([spec(folder, keys, rows, default_value=default)])
    asked = others + keys[::-1]
    np.testing.assert_array_equal(ask(model, asked), expected(keys, rows, asked, default))


@pytest.mark.parametrize(
    "first", [0, -3, 10**12, INT64.max - 99, INT64.min, INT64.max - 50], ids=str
)
def test_an_ascending_range_of_keys_needs_no_index(tmp_path, first):
    around = (np.uint64((first - 2) % 2**64) + np.arange(104, dtype=np.uint64)).astype(np.int64)
    keys = around[2:102]
    rows = rows_for(keys, 16)
    model = NativeModel([spec(tmp_path, keys, rows, default_value=7.0)])
    assert (model.facts(0).index_kind, model.facts(0).index_bytes) == ("direct", 0)
    np.testing.assert_array_equal(ask(model, around), expected(keys, rows, around, 7.0))


@pytest.mark.parametrize("keys", [[1, 0], [0, 2], [0, 1, 3], [5, 5], [0, 1, 2, 2]], ids=str)
def test_other_keys_are_hashed(tmp_path, keys):
    model = NativeModel([spec(tmp_path, keys, rows_for(keys, 4))])
    assert model.facts(0).index_kind == "hash"


def test_int32_keys_are_the_same_keys(tmp_path):
    keys = [INT32.min, -1, 0, 7, INT32.max]
    rows = rows_for(keys, 8)
    for number, order in enumerate([keys, keys[::-1]]):
        model = NativeModel([spec(tmp_path, order, rows, name=f"t{number}", default_value=-1.0)])
        asked = [*keys, 8, -2]
        np.testing.assert_array_equal(
            ask(model, asked, dtype=np.int32), expected(order, rows, asked, -1.0)
        )


def unmixed(h: int) -> int:
    """Return the key whose hash is `h`: splitmix64's finalizer, backwards."""
    mask = 2**64 - 1

    def unshift(value: int, bits: int) -> int:
        result = value
        for _ in range(64 // bits + 1):
            result = value ^ (result >> bits)
        return result

    h = unshift(h, 31)
    h = h * pow(0x94D049BB133111EB, -1, 2**64) & mask
    h = unshift(h, 27)
    h = h * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
    h = unshift(h, 30)
    return h - 2**64 if h >= 2**63 else h


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(
    "where",
    [0, (1 << 63) - 2000, (1 << 64) - 2000],
    ids=["first bucket", "last one of the first thread", "last bucket"],
)
def test_keys_of_one_bucket_spill_into_the_next_and_around_the_end(tmp_path, where, num_threads):
    colliding = [unmixed(where + i) for i in range(1000)]
    # Enough others that the table is filled by several threads.
    keys = np.concatenate([colliding, np.arange(120_000) * 1_000_003, colliding[:5]])
    rows = rows_for(keys, 2)
    model = NativeModel([spec(tmp_path, keys, rows, default_value=9.0)], num_threads=num_threads)
    asked = [*colliding, *(unmixed(where + i) for i in range(1000, 1100))]
    np.testing.assert_array_equal(ask(model, asked), expected(keys, rows, asked, 9.0))


def test_an_index_of_many_threads_equals_that_of_one(tmp_path):
    rng = np.random.default_rng(3)
    keys = rng.integers(INT64.min, INT64.max, 200_000)
    keys[100_000:110_000] = keys[:10_000]
    rows = rows_for(keys, 2)
    table = spec(tmp_path, keys, rows)
    one, many = NativeModel([table], num_threads=1), NativeModel([table], num_threads=5)
    np.testing.assert_array_equal(ask(one, keys), ask(many, keys))
    np.testing.assert_array_equal(ask(many, keys[:10_000]), rows[100_000:110_000])
    np.testing.assert_array_equal(ask(many, keys[10_000:100_000]), rows[10_000:100_000])


def test_the_index_takes_at_most_24_bytes_per_key(tmp_path):
    keys = np.arange(100_000) * 3
    model = NativeModel([spec(tmp_path, keys, np.zeros((len(keys), 1)))])
    assert 0 < model.facts(0).index_bytes <= 24 * len(keys)


def test_a_batch_of_many_parts_is_answered_alike(tmp_path):
    keys = np.random.default_rng(0).permutation(5000) * 7
    rows = rows_for(keys, 128)
    model = NativeModel([spec(tmp_path, keys, rows)])
    order = np.random.default_rng(1).integers(0, len(keys), 50_000)
    np.testing.assert_array_equal(ask(model, keys[order]), rows[order])


def test_an_unaligned_output_is_answered_alike(tmp_path):
    keys = np.arange(5000)
    rows = rows_for(keys, 128)
    model = NativeModel([spec(tmp_path, keys, rows)])
    order = np.random.default_rng(1).integers(0, len(keys), 50_000)
    out = np.empty(order.size * 128 + 1, np.float32)[1:]
    model.lookup_flat(order, np.array([order.size], np.uint64), out)
    np.testing.assert_array_equal(out.reshape(-1, 128), rows[order])


def test_several_tables_are_answered_in_one_flat_batch(tmp_path):
    dims, sizes = (4, 16, 128), (3000, 0, 2000)
    tables = [rows_for(range(500), dim, seed=dim) for dim in dims]
    model = NativeModel([
        spec(tmp_path, np.arange(500), rows, name=f"t{i}") for i, rows in enumerate(tables)
    ])  # fmt: skip
    rng = np.random.default_rng(0)
    asked = [rng.integers(0, 500, size) for size in sizes]
    out = np.empty(int(np.dot(dims, sizes)), np.float32)
    model.lookup_flat(np.concatenate(asked), np.array(sizes, np.uint64), out)
    answers = [rows[keys].ravel() for rows, keys in zip(tables, asked, strict=True)]
    np.testing.assert_array_equal(out, np.concatenate(answers))


def test_many_threads_get_the_right_rows_at_once(tmp_path):
    keys = np.random.default_rng(0).permutation(20_000) * 11
    rows = rows_for(keys, 32)
    model = NativeModel([spec(tmp_path, keys, rows)], num_threads=4)

    def lookups(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        orders = (rng.integers(0, len(keys), 3000) for _ in range(20))
        return all(np.array_equal(ask(model, keys[order]), rows[order]) for order in orders)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lookups, range(8)))
    assert model.facts(0).keys == 8 * 20 * 3000


def test_batches_keys_and_missing_keys_are_counted(tmp_path):
    model = NativeModel([spec(tmp_path, np.arange(10), np.zeros((10, 4)))], num_threads=4)
    ask(model, np.arange(5000) % 20)
    ask(model, [1])
    facts = model.facts(0)
    assert (facts.lookups, facts.keys, facts.missing_keys) == (2, 5001, 2500)


@pytest.mark.parametrize("contiguous", [True, False], ids=["ranges", "scattered"])
def test_fused_tables_answer_each_with_its_own_keys_and_default(tmp_path, contiguous):
    step = 1 if contiguous else 3
    keys = [np.arange(i * 1000, (i + 1) * 1000) * step for i in range(3)]
    rows = [rows_for(keys[i], 8, seed=i) for i in range(3)]
    model = NativeModel([
        spec(tmp_path, keys[i], rows[i], name=f"t{i}", default_value=i + 0.5, fusion_group=8)
        for i in range(3)
    ])  # fmt: skip
    everything = np.concatenate(keys)
    for i in range(3):
        np.testing.assert_array_equal(
            ask(model, everything, table=i), expected(keys[i], rows[i], everything, i + 0.5)
        )


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ([0, 1, 2], [2, 3, 4], 2),
        ([2, 3, 4], [0, 1, 2], 2),
        ([0, 1, 2, 3, 4], [2, 3], 2),
        ([7, 3, -1], [8, -1], -1),
        ([0, 1, 2], [9, 1], 1),
        ([INT64.min, 5], [4, INT64.min], INT64.min),
    ],
)
def test_fused_tables_that_share_a_key_are_refused(tmp_path, one, other, shared):
    tables = [
        spec(tmp_path, keys, rows_for(keys, 4), name=name, fusion_group=4)
        for name, keys in [("apart", [100, 101]), ("left", one), ("right", other)]
    ]
    with pytest.raises(HpsError) as caught:
        NativeModel(tables)
    assert str(caught.value) == (
        f"tables left and right are to be fused, and both hold the key {shared}\n"
        "  hint: give fused tables keys of their own, or set fuse_embedding_table to false"
    )


def test_a_duplicate_inside_one_fused_table_is_no_overlap(tmp_path):
    rows = rows_for(range(3), 4)
    tables = [
        spec(tmp_path, [1, 5, 1], rows, name="left", fusion_group=4),
        spec(tmp_path, [2, 9], rows[:2], name="right", fusion_group=4),
    ]
    np.testing.assert_array_equal(ask(NativeModel(tables), [1]), rows[2:])


def test_a_file_that_is_gone_or_cut_is_named(tmp_path):
    table = spec(tmp_path, [1, 2], rows_for([1, 2], 4))
    table.rows_path.write_bytes(b"123")
    with pytest.raises(HpsError, match=r"table\.rows has 3 bytes, expected 32"):
        NativeModel([table])
    table.rows_path.unlink()
    with pytest.raises(HpsError, match=r"table\.rows: No such file"):
        NativeModel([table])


def test_more_rows_than_an_index_can_number_are_refused(tmp_path):
    table = spec(tmp_path, [1], rows_for([1], 4))
    table = TableSpec(**{**vars(table), "num_keys": 2**32 - 1})
    with pytest.raises(HpsError, match=r"table table has 4294967295 rows .* 1 to 4294967294 rows"):
        NativeModel([table])
