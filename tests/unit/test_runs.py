"""A run file holds all that a session measured, and becomes baselines."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from hpsbench import runs
from hpsbench.errors import BaselineError
from hpsbench.presets import load_suite
from hpsbench.verdict import vanished
from hpsbench.workload import benchmark_id, changes, subject_settings, workload_of
from tests.scripted import MACHINE, baseline_of, measurement, run_of


def test_a_run_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    run = run_of(measurement("native_tf"), measurement("hps_tf", invalid="too few"))
    lost = vanished(baseline_of(measurement("hps_ensemble")))
    run = type(run)(**{**vars(run), "vanished": (lost,)})
    path = runs.save(tmp_path / "runs", run)
    assert path.name == f"{run.run_id}.json"
    assert runs.load(path) == run
    assert (tmp_path / "runs" / ".gitignore").read_text() == "*\n"
    assert not list((tmp_path / "runs").glob("*.staged"))


def test_a_latency_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    path = runs.save(tmp_path, run_of(measurement(requests=3)))
    path.write_text(re.sub(r'(latencies_ns": \[\d+, )\d+', r'\1"slow"', path.read_text()))
    with pytest.raises(BaselineError, match=r"latencies_ns\[1\] is a str, not a int"):
        runs.load(path)


@pytest.mark.parametrize("value", ['"SLOWER"', "[]"])
def test_an_outcome_that_there_is_none_is_named(tmp_path: Path, value: str) -> None:
    path = runs.save(tmp_path, run_of(measurement()))
    path.write_text(path.read_text().replace('"NO_BASELINE"', value))
    with pytest.raises(BaselineError, match=r"verdict\.outcome is .* not one of REGRESSED, "):
        runs.load(path)


def test_the_newest_run_is_found_and_a_prefix_is_enough(tmp_path: Path) -> None:
    older = runs.save(tmp_path, run_of(measurement(), run_id="20260102T030405Z-ffffff"))
    newer = runs.save(tmp_path, run_of(measurement(), run_id="20260102T030406Z-000000"))
    assert runs.latest(tmp_path) == newer
    assert runs.find(tmp_path, "20260102T030405Z") == older
    assert runs.find(tmp_path / "none", str(newer)) == newer
    with pytest.raises(BaselineError, match=r"2 runs in .* begin with 2026"):
        runs.find(tmp_path, "2026")
    with pytest.raises(BaselineError, match="no run 1999 in"):
        runs.find(tmp_path, "1999")
    with pytest.raises(BaselineError, match="no runs in"):
        runs.latest(tmp_path / "none")


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BaselineError, match="cannot store runs in"):
        runs.prepare(tmp_path / "file" / "runs")


def test_invalid_measurements_become_no_baseline() -> None:
    run = run_of(
        measurement("native_tf"),
        measurement("hps_tf", invalid="too few requests"),
        measurement("hps_ensemble", launches=()),
    )
    assert [b.variant for b in runs.baselines_of(run)] == ["native_tf"]


def test_a_baseline_keeps_ratios_per_launch_and_who_was_asked_in_turn() -> None:
    (baseline,) = runs.baselines_of(run_of(measurement(launches=(1.0, 1.5))))
    assert [launch.ratio_p10 for launch in baseline.runs[0].launches] == [1.0, 1.5]
    assert baseline.runs[0].interleaved_with == ("native_tf",)
    assert baseline.machine == MACHINE.cls
    assert baseline.runs[0].under_test["tensorflow"] == "2.21.0"


def test_what_ran_a_benchmark_is_kept_with_its_baseline() -> None:
    measured = dataclasses.replace(measurement(), engine="ONNX Runtime 1.32.0, CPU")
    (baseline,) = runs.baselines_of(run_of(measured))
    assert baseline.runs[0].under_test["engine"] == "ONNX Runtime 1.32.0, CPU"


def test_runs_of_one_benchmark_are_joined() -> None:
    one, two = (run_of(measurement(), run_id=name) for name in ("one", "two"))
    (baseline,) = runs.combined([one, two])
    assert [run.run_id for run in baseline.runs] == ["one", "two"]
    other = type(two)(**{**vars(two), "workload": workload_of(load_suite("laptop"))})
    with pytest.raises(BaselineError, match="different workloads"):
        runs.combined([one, other])


def test_a_benchmark_id_names_preset_keys_variant_and_batch_size() -> None:
    assert benchmark_id(load_suite("laptop"), "hps_tf", 256) == "laptop-hps_tf-b256"
    zipf = load_suite("laptop", ["load.keys=zipf"])
    assert benchmark_id(zipf, "hps_tf", 256) == "laptop-zipf-hps_tf-b256"


@pytest.mark.parametrize(
    ("override", "comparable"),
    [
        ("load.launches=8", True),
        ("load.measure_s=9.0", True),
        ("load.batch_sizes=[1]", True),
        ("hps.gpucacheper=0.5", True),
        ("servers.triton=system", True),
        ("load.protocol=grpc", False),
        ("load.keys=uniform", False),
        ("load.concurrency=2", False),
        ("load.in_a_row=5", False),
        ("tables.num_embeddings=7", False),
        ("dlrm.top_mlp=[8, 1]", False),
    ],
)
def test_runs_compare_when_the_same_was_asked(override: str, comparable: bool) -> None:
    before, after = workload_of(load_suite("smoke")), workload_of(load_suite("smoke", [override]))
    assert (before.digest == after.digest) is comparable
    assert (not changes(before.settings, after.settings)) is comparable


def test_settings_of_the_server_are_named_where_they_are_not_the_default() -> None:
    usual = subject_settings(load_suite("smoke"))
    for setting in (
        "servers.xla=true",
        "servers.cuda_graphs=false",
        "servers.fused_layers=false",
        "servers.stage_times=true",
    ):
        name, _, value = setting.partition("=")
        assert name not in usual
        assert subject_settings(load_suite("smoke", [setting])) == {
            **usual,
            name: value.capitalize(),
        }
    patient = load_suite("smoke", ["servers.startup_timeout_s=7", "servers.request_timeout_s=7"])
    assert subject_settings(patient) == usual


def test_a_change_names_the_setting_and_both_values() -> None:
    before, after = {"a": 1, "gone": 2, "same": 3}, {"a": 4, "new": 5, "same": 3}
    assert changes(before, after) == ["a 1 -> 4", "gone 2 -> none", "new none -> 5"]


def test_a_run_names_the_commit_it_was_measured_at(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        command = ["git", *who, *arguments]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert runs.commit_of(tmp_path / "none") is None
    git("init", "--quiet")
    (tmp_path / "file").write_text("first")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")[:12]
    assert runs.commit_of(tmp_path) == commit
    (tmp_path / "file").write_text("second")
    assert runs.commit_of(tmp_path) == f"{commit}-dirty"

    suite = load_suite("smoke")
    assert runs.new_run(suite, MACHINE, commit=commit).under_test["commit"] == commit
    assert "commit" not in runs.new_run(suite, MACHINE).under_test


def test_a_file_nested_too_deep_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(BaselineError, match="no JSON"):
        runs.load(path)
