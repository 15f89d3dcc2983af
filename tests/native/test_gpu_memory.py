"""A GPU without enough memory: `Init` says what is missing, takes nothing, and works later."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsbench.errors import HpsError
from hpsbench.hps import session
from hpsbench.hps.configuration import (
    Configuration,
    ModelConfiguration,
    write_configuration,
)
from hpsbench.hps.gpu_lookup import GpuLookup
from hpsbench.hps.lookup import open_model
from hpsbench.hps.native import gpu
from tests.native.held_gpu_memory import held_gpu_memory

pytestmark = pytest.mark.gpu

GIB = 2**30
#: What is left free: more than a context takes, and less than the large table's 4 GiB.
LEFT = 3 * GIB
LARGE, DIM = 1 << 20, 1024
SMALL = 1000
#: Of the large table, a few rows are not zeros.
MARKED = np.array([0, 1, 77_777, LARGE // 2, LARGE - 1])
#: What may come and go beside us: libraries load kernels when these are first used.
SLACK = 256 << 20

CACHES: dict[str, dict[str, Any]] = {
    "whole": {"gpucacheper": 1.0},
    "a part": {"gpucacheper": 0.95, "hit_rate_threshold": 1.1, "max_batch_size": 1024},
    "static": {"embedding_cache_type": "static"},
    "uvm": {"embedding_cache_type": "uvm", "gpucacheper": 0.95},
}


@pytest.fixture(autouse=True)
def _nothing_initialised():
    session.reset()
    yield
    session.reset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables: one of 4 GiB, of which the file holds next to nothing, and a small one."""
    folder = tmp_path_factory.mktemp("tables")
    for name, num_keys in (("small", SMALL), ("large", LARGE)):
        (folder / name).mkdir()
        np.arange(num_keys).tofile(folder / name / "key")
        rows = folder / name / "emb_vector"
        rows.touch()
        os.truncate(rows, num_keys * DIM * 4)
    mapped = np.memmap(folder / "large" / "emb_vector", np.float32, "r+", shape=(LARGE, DIM))
    mapped[MARKED] = expected_rows(MARKED)
    mapped.flush()
    return folder


def expected_rows(keys: np.ndarray) -> np.ndarray:
    """Return float32[n, DIM]: of marked keys the key + 1, repeated; of the others zeros."""
    values = np.where(np.isin(keys, MARKED), keys + 1, 0).astype(np.float32)
    return np.repeat(values[:, None], DIM, axis=1)


def write(folder: Path, *models: ModelConfiguration) -> Path:
    return write_configuration(folder / "ps.json", Configuration(models=models))


def model(folder: Path, name: str, *tables: str, **options: Any) -> ModelConfiguration:
    return ModelConfiguration(
        model=name,
        sparse_files=tuple(str(folder / table) for table in tables),
        embedding_table_names=tables,
        embedding_vecsize_per_table=(DIM,) * len(tables),
        maxnum_catfeature_query_per_table_per_sample=(1,) * len(tables),
        default_value_for_each_table=(0.0,) * len(tables),
        deployed_device_list=(0,),
        **options,
    )


def check_rows(name: str) -> None:
    """Ask the large table of an initialised model, through its cache on the GPU."""
    keys = np.concatenate([MARKED, [5, LARGE - 2]])
    tables = session._model(name)
    rows = GpuLookup(tables).lookup_flat(keys, [0] * (len(tables.table_names) - 1) + [len(keys)])
    np.testing.assert_array_equal(rows.numpy().reshape(-1, DIM), expected_rows(keys))


def warm_up(folder: Path, tmp_path: Path) -> None:
    """Have this process own what any use of the GPU takes: a context, and the kernels."""
    small = write(tmp_path, model(folder, "warm", "small", gpucacheper=1.0))
    tables = open_model(small, "warm", gpus=True)
    GpuLookup(tables).lookup_flat(np.arange(3), [3]).numpy()


@pytest.mark.parametrize("options", CACHES.values(), ids=list(CACHES))
def test_init_says_which_table_needs_what_and_works_when_there_is_memory(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    warm_up(folder, tmp_path)
    path = write(tmp_path, model(folder, "recommender", "small", "large", **options))
    with held_gpu_memory(LEFT) as held:
        before = held.free_bytes()
        for _ in range(2):
            with pytest.raises(HpsError) as caught:
                session.Init(ps_config_file=str(path))
            told = re.fullmatch(
                r"model recommender needs about (\d\.\d\d) GiB of GPU 0 for its "
                rf"{options.get('embedding_cache_type', 'dynamic')} cache.*: table large: "
                r"CUDA failed to take (\d+) bytes of GPU memory: out of memory; "
                r"GPU 0 had (\d+) of \d+ bytes free before",
                caught.value.problem,
            )
            assert told, caught.value.problem
            assert 3.75 < float(told[1]) < 4.3
            assert int(told[2]) > LEFT
            assert abs(int(told[3]) - before) < SLACK
            assert "lower gpucacheper" in caught.value.hint
            assert "gpucache to false" in caught.value.hint
            # Although `caught` still holds the traceback.
            assert abs(held.free_bytes() - before) < SLACK
            assert session.statistics() == {}
        held.release()
    session.Init(ps_config_file=str(path))
    facts = session.statistics()["recommender"]["large"]["gpu_caches"][0]
    assert facts["device_bytes"] > 0.94 * LARGE * DIM * 4
    check_rows("recommender")


def test_memory_for_lookups_is_told_apart_from_that_of_tables(folder: Path, tmp_path: Path) -> None:
    warm_up(folder, tmp_path)
    # Two entries of 8 bytes for each key of a batch take 4 GiB.
    path = write(
        tmp_path, model(folder, "wide", "small", gpucacheper=0.5, max_batch_size=(1 << 28) - 1)
    )
    with held_gpu_memory(LEFT), pytest.raises(gpu.OutOfMemory) as caught:
        session.Init(ps_config_file=str(path))
    assert ": lookups of 268435455 keys: CUDA failed to take " in caught.value.problem
    assert "max_batch_size where lookups need it" in caught.value.hint


def test_a_model_that_fits_is_let_go_with_one_that_does_not(folder: Path, tmp_path: Path) -> None:
    warm_up(folder, tmp_path)
    first = model(folder, "first", "small", gpucacheper=1.0)
    second = model(folder, "second", "large", gpucacheper=1.0)
    path = write(tmp_path, first, second)
    with held_gpu_memory(LEFT) as held:
        before = held.free_bytes()
        with pytest.raises(HpsError, match=r"^model second needs about 4\.00 GiB of GPU 0"):
            session.Init(ps_config_file=str(path))
        assert abs(held.free_bytes() - before) < SLACK
        # What fits is served, and another file can be the session's.
        path = write(tmp_path, first)
        session.Init(ps_config_file=str(path))
        with pytest.raises(gpu.OutOfMemory):
            session.add_models(write_second(tmp_path, second))
        assert list(session.statistics()) == ["first"]
        held.release()
    session.add_models(write_second(tmp_path, second))
    check_rows("second")


def write_second(folder: Path, second: ModelConfiguration) -> Path:
    return write_configuration(folder / "second.json", Configuration(models=(second,)))
