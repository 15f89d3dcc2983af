"""What tables will take is told before they are loaded, and is what they take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsbench import cli
from hpsbench.commands import memory_checks
from hpsbench.hps import budget
from hpsbench.hps.configuration import (
    Configuration,
    ModelConfiguration,
    VolatileDatabase,
    read_configuration,
    write_configuration,
)
from hpsbench.hps.lookup import open_model
from hpsbench.hps.native import gpu
from hpsbench.hps.native.bindings import NativeModel, TableSpec
from hpsbench.hps.sparse_model import write_sparse_model
from hpsbench.report.budget import size
from hpsbench.report.notation import DASH

KEYS = {
    "range": np.arange(-5, 1000),
    "scattered": np.random.default_rng(0).permutation(10_000) * 13,
    "duplicates": np.arange(3001) // 2 * -7,
    "one": np.array([2**62]),
    "after": np.arange(2**63 - 100, 2**63 - 1, dtype=np.int64),
    "twenty": np.arange(20)[::-1] + 10**12,
}
DIM = 4
Doctor = Callable[..., tuple[int, str, str]]


def write(
    folder: Path,
    names: list[str],
    *,
    fuse: bool = False,
    volatile_db: VolatileDatabase | None = None,
    **options: Any,
) -> Path:
    """Write tables of these keys, and their configuration."""
    for name in names:
        rows = np.zeros((len(KEYS[name]), DIM), np.float32)
        write_sparse_model(folder / name, KEYS[name], [rows])
    model = ModelConfiguration(
        model="m",
        sparse_files=tuple(str(folder / name) for name in names),
        embedding_table_names=tuple(names),
        embedding_vecsize_per_table=(DIM,) * len(names),
        maxnum_catfeature_query_per_table_per_sample=(1,) * len(names),
        default_value_for_each_table=(0.0,) * len(names),
        **{"deployed_device_list": (0,), **options},
    )
    configuration = Configuration(
        models=(model,), fuse_embedding_table=fuse, volatile_db=volatile_db
    )
    return write_configuration(folder / "ps.json", configuration)


@pytest.mark.parametrize("names", [[name] for name in KEYS] + [list(KEYS)], ids="-".join)
def test_the_index_takes_on_the_host_what_was_forecast(tmp_path: Path, names: list[str]) -> None:
    path = write(tmp_path, names)
    [model] = budget.forecast(read_configuration(path)).models
    facts = open_model(path, "m").statistics()
    for table in model.tables:
        loaded = facts[table.name]
        assert (table.index_kind, table.index_bytes) == (
            loaded["index_kind"],
            loaded["index_bytes"],
        )
        assert table.mapped_bytes == loaded["num_keys"] * DIM * 4


@pytest.mark.parametrize(
    "names", [["range", "after"], ["one", "twenty", "after"], ["after", "twenty"]], ids="-".join
)
def test_fused_tables_share_one_index_among_them(tmp_path: Path, names: list[str]) -> None:
    path = write(tmp_path, names, fuse=True)
    forecast = budget.forecast(read_configuration(path))
    facts = open_model(path, "m").statistics()
    whole = {facts[name]["index_bytes"] for name in names}
    assert {forecast.index_bytes} == whole
    assert {t.index_kind for t in forecast.models[0].tables} == {
        facts[name]["index_kind"] for name in names
    }


@pytest.mark.parametrize(
    "section",
    [
        {"initial_cache_rate": 0.5},
        {"initial_cache_rate": 0.9, "num_partitions": 3, "allocation_rate": 4096},
        {"overflow_margin": 100},
        {"initial_cache_rate": 0.01, "cache_missed_embeddings": True},
        {"initial_cache_rate": 0.5, "initialize_after_startup": False},
    ],
    ids=str,
)
def test_the_volatile_tier_takes_about_what_was_forecast(
    tmp_path: Path, section: dict[str, Any]
) -> None:
    path = write(tmp_path, ["scattered"], volatile_db=VolatileDatabase(type="hash_map", **section))
    forecast = budget.forecast(read_configuration(path)).volatile_bytes
    model = open_model(path, "m")
    model.lookup(0, KEYS["scattered"])
    [facts] = [t["tiers"]["volatile"] for t in model.statistics().values()]
    model.close()
    assert facts["num_bytes"] / 1.34 < forecast < 1.34 * facts["num_bytes"]


def test_without_bounds_there_is_no_volatile_copy(tmp_path: Path) -> None:
    for volatile_db in (None, VolatileDatabase(type="hash_map")):
        path = write(tmp_path, ["scattered"], volatile_db=volatile_db)
        assert budget.forecast(read_configuration(path)).volatile_bytes == 0


def test_a_gpu_forecast_counts_slots_rows_and_defaults() -> None:
    # A whole table of scattered keys: 5 / 3 slots of 16 bytes a key, the rows, a row of defaults.
    scattered = budget.resident_bytes(3_000, 128, 3_000, is_range=False)
    assert scattered == 3_000 * 512 + 512 + (5_000 + 2) * 16
    assert budget.resident_bytes(3_000, 128, 1_000, is_range=True) == 1_000 * 512 + 512
    rows = budget.resident_bytes(3_000, 128, 3_000, is_range=True, float8=True)
    assert rows == 3_000 * 132 + 512
    # Sets of 16 slots, each with a key, a stamp and a row; two sets at least.
    assert budget.slab_bytes(1000, 16, 0.2) == 13 * 16 * (8 + 4 + 64) + 64
    assert budget.slab_bytes(10, 16, 0.1) == 2 * 16 * (8 + 4 + 64) + 64
    assert budget.slab_bytes(10, 16, 0.0) == 64


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["range", "scattered", "twenty"])
@pytest.mark.parametrize(
    ("cache_type", "share"),
    [("dynamic", 1.0), ("dynamic", 0.33), ("dynamic", 0.0), ("static", 0.1), ("uvm", 0.5)],
)
def test_a_table_takes_on_a_gpu_what_was_forecast(
    tmp_path: Path, name: str, cache_type: str, share: float
) -> None:
    path = write(tmp_path, [name], gpucacheper=share, embedding_cache_type=cache_type)
    [model] = budget.forecast(read_configuration(path)).models
    native = NativeModel([
        TableSpec(
            name=name, key_path=tmp_path / name / "key", rows_path=tmp_path / name / "emb_vector",
            num_keys=len(KEYS[name]), embedding_dim=DIM,
        )
    ])  # fmt: skip
    options = gpu.GpuCacheOptions(device=0, cache_type=cache_type, share=share, max_keys=64)
    gpu.attach(native, options, [KEYS[name]], [0.0])
    found = gpu.facts(native, 0, 0)
    [table] = model.tables
    assert (table.gpu_bytes, table.page_locked_bytes) == (found.device_bytes, found.host_bytes)


@pytest.mark.parametrize(
    "options",
    [
        {"gpucacheper": 1.0},
        {"gpucacheper": 0.3},
        {"embedding_cache_type": "static"},
        {"embedding_cache_type": "uvm", "gpucacheper": 0.5},
    ],
    ids=["whole", "part", "static", "uvm"],
)
def test_a_cache_needs_what_the_forecast_says(tmp_path: Path, options: dict[str, Any]) -> None:
    names = ["range", "scattered"]
    path = write(tmp_path, names, **options)
    [model] = budget.forecast(read_configuration(path)).models
    needed = budget.cache_budget(model.model, [KEYS[name] for name in names])
    assert (needed.gpu_bytes, needed.page_locked_bytes) == (
        model.gpu_bytes, model.page_locked_bytes
    )  # fmt: skip
    assert needed.gpu_bytes > 0


def test_lookups_of_a_part_of_the_rows_need_memory_beside_them(tmp_path: Path) -> None:
    def lookups(**options: Any) -> tuple[int, int]:
        path = write(tmp_path, ["range"], **options)
        [model] = budget.forecast(read_configuration(path)).models
        return model.lookup_gpu_bytes, model.lookup_page_locked_bytes

    assert lookups(gpucacheper=1.0) == lookups(embedding_cache_type="static") == (0, 0)
    small, large = (lookups(gpucacheper=0.5, max_batch_size=n) for n in (1024, 1024 * 1024))
    # 24 bytes of lists and two entries of 8 bytes a key, and on the host its 8 bytes.
    assert large[0] - small[0] == 40 * 1024 * 1023
    assert large[1] - small[1] == 8 * 1024 * 1023
    twice = lookups(gpucacheper=0.5, max_batch_size=1024, num_of_worker_buffer_in_pool=2)
    assert twice[0] > small[0] + 2 * (16 << 20)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """`hpsbench doctor --config` on a machine with this much free memory, and GPUs with that."""

    def doctor_config(
        path: Path, *more: str, free: int = 64 << 30, gpus: tuple[int, ...] = ()
    ) -> tuple[int, str, str]:
        monkeypatch.setattr(memory_checks, "free_memory_bytes", lambda: free)
        monkeypatch.setattr(memory_checks, "free_gpu_memory_bytes", lambda: gpus)
        code = cli.main(["doctor", "--config", str(path), *more])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return doctor_config


def test_doctor_tells_each_table_and_that_all_fits(tmp_path: Path, run: Doctor) -> None:
    path = write(tmp_path, ["range", "scattered"], gpucacheper=0.5)
    code, out, _ = run(path, gpus=(8 << 30,))
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "model m: dynamic cache on GPU 0, gpucacheper 0.5"
    assert lines[2].split()[:4] == ["range", "1,005", "4", DASH]
    assert lines[3].split()[:4] == ["scattered", "10,000", "4", size(3334 * 64).split()[0]]
    assert lines[5].split()[:2] == ["together", "11,005"]
    assert [line.split()[:4] for line in lines[-2:]] == [
        ["ok", "host", "memory", "fits:"],
        ["ok", "GPU", "0", "memory"],
    ]
    assert max(map(len, lines[:-2])) <= 80


def test_without_a_gpu_the_host_answers(tmp_path: Path, run: Doctor) -> None:
    code, out, _ = run(write(tmp_path, ["range"]))
    assert code == 0
    assert "with a GPU; there is none, so the host answers" in out


def test_too_large_a_cache_is_told_with_the_share_that_fits(tmp_path: Path, run: Doctor) -> None:
    path = write(tmp_path, ["scattered"], gpucacheper=0.9)
    planned = budget.forecast(read_configuration(path))
    free = planned.with_share(0.42).gpu_bytes()[0]
    code, out, _ = run(path, gpus=(free,))
    assert code == 1
    assert "does not fit" in out
    assert out.rstrip().endswith("; set gpucacheper to 0.42 at most")
    code, _, _ = run(write(tmp_path, ["scattered"], gpucacheper=0.42), gpus=(free,))
    assert code == 0


def test_a_static_cache_that_does_not_fit_needs_another_type(tmp_path: Path, run: Doctor) -> None:
    path = write(tmp_path, ["scattered"], embedding_cache_type="static")
    code, out, _ = run(path, gpus=(100_000,))
    assert code == 1
    assert out.rstrip().endswith("or make static caches dynamic ones")


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path, run: Doctor) -> None:
    path = write(tmp_path, ["range"], deployed_device_list=(0, 3))
    code, out, _ = run(path, gpus=(8 << 30, 8 << 30))
    assert code == 1
    assert "on a GPU that is not there: this machine has 2; name others" in out


def test_host_memory_must_hold_the_index_and_should_hold_the_rows(
    tmp_path: Path, run: Doctor
) -> None:
    path = write(tmp_path, ["scattered"], gpucache=False)
    index, rows = 3334 * 64, 10_000 * DIM * 4
    assert run(path, free=index - 1)[0] == 1
    code, out, _ = run(path, free=index + rows - 1)
    assert (code, "not with all rows in the page cache" in out) == (0, True)
    code, out, _ = run(path, free=index + rows)
    assert (code, "ok       host memory  fits: " in out) == (0, True)


def test_page_locked_rows_count_once_for_each_gpu_that_is_there(
    tmp_path: Path, run: Doctor
) -> None:
    path = write(
        tmp_path,
        ["range"],
        embedding_cache_type="uvm",
        gpucacheper=0.0,
        deployed_device_list=(0, 1),
    )
    locked = 1005 * DIM * 4
    assert budget.forecast(read_configuration(path)).page_locked_bytes([0, 1]) == 2 * locked
    code, out, _ = run(path, free=2 * locked - 1, gpus=(1 << 30, 1 << 30))
    assert code == 1
    assert "a uvm cache with a larger gpucacheper locks less" in out
    assert run(path, free=2 * locked - 1, gpus=())[0] == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"gpucacheper": 7}, "gpucacheper is 7"),
        ({"sparse_files": ["/nowhere"]}, "sparse model /nowhere is not a folder"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(
    tmp_path: Path, run: Doctor, change: dict[str, object], problem: str
) -> None:
    path = write(tmp_path, ["range"])
    document = json.loads(path.read_text())
    document["models"][0].update(change)
    path.write_text(json.dumps(document))
    code, out, err = run(path)
    assert (code, out) == (4, "")
    assert problem in err


def test_a_preset_and_a_configuration_are_not_checked_together(tmp_path: Path, run: Doctor) -> None:
    code, _, err = run(write(tmp_path, ["range"]), "--preset", "smoke")
    assert code == 4
    assert "leave out either" in err


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.50 KiB"), (13_207_024_435, "12.3 GiB")],
)
def test_sizes_are_written_with_three_digits(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text
