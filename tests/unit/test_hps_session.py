"""`Init`: once per process, with a reason when it fails; and tables asked without TensorFlow."""

import gc
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from hpsbench import hps
from hpsbench.errors import HpsError, TableError
from hpsbench.hps import session
from hpsbench.hps.lookup import open_model
from hpsbench.hps.native import gpu
from hpsbench.hps.sparse_model import write_sparse_model

ROWS = np.arange(40, dtype=np.float32).reshape(10, 4)


@pytest.fixture(autouse=True)
def _nothing_initialised():
    session.reset()
    yield
    session.reset()


@pytest.fixture
def ps_config_file(tmp_path):
    write_sparse_model(tmp_path / "first", np.arange(10), [ROWS])
    write_sparse_model(tmp_path / "second", np.arange(5) * 7 - 2, [ROWS[:5, :2]])
    return write(tmp_path / "ps.json", tmp_path)


def write(path, folder, **changed):
    model = {
        "model": "m",
        "sparse_files": [str(folder / "first"), str(folder / "second")],
        "embedding_table_names": ["first", "second"],
        "embedding_vecsize_per_table": [4, 2],
        "maxnum_catfeature_query_per_table_per_sample": [1, 1],
        "default_value_for_each_table": [0.5, -1],
        "deployed_device_list": [0],
        **changed,
    }
    path.write_text(json.dumps({"supportlonglong": True, "models": [model]}))
    return path


def test_init_answers_ok_and_again_for_the_same_content(ps_config_file, tmp_path):
    assert hps.Init(ps_config_file=str(ps_config_file), global_batch_size=64) == "OK"
    copy = tmp_path / "copy.json"
    copy.write_bytes(ps_config_file.read_bytes())
    assert hps.Init(ps_config_file=copy) == "OK"
    assert hps.statistics()["m"]["second"]["num_keys"] == 5


def test_another_content_is_an_error(ps_config_file, tmp_path):
    hps.Init(ps_config_file=ps_config_file)
    other = write(tmp_path / "other.json", tmp_path, max_batch_size=65)
    with pytest.raises(HpsError) as caught:
        hps.Init(ps_config_file=other)
    assert str(caught.value) == (
        f"this process is initialised from {ps_config_file}, and {other} says otherwise\n"
        "  hint: use one configuration per process; it can name several models, and "
        "hps.add_models adds those of another"
    )


def test_a_failed_init_can_be_tried_again(ps_config_file, tmp_path):
    rows = (tmp_path / "second" / "emb_vector").read_bytes()
    (tmp_path / "second" / "emb_vector").write_bytes(rows[:-4])
    with pytest.raises(TableError, match=r"second: emb_vector has 36 bytes, .* float32 are 40"):
        hps.Init(ps_config_file=ps_config_file)
    assert hps.statistics() == {}
    (tmp_path / "second" / "emb_vector").write_bytes(rows)
    assert hps.Init(ps_config_file=ps_config_file) == "OK"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "Init: ps_config_file is None"),
        ({"ps_config_file": ""}, "Init: ps_config_file is ''"),
        ({"ps_config": "ps.json"}, "Init has no argument 'ps_config'"),
        ({"ps_config_file": "/nowhere/ps.json"}, "configuration /nowhere/ps.json cannot be read"),
    ],
)
def test_wrong_arguments_are_named(arguments, problem):
    with pytest.raises(HpsError, match=problem):
        hps.Init(**arguments)


def test_threads_that_initialise_at_once_load_once(ps_config_file, monkeypatch):
    loaded = []
    load = session.ModelTables
    monkeypatch.setattr(
        session, "ModelTables", lambda *args, **options: loaded.append(1) or load(*args, **options)
    )
    threads = [
        threading.Thread(target=hps.Init, kwargs={"ps_config_file": ps_config_file})
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1


def test_keys_beyond_int32_need_supportlonglong(ps_config_file, tmp_path):
    ps_config_file.write_text(
        ps_config_file.read_text().replace('"supportlonglong": true', '"supportlonglong": false')
    )
    assert open_model(ps_config_file, "m").lookup(0, np.arange(2, dtype=np.int32)).shape == (2, 4)
    write_sparse_model(tmp_path / "first", [2**31], [ROWS[:1]])
    with pytest.raises(HpsError, match="holds the key 2147483648, which is no int32"):
        open_model(ps_config_file, "m")


def test_gpucache_without_a_gpu_is_one_line_of_information(ps_config_file, caplog, monkeypatch):
    monkeypatch.setattr(gpu, "find_gpus", tuple)
    monkeypatch.setattr(session, "_why_without_gpus", lambda: None)
    caplog.set_level("INFO")
    hps.Init(ps_config_file=str(ps_config_file))
    open_model(ps_config_file, "m")
    without = "model m: gpucache is not available here; lookups are served from host memory"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", f"{without} (no GPU)"),
        ("INFO", f"{without} (asked from Python)"),
    ]
    assert hps.statistics()["m"]["first"]["gpu_caches"] == {}


