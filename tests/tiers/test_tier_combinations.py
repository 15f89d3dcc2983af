"""Every combination of tiers answers as NumPy does, before and after updates."""

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiers.redis_server import redis_server
from tests.tiers.served_tables import DIMS, NUM_KEYS, Truth, open_tables, table_keys

BOUNDS = {
    "type": "hash_map", "num_partitions": 3, "overflow_margin": 20, "initial_cache_rate": 0.1,
    "overflow_policy": "evict_oldest", "cache_missed_embeddings": True,
}  # fmt: skip
SMALL_PIECES = {"max_batch_size": 50}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def address(server):
    server.command("flushall")  # Redis remembers what an earlier test has updated
    return server.address


def redis(address, **options):
    return {
        "type": "redis_cluster", "address": address, "num_partitions": 5, **SMALL_PIECES, **options
    }  # fmt: skip


def sections(name, address, folder):
    """Return the sections of a combination: its tiers, joined by +."""
    tiers = set(name.split("+"))
    found = {}
    if "rocksdb" in tiers:
        found["persistent_db"] = {"type": "rocks_db", "path": str(folder / "db"), **SMALL_PIECES}
    if "redis" in tiers:
        found["volatile_db"] = redis(address, initial_cache_rate=0.5)
        if "volatile" in tiers:
            found["volatile_db"]["near_cache"] = BOUNDS
    elif "volatile" in tiers:
        found["volatile_db"] = BOUNDS
    elif "mapped" in tiers:
        found["volatile_db"] = {"type": "parallel_hash_map"}
    return found


COMBINATIONS = (
    "none", "mapped", "volatile", "redis", "rocksdb", "mapped+rocksdb", "volatile+redis",
    "volatile+rocksdb", "redis+rocksdb", "volatile+redis+rocksdb",
)  # fmt: skip

some_keys = st.lists(
    st.sampled_from([*table_keys(0).tolist(), *table_keys(1).tolist()])
    | st.integers(-2100, 300)
    | st.integers(-(2**31), 2**31 - 1),
    max_size=120,
)


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_any_combination_answers_as_numpy(tmp_path, address, name, fused):
    tables = open_tables(tmp_path, fuse_embedding_table=fused, **sections(name, address, tmp_path))
    truth = Truth()
    with contextlib.closing(tables):

        @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(data=st.data())
        def hold(data):
            table = data.draw(st.integers(0, len(DIMS) - 1))
            if data.draw(st.booleans()):
                keys = np.array(data.draw(some_keys), np.int64)
                rows = np.random.default_rng(len(keys)).random((len(keys), DIMS[table]), np.float32)
                tables.update(table, keys, rows)
                truth.update(table, keys, rows)
            keys = np.array(data.draw(some_keys), data.draw(st.sampled_from([np.int32, np.int64])))
            np.testing.assert_array_equal(tables.lookup(table, keys), truth.answer(table, keys))

        hold()
        for table in range(len(DIMS)):
            everything = np.concatenate([np.arange(-2100, 4500), table_keys(table)])
            for _ in range(2):
                np.testing.assert_array_equal(
                    tables.lookup(table, everything), truth.answer(table, everything)
                )
        flat = np.concatenate([table_keys(t)[: 10 * t] for t in range(len(DIMS))])
        answers = [truth.answer(t, table_keys(t)[: 10 * t]).ravel() for t in range(len(DIMS))]
        np.testing.assert_array_equal(
            tables.lookup_flat(flat, [10 * t for t in range(len(DIMS))]), np.concatenate(answers)
        )


@pytest.mark.parametrize(
    ("name", "answered"),
    [
        ("none", {"updated": 0, "mapped": 10}),
        ("volatile", {"volatile": 0, "updated": 0, "mapped": 10}),
        ("redis", {"redis": 10, "updated": 0, "mapped": 0}),
        ("rocksdb", {"updated": 0, "rocksdb": 10, "mapped": 0}),
        ("mapped+rocksdb", {"updated": 0, "mapped": 10, "rocksdb": 0}),
        ("redis+rocksdb", {"redis": 10, "updated": 0, "rocksdb": 0, "mapped": 0}),
    ],
)
def test_the_first_tier_that_has_a_row_answers(tmp_path, address, name, answered):
    chosen = sections(name, address, tmp_path)
    if "redis" in name:
        chosen["volatile_db"] = redis(address)
    if name == "volatile":
        chosen["volatile_db"] = {**BOUNDS, "initialize_after_startup": False}
    with contextlib.closing(open_tables(tmp_path, **chosen)) as tables:
        tables.lookup(0, [*table_keys(0)[:10], 1, 1])
        found = tables.statistics()["table0"]["tiers"]
        assert {tier: facts["hits"] for tier, facts in found.items()} == answered
        last = found["rocksdb" if name == "mapped+rocksdb" else "mapped"]
        # Below the first tier, a batch asks for each key once.
        assert last["misses"] == (2 if name == "none" else 1)


def test_rows_found_below_are_kept_in_the_volatile_tier(tmp_path, address):
    with contextlib.closing(open_tables(tmp_path, volatile_db=BOUNDS)) as tables:
        keys = table_keys(0)[100:110]
        for _ in range(3):
            tables.lookup(0, keys)
        facts = tables.statistics()["table0"]["tiers"]["volatile"]
        assert (facts["hits"], facts["misses"]) == (20, 10)
        assert facts["inserted"] == facts["num_rows"] == NUM_KEYS // 10 + 10


def test_a_default_is_stored_nowhere(tmp_path, address):
    chosen = sections("volatile+redis+rocksdb", address, tmp_path)
    chosen["volatile_db"] = redis(address, cache_missed_embeddings=True, near_cache=BOUNDS)
    with contextlib.closing(open_tables(tmp_path, **chosen)) as tables:
        before = tables.statistics()["table0"]["tiers"]
        absent = np.arange(-2100, 4500)
        absent = absent[~np.isin(absent, table_keys(0))]
        for _ in range(2):
            np.testing.assert_array_equal(tables.lookup(0, absent), 0.5)
        after = tables.statistics()["table0"]["tiers"]
    for tier in ("volatile", "redis", "rocksdb"):
        assert after[tier]["inserted"] == before[tier]["inserted"]
        assert after[tier]["hits"] == before[tier]["hits"]
