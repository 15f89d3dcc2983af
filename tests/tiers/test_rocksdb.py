"""RocksDB as a tier: written once, found again with its updates, clear when it cannot be used."""

import contextlib
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpsbench.errors import HpsError
from hpsbench.hps import lookup
from hpsbench.hps.lookup import open_model
from hpsbench.hps.native.gpu import OutOfMemory
from hpsbench.hps.sparse_model import ROWS_FILE
from hpsbench.hps.tiers import rocksdb_store
from tests.tiers.served_tables import (
    DIMS,
    NUM_KEYS,
    open_tables,
    table_keys,
    table_rows,
    write_tables,
)

BOUNDED = {"type": "hash_map", "overflow_margin": 10}


def section(folder, **options):
    return {"type": "rocks_db", "path": str(folder / "db"), **options}


def rocksdb_facts(tables, table=0):
    return tables.statistics()[f"table{table}"]["tiers"]["rocksdb"]


def test_a_restart_finds_the_rows(tmp_path):
    for written in (NUM_KEYS * len(DIMS), 0, 0):
        with contextlib.closing(open_tables(tmp_path, persistent_db=section(tmp_path))) as tables:
            assert rocksdb_facts(tables)["inserted"] == written
            for table in range(len(DIMS)):
                keys = table_keys(table)
                np.testing.assert_array_equal(tables.lookup(table, keys), table_rows(table))
                assert rocksdb_facts(tables, table)["hits"] == NUM_KEYS


@pytest.mark.parametrize(
    "volatile", [None, {"type": "hash_map"}, BOUNDED], ids=["none", "mapped", "bounded"]
)
def test_a_restart_serves_what_was_updated(tmp_path, volatile):
    sections = {"persistent_db": section(tmp_path)}
    if volatile is not None:
        sections["volatile_db"] = volatile
    keys = np.concatenate([table_keys(1)[:20], [10**12, -(10**12)]])
    rows = np.random.default_rng(0).random((22, DIMS[1]), np.float32)
    with contextlib.closing(open_tables(tmp_path, **sections)) as tables:
        tables.update("table1", keys, rows)
    with contextlib.closing(open_tables(tmp_path, **sections)) as tables:
        assert rocksdb_facts(tables)["inserted"] == 0
        np.testing.assert_array_equal(tables.lookup(1, keys), rows)
        np.testing.assert_array_equal(tables.lookup(1, table_keys(1)[20:]), table_rows(1)[20:])


