"""The `hpsbench` command: what it stores, what it prints, and its exit codes."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpsbench import baselines, cli, runs
from hpsbench.commands import baseline as baseline_command
from hpsbench.verdict import Outcome
from tests.scripted import MACHINE, measurement, run_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Return a function that runs the command in an empty folder: code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(baseline_command, "this_machine", lambda: MACHINE)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def store(slowdown: float = 1.0, *, run_id: str = "20260102T030405Z-aaaaaa") -> runs.Run:
    """Store a run of two benchmarks in the current folder."""
    run = run_of(measurement("native_tf"), measurement(slowdown=slowdown), run_id=run_id)
    runs.save(runs.FOLDER, run)
    return run


def stored_runs(benchmark: str) -> list[str]:
    found = baselines.load(Path("baselines"), MACHINE.cls).here[benchmark]
    return [run.run_id for run in found.runs]


def test_update_stores_the_newest_run(command: Run) -> None:
    store(run_id="20260102T030405Z-aaaaaa")
    store(run_id="20260103T030405Z-bbbbbb")
    code, out, _ = command("baseline", "update")
    assert code == 0
    assert out.splitlines() == [
        "run 20260103T030405Z-bbbbbb: preset smoke, recorded 2026-01-02T03:04:05Z",
        "stored baselines/cpu-test-2c/smoke-native_tf-b64.json",
        "stored baselines/cpu-test-2c/smoke-hps_tf-b64.json",
        "review the change with `git diff`, and commit it",
    ]
    assert stored_runs("smoke-hps_tf-b64") == ["20260103T030405Z-bbbbbb"]


def test_update_stores_the_runs_that_are_named_and_appends(command: Run) -> None:
    for name in ("20260102T030405Z-aaaaaa", "20260103T030405Z-bbbbbb", "20260104T030405Z-cccccc"):
        store(run_id=name)
    assert command("baseline", "update", "20260102", "20260103")[0] == 0
    assert command("baseline", "update", "--append")[0] == 0
    assert [name[-6:] for name in stored_runs("smoke-hps_tf-b64")] == ["aaaaaa", "bbbbbb", "cccccc"]


def test_update_stores_only_what_is_asked_for(command: Run) -> None:
    store()
    assert command("baseline", "update", "--only", "smoke-hps_tf-b64", "--baselines", "b")[0] == 0
    assert list(baselines.load(Path("b"), MACHINE.cls).here) == ["smoke-hps_tf-b64"]
    code, _, err = command("baseline", "update", "--only", "smoke-hps-b64")
    assert code == 4
    assert err == "error: no benchmark 'smoke-hps-b64' here\nhint: did you mean smoke-hps_tf-b64?\n"


def test_update_leaves_out_what_is_invalid_and_says_so(command: Run) -> None:
    run = run_of(measurement("native_tf"), measurement(invalid="3 requests failed"))
    runs.save(runs.FOLDER, run)
    code, out, _ = command("baseline", "update")
    assert code == 0
    assert "left out smoke-hps_tf-b64: 3 requests failed" in out
    assert list(baselines.load(Path("baselines"), MACHINE.cls).here) == ["smoke-native_tf-b64"]


def test_update_refuses_a_run_without_a_valid_measurement(command: Run) -> None:
    runs.save(runs.FOLDER, run_of(measurement(invalid="3 requests failed")))
    assert command("baseline", "update")[::2] == (
        4,
        "error: these runs hold no valid measurement\nhint: measure again\n",
    )


def test_append_refuses_a_regressed_run(command: Run) -> None:
    run = store(slowdown=1.2)
    bad = run.results[1]
    regressed = dataclasses.replace(bad.verdict, outcome=Outcome.REGRESSED)
    results = (run.results[0], dataclasses.replace(bad, verdict=regressed))
    runs.save(runs.FOLDER, dataclasses.replace(run, results=results))
    code, _, err = command("baseline", "update", "--append")
    assert code == 4
    assert "smoke-hps_tf-b64 was judged REGRESSED, so this run is no repeat" in err
    assert command("baseline", "update", "--append", "--only", "smoke-native_tf-b64")[0] == 0
    assert command("baseline", "update")[0] == 0


def test_diff_shows_change_launches_and_verdict(command: Run) -> None:
    store()
    assert command("baseline", "update")[0] == 0
    store(slowdown=1.2, run_id="20260103T030405Z-bbbbbb")
    code, out, _ = command("baseline", "diff")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "cpu-test-2c, run 20260103T030405Z-bbbbbb"
    assert lines[3].split() == [
        "smoke-hps_tf-b64", "1.001", "1.201", "+20.0%", "4", "->", "4", "NO_BASELINE",
    ]  # fmt: skip


def test_show_lists_this_machine_and_names_the_others(command: Run) -> None:
    store()
    command("baseline", "update")
    code, out, _ = command("baseline", "show")
    assert code == 0
    assert out.splitlines()[0] == "cpu-test-2c: 2 baselines in baselines"
    _, out, _ = command("baseline", "show", "smoke-hps_tf-b64")
    assert "p10 ratios 1.000, 1.008, 0.994, 1.002" in out

    Path("baselines/cpu-test-2c").rename("baselines/gpu-other")
    _, out, _ = command("baseline", "show")
    assert out.splitlines() == [
        "cpu-test-2c: 0 baselines in baselines",
        "see also: hpsbench baseline show --machine gpu-other",
    ]
    assert "2 baselines" in command("baseline", "show", "--machine", "gpu-other")[1]


def test_check_judges_the_stored_runs_by_each_other(command: Run) -> None:
    code, _, err = command("baseline", "check")
    assert code == 4
    assert "is no folder" in err
    store()
    command("baseline", "update")
    code, out, _ = command("baseline", "check")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "cpu-test-2c: each stored run, judged by the others of its benchmark"
    assert lines[-1].startswith("2 of 2 are of one occasion")
    code, out, _ = command("baseline", "check", "smoke-hps_tf-b64")
    assert out.splitlines()[-1].startswith("1 of 1 are of one occasion")
    code, _, err = command("baseline", "check", "smoke-hps_tf-b65")
    assert code == 4
    assert "did you mean smoke-hps_tf-b64?" in err
    Path("baselines/cpu-test-2c").rename("baselines/gpu-other")
    code, _, err = command("baseline", "check")
    assert code == 4
    assert "baselines has no baseline of cpu-test-2c" in err


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_reader_that_leaves_early_sees_no_traceback(
    command: Run, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    store()
    command("baseline", "update")
    line = (
        "hpsbench.cli import main; sys.exit(main(['baseline', 'show', '--machine', 'cpu-test-2c']))"
    )
    show = subprocess.Popen(
        [sys.executable, "-c", f"import sys, time; time.sleep(0.3); from {line}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert show.stdout is not None
    assert show.stderr is not None
    show.stdout.close()
    assert show.stderr.read() == b""
    show.stderr.close()
    assert show.wait(60) == 0


def test_without_a_run_there_is_nothing_to_store(command: Run) -> None:
    code, _, err = command("baseline", "update")
    assert code == 4
    assert err.splitlines() == [
        "error: no runs in .hpsbench/runs",
        "hint: measure first, for example with `tox run -e bench`",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [("{", "is no JSON"), ('{"schema_version": 9}', "has schema version 9")],
)
def test_a_bad_file_is_an_error_with_a_hint(command: Run, content: str, problem: str) -> None:
    Path("bad.json").write_text(content)
    code, out, err = command("baseline", "diff", "bad.json")
    assert (code, out) == (4, "")
    assert err.startswith(f"error: bad.json {problem}")
    assert "\nhint: " in err


def test_without_a_command_the_help_tells_which_there_are(command: Run) -> None:
    code, out, err = command()
    assert (code, out) == (4, "")
    assert "commands, each with its own --help" in err
    assert "compare" in err


def test_the_version_is_that_of_the_package(command: Run) -> None:
    code, out, _ = command("--version")
    assert (code, out) == (0, f"hpsbench {metadata.version('hpsbench')}\n")


@pytest.mark.parametrize(
    ("arguments", "told", "program"),
    [
        (("selftest", "--quik"), "--quik; did you mean --quick?", "hpsbench selftest"),
        (("baseline", "update", "--apend"), "did you mean --append?", "hpsbench baseline update"),
        (
            ("baseline", "diff", "--qqq=1"),
            "unrecognized arguments: --qqq=1",
            "hpsbench baseline diff",
        ),
    ],
)
def test_an_option_that_is_not_there_is_named_with_the_nearest(
    command: Run, arguments: tuple[str, ...], told: str, program: str
) -> None:
    code, _, err = command(*arguments)
    assert code == 4
    assert told in err.splitlines()[0]
    assert err.splitlines()[1] == f"hint: see `{program} --help`"


@pytest.mark.parametrize("arguments", [("baseline",), ("baseline", "wipe"), ("--nope",)])
def test_misuse_exits_4_and_points_to_the_help(command: Run, arguments: tuple[str, ...]) -> None:
    code, _, err = command(*arguments)
    assert code == 4
    assert err.startswith("error: ")
    assert "--help`" in err


def test_the_help_documents_the_exit_codes(command: Run) -> None:
    code, out, _ = command("--help")
    assert code == 0
    assert [line.split()[0] for line in out.split("exit statuses:\n")[1].splitlines()] == [
        "0", "1", "4", "10", "130",
    ]  # fmt: skip


@pytest.mark.parametrize(("healthy", "expected"), [(True, 0), (False, 1)])
def test_doctor_exits_1_when_a_check_failed(
    command: Run, monkeypatch: pytest.MonkeyPatch, healthy: bool, expected: int
) -> None:
    doctor = importlib.import_module("hpsbench.commands.doctor")
    asked = []
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.setattr(
        doctor, "run_checks", lambda suite: [asked.append(suite), SimpleNamespace(ok=healthy)][1:]
    )
    check = importlib.import_module("hpsbench.commands.check")
    monkeypatch.setattr(check, "render", lambda checks: f"{len(checks)} checked")
    code, out, _ = command("doctor", "--preset", "smoke", "--set", "load.launches=3")
    assert (code, out) == (expected, "1 checked\n")
    assert (asked[0].preset, asked[0].load.launches) == ("smoke", 3)
    assert command("doctor", "--preset", "labtop")[0] == 4
