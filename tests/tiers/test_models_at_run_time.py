"""Models that come and go while the process lives, and caches that are refreshed meanwhile."""

import json
import logging
import subprocess
import sys
import threading

import numpy as np
import pytest

from hpsbench import hps
from hpsbench.errors import HpsError
from hpsbench.hps import session
from hpsbench.hps.lookup import ModelTables
from hpsbench.hps.tiers.refresher import start_refreshing
from tests.tiers.redis_server import redis_server
from tests.tiers.served_tables import table_keys, table_rows, write_tables

pytestmark = pytest.mark.usefixtures("nothing_initialised")


def test_a_model_is_added_and_removed_and_added_again(tmp_path):
    hps.Init(ps_config_file=write_tables(tmp_path, "first"))
    second = write_tables(tmp_path, "second")
    for _ in range(2):
        assert hps.add_models(second) == "OK"
        assert hps.add_models(second) == "OK"
        assert set(hps.statistics()) == {"first", "second"}
        row = np.full((1, 4), 5, np.float32)
        hps.update("second", "table0", table_keys(0)[:1], row)
        np.testing.assert_array_equal(session._model("second").lookup(0, table_keys(0)[:1]), row)
        np.testing.assert_array_equal(
            session._model("first").lookup(0, table_keys(0)[:1]), table_rows(0)[:1]
        )
        hps.remove_model("second")
        assert set(hps.statistics()) == {"first"}
    assert hps.Init(ps_config_file=tmp_path / "first.json") == "OK"


def test_what_cannot_be_added_or_removed_is_named(tmp_path):
    hps.Init(ps_config_file=write_tables(tmp_path, "first"))
    same = write_tables(tmp_path, "second", model_options={"max_batch_size": 65})
    same.write_text(same.read_text().replace('"second"', '"first"'))
    with pytest.raises(HpsError, match="names the model first, which is there already"):
        hps.add_models(same)
    document = json.loads(write_tables(tmp_path, "third").read_text())
    document["supportlonglong"] = False
    (tmp_path / "third.json").write_text(json.dumps(document))
    with pytest.raises(HpsError, match="has another supportlonglong"):
        hps.add_models(tmp_path / "third.json")
    for call in (
        lambda: hps.remove_model("fourth"),
        lambda: hps.refresh("fourth"),
        lambda: hps.update("fourth", 0, [1], np.zeros((1, 4), np.float32)),
    ):
        with pytest.raises(HpsError, match="has no model 'fourth'\n  hint: it has first"):
            call()


def test_before_init_there_is_no_model_to_update():
    with pytest.raises(HpsError, match=r"hint: call hps\.Init first"):
        hps.update("m", 0, [1], np.zeros((1, 4), np.float32))
    hps.refresh()


def test_add_models_before_init_initialises(tmp_path):
    assert hps.add_models(write_tables(tmp_path, "first")) == "OK"
    assert set(hps.statistics()) == {"first"}


def test_a_failing_file_adds_nothing(tmp_path):
    hps.Init(ps_config_file=write_tables(tmp_path, "first"))
    path = write_tables(
        tmp_path, "second",
        persistent_db={"type": "rocks_db", "path": str(tmp_path / "no"), "read_only": True},
    )  # fmt: skip
    with pytest.raises(HpsError, match="there is no database"):
        hps.add_models(path)
    assert set(hps.statistics()) == {"first"}


def test_an_operation_finds_an_added_model_and_not_a_removed_one(tmp_path):
    import tensorflow as tf

    hps.Init(ps_config_file=write_tables(tmp_path, "first"))
    hps.add_models(write_tables(tmp_path, "second"))
    layer = hps.LookupLayer("second", 0, 4, tf.float32)
    keys = tf.constant(table_keys(0)[:3])
    np.testing.assert_array_equal(layer(keys), table_rows(0)[:3])
    row = np.full((1, 4), 5, np.float32)
    hps.update("second", 0, table_keys(0)[:1], row)
    np.testing.assert_array_equal(layer(keys)[:1], row)
    hps.remove_model("second")
    with pytest.raises(tf.errors.FailedPreconditionError, match="has no model 'second'"):
        layer(keys)


def test_an_operation_asks_redis(tmp_path):
    """The callback takes the interpreter's lock in TensorFlow's threads, too."""
    import tensorflow as tf

    with redis_server(tmp_path) as server:
        section = {"type": "redis_cluster", "address": server.address}
        hps.Init(ps_config_file=write_tables(tmp_path, "m", volatile_db=section))
        layer = hps.LookupLayer("m", 2, 16, tf.float32)
        lookup = tf.function(lambda ids: layer(ids))
        order = np.random.default_rng(0).integers(0, 300, 20_000)
        np.testing.assert_array_equal(
            lookup(tf.constant(table_keys(2)[order])), table_rows(2)[order]
        )
        facts = hps.statistics()["m"]["table2"]["tiers"]["redis"]
        assert facts["hits"] == facts["keys"] > 0
        session.reset()


def test_a_process_ends_while_threads_ask_its_tiers(tmp_path):
    program = (
        "import sys, threading, time, numpy as np\n"
        "from hpsbench import hps\n"
        "from hpsbench.hps import session\n"
        "hps.Init(ps_config_file=sys.argv[1])\n"
        "tables = session._model('m')\n"
        "keys = np.arange(-2000, 2000)\n"
        "def ask():\n"
        "    while True: tables.lookup(0, keys)\n"
        "for _ in range(4): threading.Thread(target=ask, daemon=True).start()\n"
        "time.sleep(0.5)\n"
        "print('end')\n"
    )
    with redis_server(tmp_path) as server:
        path = write_tables(
            tmp_path, "m",
            volatile_db={"type": "redis_cluster", "address": server.address, "num_partitions": 2},
            persistent_db={"type": "rocks_db", "path": str(tmp_path / "db")},
            model_options={"refresh_interval": 0.05},
        )  # fmt: skip
        for _ in range(3):
            result = subprocess.run(
                [sys.executable, "-c", program, path],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "")


def test_caches_are_refreshed_in_the_background(tmp_path, monkeypatch, wait_until):
    shares = []
    monkeypatch.setattr(ModelTables, "refresh", lambda tables, share: shares.append(share))
    options = {
        "refresh_delay": 0.01, "refresh_interval": 0.02,
        "cache_refresh_percentage_per_iteration": 0.25,
    }  # fmt: skip
    hps.Init(ps_config_file=write_tables(tmp_path, "m", model_options=options))
    wait_until(lambda: len(shares) >= 3)
    assert set(shares) == {0.25}
    session.reset()
    assert not [t for t in threading.enumerate() if t.name == "hps refresh m"]


def test_a_refresh_that_fails_is_logged_and_comes_again(caplog, wait_until):
    class Owner:
        calls = 0

    def refresh(owner):
        owner.calls += 1
        raise OSError("broken")

    owner = Owner()
    stop = start_refreshing(owner, "m", refresh, delay_s=0.0, interval_s=0.01)
    wait_until(lambda: owner.calls >= 2)
    stop()
    assert "model m: its caches could not be refreshed" in caplog.text
    assert all(r.levelno == logging.ERROR for r in caplog.records)


def test_a_delay_alone_refreshes_once(wait_until):
    class Owner:
        calls = 0

    def refresh(owner):
        owner.calls += 1

    owner = Owner()
    start_refreshing(owner, "once", refresh, delay_s=0.01, interval_s=0.0)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "hps refresh once"])
    assert owner.calls == 1
