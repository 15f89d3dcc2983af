"""`hpsbench profile`: which keys are asked, what tiers tell, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpsbench import cli
from hpsbench.commands import profile
from hpsbench.errors import ConfigError
from hpsbench.hps.configuration import Configuration, ModelConfiguration, write_configuration
from hpsbench.hps.lookup import ModelTables
from hpsbench.hps.native import build
from hpsbench.hps.native.tiers import Tier
from hpsbench.hps.sparse_model import write_sparse_model
from hpsbench.profiling.batches import Batch, Stream, batches, read_histogram, read_keys
from hpsbench.profiling.stages import TierLookup
from hpsbench.profiling.subject import configured, generated
from hpsbench.profiling.tiers import flat_counters, tier_results

DIMS = (8, 4)
KEYS = (np.arange(500)[::-1] * 11, np.arange(300) - 7)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main(["profile", *map(str, arguments)])
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def ps_config_file(tmp_path: Path) -> Path:
    for i, (keys, dim) in enumerate(zip(KEYS, DIMS, strict=True)):
        write_sparse_model(tmp_path / f"t{i}", keys, [np.ones((len(keys), dim), np.float32)])
    model = ModelConfiguration(
        model="m",
        sparse_files=(str(tmp_path / "t0"), str(tmp_path / "t1")),
        embedding_table_names=("users", "items"),
        embedding_vecsize_per_table=DIMS,
        maxnum_catfeature_query_per_table_per_sample=(1, 1),
        default_value_for_each_table=(0.0, 0.0),
        deployed_device_list=(0,),
    )
    return write_configuration(tmp_path / "ps.json", Configuration(models=(model,)))


def test_every_table_is_asked_its_keys_and_the_peer_the_rows_that_hold_them(
    ps_config_file: Path,
) -> None:
    subject = configured(ps_config_file, model=None, table=None)
    for batch in itertools.islice(
        batches(subject, Stream(kind="uniform"), batch_size=5, hotness=3, seed=1), 4
    ):
        for keys, rows, known in zip(batch.keys, batch.rows, KEYS, strict=True):
            assert keys.shape == (5, 3)
            np.testing.assert_array_equal(keys, known[rows])


@pytest.mark.parametrize("suffix", [".txt", ".npy"])
def test_recorded_keys_are_asked_as_they_are(
    ps_config_file: Path, tmp_path: Path, suffix: str
) -> None:
    recorded = tmp_path / f"ids{suffix}"
    if suffix == ".npy":
        np.save(recorded, [[5489, 11], [-4, 22]])
    else:
        recorded.write_text("# ids\n5489, 11\n-4\n\n22\n")
    subject = configured(ps_config_file, model="m", table="users")
    stream = batches(subject, Stream(recorded=recorded), batch_size=1, hotness=4, seed=0)
    batch = next(stream)
    assert batch.keys[0].tolist() == [[5489, 11, -4, 22]]
    assert batch.rows[0].tolist() == [[0, 498, 0, 497]]  # -4 has no row


def test_keys_of_a_histogram_file_are_drawn_by_their_counts(
    ps_config_file: Path, tmp_path: Path
) -> None:
    counted = tmp_path / "counts.csv"
    counted.write_text("292,3\n-7,1\n0,0\n")
    subject = configured(ps_config_file, model="m", table="items")
    batch = next(batches(subject, Stream(histogram=counted), batch_size=1000, hotness=4, seed=0))
    assert set(np.unique(batch.keys[0])) == {292, -7}
    assert (batch.keys[0] == 292).mean() == pytest.approx(0.75, abs=0.03)
    np.testing.assert_array_equal(KEYS[1][batch.rows[0]], batch.keys[0])


@pytest.mark.parametrize(
    ("read", "text", "problem"),
    [
        (read_keys, "", "holds no key"),
        (read_keys, "1 2 x", "cannot be used: invalid literal for int"),
        (read_keys, "99999999999999999999", "cannot be used"),
        (read_histogram, "1 2\n3\n", "a line has 1 columns: 3"),
        (read_histogram, "1 -2\n", "holds a negative count"),
        (read_histogram, "1 0\n", "counts no key"),
        (read_histogram, "# nothing\n", "counts no key"),
        (read_keys, None, "No such file"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_named(
    tmp_path: Path, read: Callable[[Path], object], text: str | None, problem: str
) -> None:
    file = tmp_path / "keys.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        read(file)
    assert str(file) in caught.value.problem


def test_keys_of_a_file_need_one_table(ps_config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("1")
    subject = configured(ps_config_file, model=None, table=None)
    with pytest.raises(ConfigError, match="of one table, and model m has 2") as caught:
        next(batches(subject, Stream(recorded=tmp_path / "ids"), batch_size=1, hotness=1, seed=0))
    assert caught.value.hint == "name one: --table users"


def test_a_generated_table_has_rows_under_scattered_keys(tmp_path: Path) -> None:
    subject = generated(tmp_path, num_rows=1000, dim=6, seed=2)
    [table] = subject.sparse_models
    assert table.rows.shape == (1000, 6)
    assert len(np.unique(table.keys)) == 1000
    assert not np.array_equal(np.sort(table.keys), table.keys)


def test_tiers_are_told_by_what_the_counters_rose() -> None:
    gpu = {"keys": 80, "hits": 60, "unique_keys": 20, "unique_hits": 15, "resident": False}
    tiers = {
        "volatile": {"keys": 5, "hits": 1, "ns": 1000, "available": True},
        "mapped": {"keys": 4, "hits": 4, "ns": 80},
        "redis": {"keys": 0, "hits": 0, "ns": 0},
    }
    counted = flat_counters({"users": {"keys": 9, "tiers": tiers, "gpu_caches": {1: gpu}}})
    told = [
        (t.tier, t.keys, t.hits, t.hit_rate, t.ns_per_key) for t in tier_results(counted, ["users"])
    ]
    assert told == [
        ("GPU 1 cache", 80, 60, 0.75, None),
        ("GPU 1 cache, unique keys", 20, 15, 0.75, None),
        ("volatile", 5, 1, 0.2, 200.0),
        ("mapped", 4, 4, 1.0, 20.0),
        ("redis", 0, 0, None, None),
    ]


@pytest.mark.parametrize("tier", [Tier.VOLATILE, Tier.MAPPED])
def test_a_tier_answers_each_key_of_a_batch_once(ps_config_file: Path, tier: Tier) -> None:
    document = json.loads(ps_config_file.read_text())
    document["volatile_db"] = {"type": "hash_map", "initial_cache_rate": 0.5}
    ps_config_file.write_text(json.dumps(document))
    subject = configured(ps_config_file, model=None, table="users")
    tables = ModelTables(subject.configuration, subject.model, without_gpus="none")
    stage = TierLookup(subject, tables, 0, tier)
    batch = Batch(keys=(np.array([[11, 22], [11, -4]]),), rows=(np.zeros((2, 2), np.int64),))
    rows, found = stage.ask(stage.prepare(batch))
    np.testing.assert_array_equal(found, [False, True, True])
    np.testing.assert_array_equal(rows[1:], np.ones((2, 8)))
    assert stage.size(batch) == (3, 3 * 8 * 4)
    asked = {name: t["keys"] for name, t in tables.statistics()["users"]["tiers"].items()}
    assert asked["volatile"] == (3 if tier is Tier.VOLATILE else 0)
    tables.close()


@pytest.mark.parametrize("batch_size", [1, 64])
def test_each_tier_is_a_stage_of_its_own(
    command: Run, ps_config_file: Path, tmp_path: Path, batch_size: int
) -> None:
    document = json.loads(ps_config_file.read_text())
    document["volatile_db"] = {
        "type": "hash_map", "initial_cache_rate": 0.0, "cache_missed_embeddings": True,
    }  # fmt: skip
    ps_config_file.write_text(json.dumps(document))
    code, out, err = command(
        "--config", ps_config_file, "--table", "users", "--batch-size", batch_size,
        "--hotness", 4, "--iterations", 6, "--warm-up", 40, "--peer", "none",
        "--stream", "repeated", "--json", tmp_path / "profile.json",
    )  # fmt: skip
    assert code == 0, err
    stored = json.loads((tmp_path / "profile.json").read_text())
    names = [stage["name"] for stage in stored["stages"]]
    assert names == ["end to end", "host tables", "from volatile on", "from mapped on"]
    # What was missed in the warm-up is in the volatile tier when it counts.
    [volatile, updated, mapped] = stored["tiers"]
    assert volatile["hit_rate"] == 1.0
    assert volatile["ns_per_key"] > 0
    assert (updated["keys"], mapped["keys"], mapped["hit_rate"]) == (0, 0, None)
    assert "from mapped on: this tier and those below it" in out


def test_a_profile_counts_keys_and_hits_and_writes_all_it_prints(
    command: Run, ps_config_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "ids.txt").write_text("0 11 22 1")  # of which users lacks one
    code, out, err = command(
        "--config", ps_config_file, "--table", "users", "--keys", tmp_path / "ids.txt",
        "--batch-size", 16, "--hotness", 2, "--iterations", 30, "--warm-up", 3, "--threads", 2,
        "--peer", "numpy", "--json", tmp_path / "profile.json",
    )  # fmt: skip
    assert code == 0, err
    stored = json.loads((tmp_path / "profile.json").read_text())
    names = [stage["name"] for stage in stored["stages"]]
    assert names == ["end to end", "host tables", "numpy.take"]
    for stage in stored["stages"]:
        calls = stage["calls"]
        assert calls["n"] == 60
        assert 0 < calls["min_ns"] <= calls["median_ns"] <= calls["p95_ns"] <= calls["p99_ns"]
        assert stage["bytes_per_s"] == pytest.approx(stage["keys_per_s"] * 8 * 4)
        assert stage["name"] in out
    peer = stored["stages"][2]
    assert peer["of_peer"] is None
    assert stored["stages"][0]["of_peer"] == pytest.approx(
        stored["stages"][0]["calls"]["median_ns"] / peer["calls"]["median_ns"]
    )
    tier = next(tier for tier in stored["tiers"] if tier["tier"] == "mapped")
    assert (tier["keys"], tier["hits"], tier["hit_rate"]) == (60 * 32, 60 * 24, 0.75)
    assert "0.7500" in out
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80


def test_all_tables_of_a_model_are_asked_together(
    command: Run, ps_config_file: Path, tmp_path: Path
) -> None:
    code, out, err = command(
        "--config", ps_config_file, "--stream", "hot", "--batch-size", 4, "--hotness", 2,
        "--iterations", 5, "--warm-up", 1, "--json", tmp_path / "profile.json",
    )  # fmt: skip
    assert code == 0, err
    stored = json.loads((tmp_path / "profile.json").read_text())
    assert [t["name"] for t in stored["tables"]] == ["users", "items"]
    mapped = [(t["table"], t["keys"]) for t in stored["tiers"] if t["tier"] == "mapped"]
    assert mapped == [("users", 40), ("items", 40)]
    assert stored["peer"] == "tf.nn.embedding_lookup"
    assert "hot, 0.9 of them out of the same 100" in out


def test_a_long_name_does_not_shift_the_columns(
    command: Run, ps_config_file: Path, tmp_path: Path
) -> None:
    name = "a_table_with_a_long_name_of_its_own"
    ps_config_file.write_text(ps_config_file.read_text().replace("users", name))
    code, out, _ = command(
        "--config", ps_config_file, "--batch-size", 2, "--iterations", 2, "--warm-up", 0,
        "--peer", "numpy",
    )  # fmt: skip
    assert code == 0
    lines = out.splitlines()
    begun = next(i for i, line in enumerate(lines) if line.startswith("tiers"))
    table = lines[begun : lines.index("", begun)]
    assert any(line.startswith(f"{name}: mapped") for line in table)
    assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--rows", "0"], "argument --rows: 0 is no whole number from 1"),
        (["--batch-size", "x"], "argument --batch-size: x is no whole number from 1"),
        (["--warm-up", "-1"], "argument --warm-up: -1 is no whole number from 0"),
        (["--hot-share", "1.5"], "argument --hot-share: 1.5 is not a share from 0 to 1"),
        (["--alpha", "nan"], "argument --alpha: nan is not a number above 0"),
        (["--stream", "gauss"], "argument --stream: invalid choice: 'gauss'"),
        (["--keys", "a", "--histogram", "b"], "not allowed with argument"),
        (["--model", "m"], "--model and --table need --config"),
        (["--config", "ps.json", "--rows", "5"], "--rows and --dim are of made-up tables"),
        (["--config", "/no/ps.json"], "configuration /no/ps.json cannot be read"),
        (
            ["--json", "/dev/null/x.json"],
            "cannot write the report /dev/null/x.json: Not a directory",
        ),
    ],
)
def test_what_cannot_be_profiled_is_refused_with_a_hint(
    command: Run, arguments: list[str], problem: str
) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (4, "")
    assert problem in err
    assert "hint: " in err


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["--model", "n"], "the configuration has no model 'n'"),
        (["--table", "user"], "model m has no table 'user'"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(
    command: Run, ps_config_file: Path, names: list[str], problem: str
) -> None:
    code, _, err = command("--config", ps_config_file, *names)
    assert code == 4
    assert problem in err


def test_without_room_for_a_second_copy_of_the_rows_numpy_is_the_peer(
    command: Run, ps_config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "free_memory_bytes", lambda: 1000)
    code, out, _ = command(
        "--config", ps_config_file, "--batch-size", 4, "--iterations", 2, "--warm-up", 0
    )
    assert code == 0
    copies = f"{2 * 4 * (500 * 8 + 300 * 4):,}"
    assert f"note: the peer is numpy.take: TensorFlow's copy of the rows takes {copies}" in out


def test_an_interrupted_profile_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "native").symlink_to(build.op_library().parent.parent)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "hpsbench.cli", "profile", "--rows", "50000", "--dim", "16",
            "--iterations", "100000000", "--threads", "2", "--batch-size", "64",
        ],
        env={**os.environ, "HPSBENCH_CACHE_DIR": str(tmp_path / "cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "cache" / "work").glob("run-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(3)  # in the middle of lookups, or on the way there
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert not list((tmp_path / "cache" / "work").iterdir())
