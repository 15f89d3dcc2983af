"""A Redis that dies, hangs, comes back empty or outdated: right rows all the time, and it heals."""

import contextlib
import logging
import threading
import time

import numpy as np
import pytest

from hpsbench.hps.tiers import circuit, redis_client, redis_store
from tests.tiers.redis_server import RedisServer, redis_server
from tests.tiers.served_tables import DIMS, NUM_KEYS, open_tables, table_keys, table_rows

#: What a lookup may take beyond the time-out, on a machine that does other things too.
SLACK_S = 1.0


def section(address, **options):
    return {"type": "redis_cluster", "address": address, "num_partitions": 4, **options}


@contextlib.contextmanager
def served(folder):
    """Yield a server, and a model whose tables it holds."""
    with (
        redis_server(folder) as server,
        contextlib.closing(open_tables(folder, volatile_db=section(server.address))) as tables,
    ):
        yield server, tables


def redis_facts(tables, table=0):
    return tables.statistics()[f"table{table}"]["tiers"]["redis"]


class Asking:
    """Threads that look rows up all the time, and note what was wrong and how long it took."""

    def __init__(self, tables, num_threads=4):
        self._tables = tables
        self._stopping = threading.Event()
        self.wrong: list[str] = []
        self.longest_s = 0.0
        self.lookups = 0
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(num_threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed):
        rng = np.random.default_rng(seed)
        keys = [table_keys(t) for t in range(len(DIMS))]
        rows = [table_rows(t) for t in range(len(DIMS))]
        while not self._stopping.is_set():
            table = int(rng.integers(len(DIMS)))
            order = rng.integers(0, NUM_KEYS, 50)
            started = time.monotonic()
            try:
                answer = self._tables.lookup(table, keys[table][order])
                if not np.array_equal(answer, rows[table][order]):
                    self.wrong.append(f"table {table}: wrong rows")
            except Exception as error:
                self.wrong.append(repr(error))
            self.longest_s = max(self.longest_s, time.monotonic() - started)
            self.lookups += 1


def test_redis_is_killed_under_load_and_heals(tmp_path, caplog, wait_until):
    with served(tmp_path) as (server, m):
        with Asking(m) as asking:
            for _ in range(2):
                wait_until(lambda: redis_facts(m)["available"])
                hits = redis_facts(m)["hits"]
                wait_until(lambda: asking.lookups > 50)
                server.kill()
                wait_until(lambda: not redis_facts(m)["available"])
                before = asking.lookups
                wait_until(lambda before=before: asking.lookups > before + 50)
                server.start()
                # It is empty, and what is asked for comes back.
                wait_until(lambda: redis_facts(m)["available"])
                wait_until(lambda hits=hits: redis_facts(m)["hits"] > hits + 200)
                wait_until(lambda: server.fields() >= NUM_KEYS)
        assert asking.wrong == []
        assert asking.longest_s < redis_client.TIMEOUT_S + SLACK_S
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        # A warning in 10 s at most, however many lookups failed.
        assert 1 <= len(warnings) <= 4
        assert all(f"Redis at {server.address} fails" in text for text in warnings)


def test_a_redis_that_hangs_costs_its_time_out_once(tmp_path, wait_until):
    with served(tmp_path) as (server, m):
        with Asking(m) as asking:
            wait_until(lambda: asking.lookups > 50)
            server.pause()
            try:
                wait_until(lambda: not redis_facts(m)["available"])
                before = asking.lookups
                wait_until(lambda: asking.lookups > before + 200)
            finally:
                server.resume()
            wait_until(lambda: redis_facts(m)["available"])
        assert asking.wrong == []
        # 50 keys of one table are one request: one time-out.
        assert asking.longest_s < redis_client.TIMEOUT_S + SLACK_S


def test_redis_may_come_after_us(tmp_path, caplog, wait_until):
    server = RedisServer(tmp_path, "--save", "")
    with contextlib.closing(open_tables(tmp_path, volatile_db=section(server.address))) as tables:
        np.testing.assert_array_equal(tables.lookup(0, table_keys(0)), table_rows(0))
        assert not redis_facts(tables)["available"]
        server.start()
        try:
            wait_until(lambda: redis_facts(tables)["available"])
            tables.lookup(0, table_keys(0))
            wait_until(lambda: server.fields() == NUM_KEYS)
        finally:
            server.kill()