def test_tables_are_asked_without_tensorflow(ps_config_file):
    program = (
        "import sys, numpy as np\n"
        "from hpsbench.hps.lookup import open_model\n"
        "print(open_model(sys.argv[1], 'm').lookup(1, np.array([5, 6])).tolist())\n"
        "assert 'tensorflow' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, ps_config_file], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[[4.0, 5.0], [-1.0, -1.0]]"


def test_a_lookup_has_the_shape_of_its_keys(ps_config_file):
    model = open_model(ps_config_file, "m")
    assert model.embedding_dims == (4, 2)
    np.testing.assert_array_equal(model.lookup(0, [[3], [10]]), [[ROWS[3]], [[0.5] * 4]])
    np.testing.assert_array_equal(model.lookup(0, np.arange(10)[::-3]), ROWS[::-3])
    assert model.lookup(0, np.empty((2, 0, 3), np.int64)).shape == (2, 0, 3, 4)
    assert model.lookup(0, np.int64(3)).shape == (4,)
    out = np.empty((1, 4), np.float32)
    assert model.lookup(0, [2], out) is out
    np.testing.assert_array_equal(out, ROWS[2:3])


def test_a_flat_lookup_answers_table_after_table(ps_config_file):
    model = open_model(ps_config_file, "m")
    answer = model.lookup_flat(np.array([1, -2, 5]), np.array([1, 2], np.int32))
    np.testing.assert_array_equal(answer, [4, 5, 6, 7, 0, 1, 4, 5])
    np.testing.assert_array_equal(model.lookup_flat(np.array([-2]), [0, 1]), [0, 1])
    assert model.lookup_flat(np.empty(0, np.int64), [0, 0]).shape == (0,)


@pytest.mark.parametrize(
    ("ask", "problem"),
    [
        (lambda m: m.lookup(2, [1]), "model m has 2 tables, and table_id is 2"),
        (lambda m: m.lookup(-1, [1]), "model m has 2 tables, and table_id is -1"),
        (lambda m: m.lookup(0, [1.5]), "model m: keys are float64"),
        (lambda m: m.lookup(0, [1], np.empty(4, np.float32)), r"model m: out is float32\[4\]"),
        (lambda m: m.lookup(0, [1], np.empty((1, 4))), r"model m: out is float64\[1, 4\]"),
        (lambda m: m.lookup_flat([1], [1]), r"model m: NUMKEYS is int64\[1\]"),
        (lambda m: m.lookup_flat([1], [1, 1]), r"NUMKEYS \[1, 1\] and 1 keys disagree"),
        (lambda m: m.lookup_flat([1], [2, -1]), r"NUMKEYS \[2, -1\] and 1 keys disagree"),
        (lambda m: m.lookup_flat([1], [0.5, 0.5]), r"model m: NUMKEYS is float64\[2\]"),
        (lambda m: m.lookup_flat([1], np.array([2**63, 2**63 + 1], np.uint64)),
         r"NUMKEYS \[9223372036854775808, 9223372036854775809\] and 1 keys disagree"),
    ],
)  # fmt: skip
def test_an_unfit_question_is_named(ps_config_file, ask, problem):
    with pytest.raises(HpsError, match=problem):
        ask(open_model(ps_config_file, "m"))


def test_a_model_that_is_let_go_gives_its_memory_back(ps_config_file):
    def mappings():
        gc.collect()
        with open("/proc/self/maps") as maps:
            return sum("emb_vector" in line for line in maps)

    before = mappings()
    model = open_model(ps_config_file, "m")
    assert mappings() == before + 2
    del model
    assert mappings() == before


def test_tables_that_are_released_are_gone_and_say_so(ps_config_file, tmp_path):
    tables = open_model(ps_config_file, "m")
    np.testing.assert_array_equal(tables.lookup(0, [3]), ROWS[3:4])

    def maps():
        with open("/proc/self/maps") as lines:
            return sum(f"{tmp_path}/" in line and "emb_vector" in line for line in lines)

    assert maps() == 2
    tables.release()
    assert maps() == 0
    tables.release()
    for ask in (
        lambda: tables.lookup(0, [3]),
        lambda: tables.lookup_flat([3], [1, 0]),
        lambda: tables.update(0, [3], ROWS[:1]),
        lambda: tables.register("m"),
        tables.refresh,
        tables.statistics,
    ):
        with pytest.raises(HpsError, match="these tables have been released"):
            ask()
