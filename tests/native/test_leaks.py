"""Tables that come and go leave nothing behind, and neither do those that could not be loaded."""

import gc
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hpsbench import hps
from hpsbench.errors import BenchError
from hpsbench.hps import session
from hpsbench.hps.configuration import (
    Configuration,
    ModelConfiguration,
    VolatileDatabase,
    write_configuration,
)
from hpsbench.hps.sparse_model import write_sparse_model

TABLES, ROWS, DIM = 3, 20_000, 8
CYCLES = 50


@pytest.fixture(autouse=True)
def _nothing_initialised():
    session.reset()
    yield
    session.reset()


def write(folder: Path, *, bounded: bool = False) -> Path:
    """Write two models, whose row `i` holds `i`, and the number of its table in front."""
    models = []
    for name in ("one", "two"):
        for t in range(TABLES):
            rows = np.full((ROWS, DIM), np.arange(ROWS)[:, None], np.float32)
            rows[:, 0] = t
            write_sparse_model(folder / f"{name}{t}", np.arange(ROWS)[::-1] * 3, [rows[::-1]])
        models.append(
            ModelConfiguration(
                model=name,
                sparse_files=tuple(str(folder / f"{name}{t}") for t in range(TABLES)),
                embedding_vecsize_per_table=(DIM,) * TABLES,
                maxnum_catfeature_query_per_table_per_sample=(1,) * TABLES,
                default_value_for_each_table=(-1.0,) * TABLES,
                deployed_device_list=(0,),
                refresh_interval=0.01 if bounded else 0.0,
            )
        )
    volatile_db = VolatileDatabase(type="hash_map", initial_cache_rate=0.5, num_partitions=4)
    return write_configuration(
        folder / "ps.json",
        Configuration(models=tuple(models), volatile_db=volatile_db if bounded else None),
    )


def check(model: str, *, seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-5, 3 * ROWS + 5, size * TABLES)
    answer = session._model(model).lookup_flat(keys, [size] * TABLES).reshape(TABLES, size, DIM)
    rows = np.where((keys % 3 == 0) & (keys >= 0) & (keys < 3 * ROWS), keys // 3, -1)
    expected = np.repeat(rows.astype(np.float32)[:, None], DIM, axis=1).reshape(TABLES, size, DIM)
    expected[:, :, 0] = np.where(expected[:, :, 1] < 0, -1, np.arange(TABLES)[:, None])
    np.testing.assert_array_equal(answer, expected)


def held() -> dict[str, int]:
    """Return what this process holds: open files, mapped table files, and threads."""
    gc.collect()
    with open("/proc/self/maps") as maps:
        mapped = sum("emb_vector" in line or line.rstrip().endswith("/key") for line in maps)
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "mapped": mapped,
        "threads": len(os.listdir("/proc/self/task")),
    }


def anonymous_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def settled(wanted: dict[str, int]) -> dict[str, int]:
    """Return what is held when that is no more than `wanted`, or after two seconds."""
    deadline = time.monotonic() + 2
    while (found := held()) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("bounded", [False, True], ids=["mapped", "with a volatile tier"])
def test_loading_and_letting_go_leaves_nothing(tmp_path, bounded):
    path = write(tmp_path, bounded=bounded)

    def cycle(seed: int) -> None:
        hps.Init(ps_config_file=path)
        for model in ("one", "two"):
            check(model, seed=seed, size=3000)
        session.reset()

    for seed in range(5):  # what is taken once, and kept
        cycle(seed)
    before, memory = held(), anonymous_kib()
    for seed in range(CYCLES):
        cycle(seed)
    assert settled(before) == before
    # One model's index is 1.3 MB: 50 cycles would leave 127 MB of them.
    assert anonymous_kib() - memory < 20_000


def test_what_fails_leaves_nothing_and_the_next_may_succeed(tmp_path):
    path = write(tmp_path)
    good = json.loads(path.read_text())
    keys = tmp_path / "two2" / "key"
    whole = keys.read_bytes()

    def fail(change) -> None:
        broken = json.loads(json.dumps(good))
        change(broken["models"][1])
        path.write_text(json.dumps(broken))
        with pytest.raises(BenchError):
            hps.Init(ps_config_file=path)

    def cut(_: dict) -> None:
        keys.write_bytes(whole[:-8])

    wrong = [
        lambda model: model.update(embedding_vecsize_per_table=[DIM, DIM, DIM + 1]),
        lambda model: model.update(sparse_files=[*model["sparse_files"][:2], "/nowhere"]),
        lambda model: model.update(hit_rate_threshold="high"),
        cut,
    ]
    fail(wrong[0])
    before = held()
    for i in range(40):
        fail(wrong[i % len(wrong)])
        keys.write_bytes(whole)
        assert hps.statistics() == {}
    assert settled(before) == before
    path.write_text(json.dumps(good))
    assert hps.Init(ps_config_file=path) == "OK"
    check("two", seed=0, size=5000)


def test_many_threads_ask_several_models_in_batches_of_any_size(tmp_path):
    hps.Init(ps_config_file=write(tmp_path, bounded=True))
    sizes = (1, 7, 100, 1023, 4096)

    def ask(thread: int) -> None:
        for i in range(40):
            check(("one", "two")[(thread + i) % 2], seed=100 * thread + i, size=sizes[i % 5])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))


def test_models_come_and_go_while_threads_ask(tmp_path):
    """A lookup is right, or says that its model is gone; it never crashes and never hangs."""
    path = write(tmp_path, bounded=True)
    hps.Init(ps_config_file=path)
    over, answered, gone = threading.Event(), [], []

    def ask(thread: int) -> None:
        seed = thread
        while not over.is_set():
            try:
                check("two", seed=seed, size=500)
                answered.append(thread)
            except BenchError as error:
                gone.append(error.problem)
            seed += 8

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        time.sleep(0.02)
        session.reset()
        time.sleep(0.005)
        hps.Init(ps_config_file=path)
    over.set()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert answered
    assert set(gone) == {"the configuration has no model 'two'"}
