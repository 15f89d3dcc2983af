"""Updates while lookups go on: all of a row or none of it, in every tier that takes it."""

import contextlib
import threading
import time

import numpy as np
import pytest

from hpsbench.errors import HpsError
from hpsbench.hps.lookup import ModelTables
from hpsbench.hps.native.tiers import (
    TierOptions,
    VolatileOptions,
    fetch,
    preload,
    set_databases,
    update,
)
from tests.tiers.native_tables import ask, native_model
from tests.tiers.redis_server import redis_server
from tests.tiers.served_tables import DIMS, Truth, open_tables, table_keys, table_rows

BOUNDED = {
    "type": "hash_map", "num_partitions": 2, "overflow_margin": 30, "cache_missed_embeddings": True
}  # fmt: skip


@pytest.fixture(params=["none", "volatile", "redis", "rocksdb"])
def tables(request, tmp_path):
    with contextlib.ExitStack() as stack:
        sections = {}
        if request.param == "volatile":
            sections = {"volatile_db": BOUNDED}
        elif request.param == "redis":
            address = stack.enter_context(redis_server(tmp_path)).address
            sections = {
                "volatile_db": {
                    "type": "redis_cluster", "address": address, "num_partitions": 2,
                    "near_cache": BOUNDED,
                }
            }  # fmt: skip
        elif request.param == "rocksdb":
            sections = {"persistent_db": {"type": "rocks_db", "path": str(tmp_path / "db")}}
        yield stack.enter_context(contextlib.closing(open_tables(tmp_path, **sections)))