def test_an_update_survives_a_killed_process(tmp_path):
    path = write_tables(tmp_path, persistent_db=section(tmp_path))
    program = (
        "import os, signal, sys, numpy as np\n"
        "from hpsbench.hps.lookup import open_model\n"
        "tables = open_model(sys.argv[1], 'm')\n"
        "tables.update(0, [5], np.full((1, 4), 3, np.float32))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == -9
    with contextlib.closing(open_tables(tmp_path, persistent_db=section(tmp_path))) as tables:
        assert rocksdb_facts(tables)["inserted"] == 0
        np.testing.assert_array_equal(tables.lookup(0, [5]), [[3] * 4])


def test_a_process_killed_while_writing_is_made_up_for(tmp_path):
    path = write_tables(tmp_path, persistent_db=section(tmp_path))
    program = (
        "import os, signal, sys\n"
        "from hpsbench.hps.lookup import open_model\n"
        "from hpsbench.hps.tiers import rocksdb_store\n"
        "rocksdb_store._WRITE_ROWS = 100\n"
        "seen, to_bytes = [], rocksdb_store._keys\n"
        "def die(keys):\n"
        "    seen.append(1)\n"
        "    if len(seen) > 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return to_bytes(keys)\n"
        "rocksdb_store._keys = die\n"
        "open_model(sys.argv[1], 'm')\n"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == -9
    with pytest.raises(HpsError, match=r"table hps_et.m.table1 .* is not there, or not whole"):
        open_tables(tmp_path, persistent_db=section(tmp_path, read_only=True))
    with contextlib.closing(open_tables(tmp_path, persistent_db=section(tmp_path))) as tables:
        # The first table was complete.
        assert rocksdb_facts(tables)["inserted"] == NUM_KEYS * (len(DIMS) - 1)
        np.testing.assert_array_equal(tables.lookup(1, table_keys(1)), table_rows(1))


def test_another_content_is_written_anew_without_the_updates_of_the_old(tmp_path):
    open_tables(tmp_path, persistent_db=section(tmp_path)).close()
    with contextlib.closing(open_tables(tmp_path, persistent_db=section(tmp_path))) as tables:
        tables.update(0, table_keys(0)[:1], np.full((1, 4), 5, np.float32))
    rows = np.fromfile(tmp_path / "table0" / "emb_vector", np.float32)
    rows[-1] += 1
    rows.tofile(tmp_path / "table0" / "emb_vector")
    with pytest.raises(HpsError, match="is of another sparse model, and read_only is true"):
        open_tables(tmp_path, persistent_db=section(tmp_path, read_only=True))
    with contextlib.closing(open_tables(tmp_path, persistent_db=section(tmp_path))) as tables:
        assert rocksdb_facts(tables)["inserted"] == NUM_KEYS
        np.testing.assert_array_equal(tables.lookup(0, table_keys(0)), rows.reshape(-1, 4))


def test_files_that_were_only_touched_are_the_same_content(tmp_path):
    open_tables(tmp_path, persistent_db=section(tmp_path)).close()
    (tmp_path / "table0" / "emb_vector").touch()
    with contextlib.closing(open_tables(tmp_path, persistent_db=section(tmp_path))) as tables:
        assert rocksdb_facts(tables)["inserted"] == 0


def test_read_only_needs_a_database(tmp_path):
    with pytest.raises(HpsError, match=r"there is no database at .*db, and read_only is true"):
        open_tables(tmp_path, persistent_db=section(tmp_path, read_only=True))


def test_a_read_only_database_is_asked_and_not_written(tmp_path):
    open_tables(tmp_path, persistent_db=section(tmp_path)).close()
    read_only = section(tmp_path, read_only=True)
    with contextlib.closing(open_tables(tmp_path, persistent_db=read_only)) as tables:
        tables.update(0, table_keys(0)[:1], np.full((1, 4), 5, np.float32))
        np.testing.assert_array_equal(tables.lookup(0, table_keys(0)[:1]), [[5] * 4])
        np.testing.assert_array_equal(tables.lookup(0, table_keys(0)[1:]), table_rows(0)[1:])
        assert rocksdb_facts(tables)["hits"] == NUM_KEYS - 1
    with contextlib.closing(open_tables(tmp_path, persistent_db=read_only)) as tables:
        np.testing.assert_array_equal(tables.lookup(0, table_keys(0)), table_rows(0))


def test_a_database_open_in_another_process_is_an_error_that_says_so(tmp_path):
    path = write_tables(tmp_path, persistent_db=section(tmp_path))
    program = (
        "import sys\n"
        "from hpsbench.hps.lookup import open_model\n"
        "tables = open_model(sys.argv[1], 'm')\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        try:
            assert other.stdout.readline() == b"open\n"
            with pytest.raises(HpsError, match="db is open in another process") as caught:
                open_tables(tmp_path, persistent_db=section(tmp_path))
            assert "read_only" in caught.value.hint
            read_only = section(tmp_path, read_only=True)
            with contextlib.closing(open_tables(tmp_path, persistent_db=read_only)) as tables:
                np.testing.assert_array_equal(tables.lookup(0, table_keys(0)), table_rows(0))
        finally:
            other.stdin.close()
            other.wait()


def test_models_of_a_process_share_a_database(tmp_path):
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            tables = open_tables(tmp_path, persistent_db=section(tmp_path))
            stack.callback(tables.close)
            np.testing.assert_array_equal(tables.lookup(2, table_keys(2)), table_rows(2))
    assert rocksdb_store._Database._opened == {}


def test_a_folder_that_is_no_database_is_an_error(tmp_path):
    (tmp_path / "db").write_text("a file")
    with pytest.raises(HpsError, match="db cannot be opened") as caught:
        open_tables(tmp_path, persistent_db=section(tmp_path))
    assert caught.tb is not None  # it holds the tables, and yet they are let go
    rows = tmp_path / "table0" / ROWS_FILE
    # Mapped by NumPy alone, until the traceback goes.
    assert Path("/proc/self/maps").read_text().count(str(rows)) == 1


def test_a_damaged_file_is_gone_past_and_healed(tmp_path, caplog, wait_until):
    open_tables(tmp_path, persistent_db=section(tmp_path)).close()
    with contextlib.closing(open_tables(tmp_path, persistent_db=section(tmp_path))) as tables:
        files = sorted((tmp_path / "db").glob("*.sst"))
        sound = [file.read_bytes() for file in files]
        for file, content in zip(files, sound, strict=True):
            with file.open("r+b") as damaged:  # in place: it is open
                damaged.write(bytes(len(content) // 2))
        for _ in range(20):
            for table in range(len(DIMS)):
                keys = table_keys(table)
                np.testing.assert_array_equal(tables.lookup(table, keys), table_rows(table))
        assert rocksdb_facts(tables)["failures"] > 0
        for file, content in zip(files, sound, strict=True):
            with file.open("r+b") as healed:
                healed.write(content)

        def answers():
            tables.lookup(0, table_keys(0))
            return rocksdb_facts(tables)["hits"] >= NUM_KEYS

        wait_until(answers)
    assert sum(r.levelno == logging.WARNING for r in caplog.records) == 1


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    with pytest.raises(HpsError, match="rocks_db needs the package rocksdict") as caught:
        open_tables(tmp_path, persistent_db=section(tmp_path))
    assert "pip install" in caught.value.hint


#: Holds on to the lock of a database, unless another process has it.
_LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_tables_that_a_gpu_has_no_room_for_let_their_database_go(tmp_path, monkeypatch):
    def no_room(*arguments):
        raise OutOfMemory("no room", hint="lower gpucacheper")

    path = write_tables(tmp_path, persistent_db=section(tmp_path))
    monkeypatch.setattr(lookup, "attach_caches", no_room)
    with pytest.raises(OutOfMemory) as caught:
        open_model(path, "m", gpus=True)
    assert caught.tb is not None  # it holds the tables
    subprocess.run([sys.executable, "-c", _LOCK, str(tmp_path / "db" / "LOCK")], check=True)
