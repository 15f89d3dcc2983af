"""Baselines survive interruptions, concurrent updates and bad files, or say what is wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from hpsbench import baselines, storage
from hpsbench.baselines import Baseline
from hpsbench.errors import BaselineError
from tests.scripted import EVEN, MACHINE, baseline_of, measurement

IDS = ("native_tf", "hps_tf", "hps_ensemble")


def stored(*, slowdown: float) -> list[Baseline]:
    return [baseline_of(measurement(variant, slowdown=slowdown)) for variant in IDS]


def p10s(folder: Path) -> set[int]:
    found = baselines.load(folder, MACHINE.cls).here
    assert len(found) == len(IDS)
    return {b.runs[0].launches[0].p10_ns for b in found.values()}


def test_what_was_updated_is_loaded_again(tmp_path: Path) -> None:
    new = stored(slowdown=1.0)
    paths = baselines.update(tmp_path, new)
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        f"cpu-test-2c/smoke-{variant}-b64.json" for variant in IDS
    ]
    assert baselines.load(tmp_path, MACHINE.cls).here == {b.benchmark: b for b in new}


def test_baselines_of_other_machines_are_known_by_their_class(tmp_path: Path) -> None:
    baselines.update(tmp_path, stored(slowdown=1.0))
    found = baselines.load(tmp_path, "gpu-other")
    assert not found.here
    assert found.elsewhere["smoke-hps_tf-b64"] == ("cpu-test-2c",)


def test_a_missing_folder_holds_no_baselines(tmp_path: Path) -> None:
    found = baselines.load(tmp_path / "none", "any")
    assert not found.here
    assert not found.elsewhere


def test_an_update_replaces_and_an_append_adds(tmp_path: Path) -> None:
    first, second, third = (
        baseline_of(measurement(slowdown=s)).runs[0].launches for s in (1.0, 1.1, 1.2)
    )
    one, two = (baseline_of(measurement(slowdown=s)) for s in (1.0, 1.1))
    run = two.runs[0]
    later = Baseline(**{**vars(two), "runs": (type(run)(**{**vars(run), "run_id": "later"}),)})
    (path,) = baselines.update(tmp_path, [one])
    baselines.update(tmp_path, [later], append=True)
    assert [r.launches for r in baselines.load_one(path).runs] == [first, second]
    baselines.update(tmp_path, [later], append=True)
    assert len(baselines.load_one(path).runs) == 2, "the same run counts once"
    baselines.update(tmp_path, [baseline_of(measurement(slowdown=1.2))])
    assert [r.launches for r in baselines.load_one(path).runs] == [third]


def test_an_append_of_another_workload_is_refused(tmp_path: Path) -> None:
    one = baseline_of(measurement())
    baselines.update(tmp_path, [one])
    other = Baseline(**{**vars(one), "reference": "numpy"})
    with pytest.raises(BaselineError, match="another workload or reference"):
        baselines.update(tmp_path, [other], append=True)


def test_runs_within_an_hour_of_one_another_are_one_occasion() -> None:
    rows = baseline_of(*[measurement()] * 4, minutes_apart=50)
    apart = baseline_of(*[measurement()] * 4, minutes_apart=60)
    assert [len(occasion) for occasion in rows.occasions] == [4]
    assert [len(occasion) for occasion in apart.occasions] == [1, 1, 1, 1]
    shuffled = dataclasses.replace(apart, runs=apart.runs[::-1])
    assert shuffled.occasions == apart.occasions


def test_a_run_of_no_time_is_refused(tmp_path: Path) -> None:
    (path,) = baselines.update(tmp_path, [baseline_of(measurement())])
    path.write_text(path.read_text("utf-8").replace("2026-01-02T00:00:05Z", "yesterday"))
    with pytest.raises(BaselineError, match=r"runs\[0\] cannot be: .*'yesterday'"):
        baselines.load_one(path)


def test_a_launch_whose_pairs_took_no_time_is_refused(tmp_path: Path) -> None:
    (path,) = baselines.update(tmp_path, [baseline_of(measurement(pairs=EVEN))])
    path.write_text(path.read_text("utf-8").replace('"ratio_pairs": 1.002', '"ratio_pairs": 0'))
    with pytest.raises(BaselineError, match=r"launches\[0\] cannot be: ratio_pairs is 0"):
        baselines.load_one(path)


def test_the_file_is_readable_json_with_units_in_its_names(tmp_path: Path) -> None:
    (path,) = baselines.update(tmp_path, [baseline_of(measurement())])
    content = json.loads(path.read_text("utf-8"))
    assert content["schema_version"] == baselines.SCHEMA_VERSION
    assert content["runs"][0]["launches"][0] == {
        "p10_ns": 1_000_000, "p50_ns": 1_100_000, "ratio_p10": 1.0, "ratio_p50": 1.0,
        "ratio_pairs": None,
    }  # fmt: skip
    assert path.read_text("utf-8").count("\n") > 20


def _drop(field: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.pop(field)


def _set(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({field: value})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(_drop("reference"), "reference is missing", id="missing"),
        pytest.param(_set("batch_size", "64"), "batch_size is a str, not a int", id="mistyped"),
        pytest.param(_set("batchsize", 64), "batchsize is no known field", id="unknown"),
        pytest.param(_set("runs", []), "a baseline without runs", id="no-runs"),
        pytest.param(_drop("schema_version"), "has no schema_version", id="no-schema"),
        pytest.param(_set("runs", [{}]), r"runs\[0\].run_id is missing", id="nested"),
        pytest.param(_set("benchmark", "other"), "holds the baseline of other", id="renamed"),
    ],
)
def test_a_damaged_baseline_names_file_and_field(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], problem: str
) -> None:
    (path,) = baselines.update(tmp_path, [baseline_of(measurement())])
    content = json.loads(path.read_text("utf-8"))
    damage(content)
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(BaselineError, match=problem) as caught:
        baselines.load(tmp_path, MACHINE.cls)
    assert path.name in caught.value.problem


def test_a_field_with_a_default_may_be_missing_in_an_older_file(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Kept:
        old: int
        new: tuple[int, ...] = (7,)

    path = tmp_path / "kept.json"
    path.write_text('{"schema_version": 1, "old": 3}')
    assert storage.read(Kept, path, schema_version=1, restore="") == Kept(old=3, new=(7,))


def test_a_launch_that_took_no_time_is_refused(tmp_path: Path) -> None:
    (path,) = baselines.update(tmp_path, [baseline_of(measurement())])
    path.write_text(path.read_text("utf-8").replace('"ratio_p10": 1.0,', '"ratio_p10": 0,'))
    with pytest.raises(BaselineError, match=r"launches\[0\] cannot be: ratio_p10 is 0"):
        baselines.load_one(path)


def test_a_truncated_baseline_is_no_json(tmp_path: Path) -> None:
    (path,) = baselines.update(tmp_path, [baseline_of(measurement())])
    path.write_text(path.read_text("utf-8")[:100], "utf-8")
    with pytest.raises(BaselineError, match="is no JSON") as caught:
        baselines.load(tmp_path, MACHINE.cls)
    assert caught.value.hint == baselines.RESTORE_HINT


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    (path,) = baselines.update(tmp_path, [baseline_of(measurement())])
    newer = path.read_text("utf-8").replace(
        f'"schema_version": {baselines.SCHEMA_VERSION}', '"schema_version": 7'
    )
    path.write_text(newer, "utf-8")
    with pytest.raises(BaselineError, match="schema version 7") as caught:
        baselines.load(tmp_path, MACHINE.cls)
    assert "upgrade hpsbench" in caught.value.hint


def test_a_folder_that_is_a_file_cannot_be_written_or_read(tmp_path: Path) -> None:
    # Permission bits stop no root, so the folder is made impossible instead.
    folder = tmp_path / "baselines"
    folder.write_text("")
    with pytest.raises(BaselineError, match="cannot write baselines in") as caught:
        baselines.update(folder, stored(slowdown=1.0))
    assert "--baselines DIR" in caught.value.hint
    with pytest.raises(BaselineError, match="cannot read baselines in"):
        baselines.load(folder, MACHINE.cls)


def test_a_read_only_file_system_loses_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baselines.update(tmp_path, stored(slowdown=1.0))

    def read_only(source: object, target: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(BaselineError, match="Read-only file system"):
        baselines.update(tmp_path, stored(slowdown=2.0))
    assert p10s(tmp_path) == {1_000_000}
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "cpu-test-2c"]


def test_a_held_lock_is_waited_for_and_then_named(tmp_path: Path) -> None:
    baselines.update(tmp_path, stored(slowdown=1.0))
    with (
        filelock.FileLock(tmp_path / baselines.LOCK_NAME),
        pytest.raises(BaselineError, match=r"was still held after 0\.05 s"),
    ):
        baselines.update(tmp_path, stored(slowdown=2.0), lock_timeout_s=0.05)
    assert p10s(tmp_path) == {1_000_000}


_UPDATE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from hpsbench import baselines, storage
from tests.unit.test_baselines import stored

survive, replace = int(sys.argv[2]), os.replace

def dying(source, target):
    global survive
    if not survive:
        os.kill(os.getpid(), signal.SIGKILL)
    survive -= 1
    replace(source, target)

os.replace = dying
baselines.update(Path(sys.argv[1]), stored(slowdown=2.0))
"""