def test_updates_made_while_redis_is_gone_are_delivered(tmp_path, wait_until):
    keys = table_keys(0)[:3]
    with served(tmp_path) as (server, m):
        server.kill()
        for value in (1, 2):
            m.update(0, keys, np.full((3, 4), value, np.float32))
            np.testing.assert_array_equal(m.lookup(0, keys), np.full((3, 4), value))
        assert redis_facts(m)["owed_rows"] == 3
        server.start()
        wait_until(lambda: redis_facts(m)["available"])
        assert redis_facts(m)["owed_rows"] == 0
        hits = redis_facts(m)["hits"]
        np.testing.assert_array_equal(m.lookup(0, keys), np.full((3, 4), 2))
        assert redis_facts(m)["hits"] == hits + 3


@pytest.mark.parametrize("asked_while_gone", [True, False], ids=["noticed", "unnoticed"])
def test_a_redis_with_an_older_state_is_brought_up_to_date(tmp_path, wait_until, asked_while_gone):
    keys = table_keys(0)[:3]
    server = RedisServer(tmp_path)  # which loads its last snapshot when it starts
    server.start()
    try:
        with contextlib.closing(open_tables(tmp_path, volatile_db=section(server.address))) as m:
            server.command("save")
            m.update(0, keys, np.full((3, 4), 9, np.float32))
            server.kill()
            if asked_while_gone:
                m.lookup(0, keys)
            server.start()
            assert server.fields() == NUM_KEYS * len(DIMS)
            for _ in range(20):
                np.testing.assert_array_equal(m.lookup(0, keys), np.full((3, 4), 9))
                time.sleep(0.02)
            wait_until(lambda: redis_facts(m)["available"])
            hits = redis_facts(m)["hits"]
            np.testing.assert_array_equal(m.lookup(0, keys), np.full((3, 4), 9))
            assert redis_facts(m)["hits"] == hits + 3
    finally:
        server.kill()


def test_a_redis_that_fails_again_while_it_is_brought_up_to_date_still_gets_all(
    tmp_path, wait_until, monkeypatch
):
    keys = table_keys(0)[:3]
    server = RedisServer(tmp_path)
    server.start()
    write, writes = redis_store.RedisStore._write, []

    def fails_once(self, *arguments, **options):
        writes.append(arguments)
        if len(writes) == 1:
            raise OSError("gone again")
        write(self, *arguments, **options)

    try:
        with contextlib.closing(open_tables(tmp_path, volatile_db=section(server.address))) as m:
            server.command("save")
            m.update(0, keys, np.full((3, 4), 9, np.float32))
            server.kill()
            m.lookup(0, keys)
            monkeypatch.setattr(redis_store.RedisStore, "_write", fails_once)
            server.start()
            wait_until(lambda: redis_facts(m)["available"])
            assert len(writes) > 1
            hits = redis_facts(m)["hits"]
            np.testing.assert_array_equal(m.lookup(0, keys), np.full((3, 4), 9))
            assert redis_facts(m)["hits"] == hits + 3
    finally:
        server.kill()


def test_a_circuit_backs_off_and_warns_rarely(monkeypatch, caplog, wait_until):
    monkeypatch.setattr(circuit, "FIRST_BACKOFF_S", 0.01)
    probes = []

    def probe():
        probes.append(time.monotonic())
        if len(probes) < 5:
            raise OSError("not yet")

    settled = []
    tested = circuit.Circuit("It", probe, lambda: settled.append(1), threading.RLock())
    for _ in range(100):
        tested.fail(OSError("gone"))
    assert tested.open
    wait_until(lambda: not tested.open)
    waits = np.diff(probes)
    assert all(wait >= 0.01 * 2 ** (i + 1) for i, wait in enumerate(waits))
    assert settled == [1]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "It fails, and lookups go past it until it recovers (1 failures since the last warning): "
        "gone"
    ]
    tested.close()
    tested.fail(OSError("after the end"))
    assert not tested.open