def test_a_lookup_gets_all_of_an_updates_row_or_none(tables: ModelTables):
    keys = table_keys(2)[:60]
    stopping = threading.Event()
    reached = [0.0]
    problems = []

    def look_up():
        while not stopping.is_set():
            at_least = reached[0]
            answer = tables.lookup(2, keys)
            if (answer != answer[:, :1]).any():
                problems.append(f"half a row: {answer[(answer != answer[:, :1]).any(axis=1)][0]}")
            if answer.min() < at_least:
                problems.append(f"a row of before {at_least} was answered: {answer.min()}")

    tables.update(2, keys, np.zeros((60, DIMS[2]), np.float32))
    threads = [threading.Thread(target=look_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 2
    value = 0
    while time.monotonic() < deadline or value < 20:
        value += 1
        tables.update(2, keys, np.full((60, DIMS[2]), value, np.float32))
        reached[0] = float(value)
    stopping.set()
    for thread in threads:
        thread.join()
    assert problems == []
    np.testing.assert_array_equal(tables.lookup(2, keys), np.full((60, DIMS[2]), value))


def test_the_last_row_of_a_repeated_key_counts(tables: ModelTables):
    truth = Truth()
    keys = np.array([10**9, int(table_keys(0)[0]), 10**9, int(table_keys(0)[0])])
    rows = np.arange(16, dtype=np.float32).reshape(4, 4)
    tables.update("table0", keys, rows)
    truth.update(0, keys, rows)
    np.testing.assert_array_equal(tables.lookup(0, keys), truth.answer(0, keys))


def test_caches_are_given_the_updated_rows(tmp_path):
    rows = np.zeros((20, 3), np.float32)
    for options in (None, TierOptions(volatile=VolatileOptions(overflow_margin=5))):
        native = native_model(tmp_path, range(20), rows, options)
        update(native, 0, np.array([3, 99]), np.ones((2, 3), np.float32))
        answer, found = fetch(native, 0, np.array([3, 4, 99, 100]))
        np.testing.assert_array_equal(answer[:, 0], [1, 0, 1, -7])
        assert found.tolist() == [True, True, True, False]


def test_what_was_read_before_an_update_is_not_inserted_after_it(tmp_path):
    """A lookup that is slow below the volatile tier must not bring an outdated row into it."""
    below = threading.Barrier(2, timeout=10)

    class Slow:
        def fetch(self, tier, table, keys, out, found):
            out[:], found[:] = 1.0, True
            below.wait()  # the old row is read ...
            below.wait()  # ... and the update is over
            return False

    tiny = VolatileOptions(
        num_partitions=1, overflow_margin=1, overflow_resolution_target=0.0
    )  # fmt: skip
    options = TierOptions(volatile=tiny, cache_missed=True, redis=True)
    native = native_model(tmp_path, range(20), np.zeros((20, 3)), options)
    take_back = set_databases(native, Slow())
    thread = threading.Thread(target=ask, args=(native, [7]))
    thread.start()
    below.wait()
    # The second update evicts the row of the first, so that its place is free.
    update(native, 0, np.array([7]), np.full((1, 3), 2, np.float32))
    update(native, 0, np.array([8]), np.full((1, 3), 2, np.float32))
    below.wait()
    thread.join()
    take_back()
    np.testing.assert_array_equal(ask(native, [7]), [[2, 2, 2]])


@pytest.mark.parametrize("bounded", [False, True])
def test_no_half_of_a_long_row_is_seen(tmp_path, bounded):
    keys = np.arange(4)
    options = TierOptions(volatile=VolatileOptions(num_partitions=1)) if bounded else None
    native = native_model(tmp_path, keys, np.zeros((4, 200_000)), options)
    stopping = threading.Event()

    def change(value):
        rows = np.full((4, 200_000), value, np.float32)
        while not stopping.is_set():
            update(native, 0, keys, rows)

    threads = [threading.Thread(target=change, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    answers = [ask(native, keys) for _ in range(60)]
    stopping.set()
    for thread in threads:
        thread.join()
    assert all((answer == answer[:, :1]).all() for answer in answers)
    assert len({float(answer[0, 0]) for answer in answers}) > 1


def test_rows_evicted_from_the_volatile_tier_stay_updated(tmp_path):
    options = TierOptions(volatile=VolatileOptions(num_partitions=1, overflow_margin=2))
    native = native_model(tmp_path, range(20), np.zeros((20, 3)), options)
    update(native, 0, np.arange(15), np.full((15, 3), 4, np.float32))
    preload(native, 0, np.arange(20))
    np.testing.assert_array_equal(ask(native, range(20))[:, 0], [4] * 15 + [0] * 5)


def test_refresh_reads_what_another_process_has_changed(tmp_path):
    near = {"type": "hash_map", "num_partitions": 2}
    with redis_server(tmp_path) as server, contextlib.ExitStack() as stack:
        ours, theirs = (
            stack.enter_context(contextlib.closing(open_tables(
                tmp_path,
                volatile_db={
                    "type": "redis_cluster", "address": server.address, "num_partitions": 2, **more
                },
            )))
            for more in ({"near_cache": near}, {})
        )  # fmt: skip
        key = table_keys(0)[:1]
        theirs.update(0, key, np.full((1, 4), 6, np.float32))
        np.testing.assert_array_equal(ours.lookup(0, key), table_rows(0)[:1])
        ours.refresh()
        np.testing.assert_array_equal(ours.lookup(0, key), [[6] * 4])
        facts = ours.statistics()["table0"]["tiers"]["volatile"]
        assert facts["hits"] == 2


@pytest.mark.parametrize(
    ("volatile", "persistent", "takes"),
    [
        (["^hps_.+$"], ["table1$"], "volatile"),
        (["table1$"], ["^hps_et.m.table0$"], "persistent"),
        (["x", "le0"], [".*"], "both"),
        ([], ["table1"], "none"),
    ],
)
def test_each_section_takes_the_updates_that_its_filters_let_pass(
    tmp_path, volatile, persistent, takes
):
    def opened():
        return contextlib.closing(open_tables(
            tmp_path,
            volatile_db={"type": "hash_map", "update_filters": volatile},
            persistent_db={
                "type": "rocks_db", "path": str(tmp_path / "db"), "update_filters": persistent
            },
        ))  # fmt: skip

    row, old = np.full((1, 4), 6, np.float32), table_rows(0)[:1]
    with opened() as tables:
        if takes == "none":
            with pytest.raises(HpsError, match=r"no tier takes updates of table hps_et.m.table0"):
                tables.update(0, table_keys(0)[:1], row)
            return
        tables.update(0, table_keys(0)[:1], row)
        now = row if takes in ("volatile", "both") else old
        np.testing.assert_array_equal(tables.lookup(0, table_keys(0)[:1]), now)
    with opened() as tables:
        later = row if takes in ("persistent", "both") else old
        np.testing.assert_array_equal(tables.lookup(0, table_keys(0)[:1]), later)


@pytest.mark.parametrize(
    ("table", "keys", "rows", "problem"),
    [
        (3, [1], np.zeros((1, 4), np.float32), "model m has 3 tables, and table_id is 3"),
        ("wide", [1], np.zeros((1, 4), np.float32), "model m has no table 'wide'"),
        (0, [1], np.zeros((1, 3), np.float32), r"rows float32\[1, 3\]"),
        (0, [1, 2], np.zeros((1, 4), np.float32), r"keys are int64\[2\] and rows float32\[1, 4\]"),
        (0, [1.0], np.zeros((1, 4), np.float32), r"keys are float64\[1\]"),
        (0, [1], np.zeros((1, 4)), r"rows float64\[1, 4\]"),
        (0, [[1]], np.zeros((1, 1, 4), np.float32), r"keys are int64\[1, 1\]"),
    ],
)
def test_an_unfit_update_is_named(tmp_path, table, keys, rows, problem):
    with pytest.raises(HpsError, match=problem):
        open_tables(tmp_path).update(table, keys, rows)


def test_an_empty_update_changes_nothing(tmp_path):
    tables = open_tables(tmp_path)
    tables.update(0, [], np.zeros((0, 4), np.float32))
    np.testing.assert_array_equal(tables.lookup(0, table_keys(0)), table_rows(0))