@pytest.mark.parametrize("replaced", [0, 1, 2])
def test_a_killed_update_leaves_every_file_old_or_new(tmp_path: Path, replaced: int) -> None:
    baselines.update(tmp_path, stored(slowdown=1.0))
    done = _python(_UPDATE_AND_DIE, str(tmp_path), str(replaced))
    assert done.wait(60) == -9
    found = baselines.load(tmp_path, MACHINE.cls).here
    firsts = [found[f"smoke-{v}-b64"].runs[0].launches[0].p10_ns for v in IDS]
    assert firsts == [2_000_000] * replaced + [1_000_000] * (len(IDS) - replaced)
    assert list(tmp_path.glob(f"{baselines.STAGING_PREFIX}*"))

    baselines.update(tmp_path, stored(slowdown=3.0))
    assert p10s(tmp_path) == {3_000_000}
    assert not list(tmp_path.glob(f"{baselines.STAGING_PREFIX}*"))


_UPDATE = """
import sys
from pathlib import Path
from hpsbench import baselines, storage
from tests.unit.test_baselines import stored

for _ in range(10):
    baselines.update(Path(sys.argv[1]), stored(slowdown=float(sys.argv[2])), lock_timeout_s=60)
"""


def test_concurrent_updates_never_mix(tmp_path: Path) -> None:
    writers = [_python(_UPDATE, str(tmp_path), slowdown) for slowdown in ("2", "3")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert p10s(tmp_path) in ({2_000_000}, {3_000_000})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "cpu-test-2c"]


def _python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=root)
