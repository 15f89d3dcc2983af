"""Whole pytest sessions over scripted measurements: every outcome, its text and its exit status."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpsbench import baselines, cli, runs
from tests.scripted import MACHINE, measurement, run_of

pytest_plugins = ["pytester"]

Session = Callable[..., pytest.RunResult]

HPS = "smoke-hps_tf-b64"


@pytest.fixture
def measured_once(project: pytest.Pytester) -> Path:
    """Store what `session` measures as the baselines, and return their folder."""
    every = [measurement(v, size) for v in ("native_tf", "hps_tf") for size in (7, 64)]
    folder = project.path / "baselines"
    stored = [
        dataclasses.replace(
            b, test=f"bench/test_latency.py::test_latency[{b.variant}-{b.batch_size}]"
        )
        for b in runs.baselines_of(run_of(*every))
    ]
    baselines.update(folder, stored)
    return folder / MACHINE.cls


def test_an_unchanged_repeat_passes_strictly(session: Session, measured_once: Path) -> None:
    result = session("--strict-gate")
    assert result.ret == 0
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "*= hpsbench smoke on cpu-test-2c =*",
            "*native_tf*hps_tf*",
            "*client p50, ms*",
            f"PASS *{HPS}: p10 +0.0% (limit 8.8%)",
            "verdicts: 4 PASS",
            "run stored in .hpsbench/runs/*.json; see `hpsbench baseline diff`",
        ]
    )
    result.stdout.no_fnmatch_line("*exit status 10*")


def test_a_first_run_has_no_baseline(session: Session) -> None:
    result = session()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            f"NO_BASELINE   *{HPS}, *: no baseline for cpu-test-2c",
            "*-> run `hpsbench baseline update` to store this run, and commit the files",
            "verdicts: 4 NO_BASELINE",
            "4 without a verdict: exit status 10 with --strict-gate",
        ]
    )
    strict = session("--strict-gate")
    assert strict.ret == 10
    strict.assert_outcomes(passed=4)
    strict.stdout.fnmatch_lines(["4 without a verdict: exit status 10, unless a test failed"])


def test_the_gate_is_strict_under_ci(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert session().ret == 10
    assert session("--no-strict-gate").ret == 0
    assert session("--set", "gate.strict=true").ret == 10


def test_a_regression_fails_its_test_in_one_paragraph(
    session: Session, measured_once: Path
) -> None:
    result = session(script={"hps_tf-b64": {"slowdown": 1.2}})
    assert result.ret == 1
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "REGRESSED smoke-hps_tf-b64: p10 20.0% slower than its baseline (limit 8.8%, *",
            "find the cause; if it is intended, run `hpsbench baseline update`",
            "*= hpsbench smoke on cpu-test-2c =*",
            f"REGRESSED     {HPS}: p10 20.0% slower*",
            "verdicts: 1 REGRESSED, 3 PASS",
        ]
    )
    for noise in ("*Traceback*", "*.py:*: Failed*", ">*"):
        result.stdout.no_fnmatch_line(noise)


def test_a_stored_run_passes_and_an_accepted_regression_does_from_then_on(
    session: Session,
) -> None:
    assert session().ret == 0
    assert cli.main(["baseline", "update"]) == 0
    assert session("--strict-gate").ret == 0
    slower = {"hps_tf-b64": {"slowdown": 1.2}}
    assert session(script=slower).ret == 1
    assert cli.main(["baseline", "update", "--append"]) == 4
    assert session(script=slower).ret == 1
    assert cli.main(["baseline", "update"]) == 0
    assert session("--strict-gate", script=slower).ret == 0


@pytest.mark.parametrize(
    ("script", "strict_exit", "line"),
    [
        pytest.param({"slowdown": 0.8}, 0, "IMPROVED *20.0% faster than its*", id="improved"),
        pytest.param({"slowdown": 1.05}, 10, "INCONCLUSIVE *5.0% slower*", id="inconclusive"),
        pytest.param({"launches": [1.2]}, 10, "INCONCLUSIVE *too few*", id="one-launch"),
    ],
)  # fmt: skip
def test_other_changes_are_shown_and_fail_no_test(
    session: Session, measured_once: Path, script: dict[str, Any], strict_exit: int, line: str
) -> None:
    assert session(script={"hps_tf-b64": script}).ret == 0
    result = session("--strict-gate", script={"hps_tf-b64": script})
    assert result.ret == strict_exit
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([line])


@pytest.mark.parametrize("launches", [[1.0, 1.0], []], ids=["figures", "no-figures"])
def test_an_invalid_measurement_fails_its_test_and_exits_10(
    session: Session, measured_once: Path, launches: list[float]
) -> None:
    script = {"hps_tf-b64": {"invalid": "launch 1: 3 requests failed", "launches": launches}}
    result = session(script=script)
    assert result.ret == 10
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines([f"INVALID       {HPS}: launch 1: 3 requests failed"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_what_the_machine_cannot_hold_is_skipped_by_name(
    project: pytest.Pytester, measured_once: Path
) -> None:
    (project.mkdir("held") / "test_held.py").write_text(
        "import pytest\n"
        "from tests.scripted import measurement\n"
        "TOO_LARGE = pytest.param(9, marks=pytest.mark.left_out('9 GiB'))\n"
        "@pytest.mark.parametrize('size', [7, TOO_LARGE])\n"
        "def test_latency(size, gate): gate(measurement('hps_tf', size))\n"
    )
    result = project.runpytest_inprocess("--preset=smoke", "held")
    assert result.ret == 0
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["hpsbench: left out, for 9 GiB: test_latency[[]9[]]"])


def test_a_regression_outweighs_an_invalid_measurement(
    session: Session, measured_once: Path
) -> None:
    script = {"hps_tf-b64": {"invalid": "x"}, "hps_tf-b7": {"slowdown": 1.2}}
    assert session("--strict-gate", script=script).ret == 1


def test_a_failed_test_outweighs_a_missing_verdict(
    session: Session, pytester: pytest.Pytester
) -> None:
    (pytester.path / "bench" / "test_other.py").write_text("def test_it():\n    assert False\n")
    assert session("--strict-gate").ret == 1


def test_baselines_of_another_machine_do_not_count(session: Session, measured_once: Path) -> None:
    measured_once.rename(measured_once.with_name("gpu-nvidia-h100-80gb-hbm3"))
    result = session("--strict-gate")
    assert result.ret == 10
    result.stdout.fnmatch_lines(
        [f"OTHER_MACHINE *{HPS}, *: this machine is cpu-test-2c;", "*its baseline is of gpu-*"]
    )


def test_another_workload_has_no_baseline(session: Session, measured_once: Path) -> None:
    result = session("--strict-gate", "--set", "tables.num_embeddings=30000")
    assert result.ret == 10
    result.stdout.fnmatch_lines(
        ["*the baseline is of another", "*workload: tables.num_embeddings 20000 -> 30000"]
    )


def _rename_the_variant(folder: Path) -> None:
    path = folder / "test_latency.py"
    path.write_text(path.read_text().replace('"hps_tf"]', '"hps_new"]'))


def _skip_it(folder: Path) -> None:
    path = folder / "test_latency.py"
    skip = 'if (variant, batch_size) == ("hps_tf", 64): pytest.skip("not today")\n    gate('
    path.write_text(path.read_text().replace("gate(measurement", skip + "measurement"))


@pytest.mark.parametrize("change", [_rename_the_variant, _skip_it], ids=["renamed", "skipped"])
def test_a_benchmark_that_has_a_baseline_cannot_vanish(
    session: Session,
    measured_once: Path,
    pytester: pytest.Pytester,
    change: Callable[[Path], None],
) -> None:
    change(pytester.path / "bench")
    assert session().ret == 0
    result = session("--strict-gate")
    assert result.ret == 10
    result.stdout.fnmatch_lines(
        [f"VANISHED      {HPS}: has a baseline of *, and no test measured it*", "*delete its file*"]
    )


@pytest.mark.parametrize(
    "selection",
    [
        ("-k", "hps_tf"),
        ("-m", "not slow"),
        ("--deselect", "bench/test_latency.py::test_latency[native_tf-7]"),
        ("bench/test_latency.py::test_latency[hps_tf-64]",),
        ("--variants", "hps_tf", "-k", "hps_tf"),
    ],
    ids=lambda s: s[0] if isinstance(s, tuple) else str(s),
)
def test_what_the_user_left_out_has_not_vanished(
    session: Session, measured_once: Path, selection: tuple[str, ...]
) -> None:
    result = session("--strict-gate", *selection)
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*VANISHED*")


def test_a_test_that_failed_before_it_measured_has_not_vanished(
    session: Session, measured_once: Path, pytester: pytest.Pytester
) -> None:
    path = pytester.path / "bench" / "test_latency.py"
    path.write_text(path.read_text().replace("gate(m", 'assert variant != "hps_tf"; gate(m'))
    result = session("--strict-gate")
    assert result.ret == 1
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.no_fnmatch_line("*VANISHED*")


def test_what_an_early_end_left_unmeasured_has_not_vanished(
    session: Session, measured_once: Path
) -> None:
    result = session("--strict-gate", "-x", script={"native_tf-b7": {"slowdown": 1.5}})
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["verdicts: 1 REGRESSED"])


def test_narrowed_batch_sizes_have_not_vanished(
    session: Session, measured_once: Path, pytester: pytest.Pytester
) -> None:
    path = pytester.path / "bench" / "test_latency.py"
    path.write_text(path.read_text().replace("[7, 64]", "[64]"))
    assert session("--strict-gate", "--set", "load.batch_sizes=[64]").ret == 0
    assert session("--strict-gate").ret == 10


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param("{", "*is no JSON*", id="no-json"),
        pytest.param('{"schema_version": 9}', "*schema version 9*", id="newer"),
        pytest.param('{"schema_version": 1}', "*benchmark is missing*", id="missing"),
    ],
)
def test_a_bad_baseline_ends_the_session_before_it_measures(
    session: Session, measured_once: Path, content: str, problem: str
) -> None:
    (measured_once / f"{HPS}.json").write_text(content)
    result = session()
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: {problem}", "*hint: *"])
    assert not (measured_once.parents[1] / ".hpsbench").exists()


def test_a_run_that_cannot_be_stored_is_said_before_measuring(
    session: Session, pytester: pytest.Pytester
) -> None:
    (pytester.path / ".hpsbench").write_text("a file where the folder should be")
    result = session()
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: cannot store runs in *", "*hint: make that folder*"])


def test_the_run_file_keeps_every_latency_and_verdict(
    session: Session, measured_once: Path, pytester: pytest.Pytester
) -> None:
    session(script={"hps_tf-b64": {"slowdown": 1.2}})
    run = runs.load(runs.latest(pytester.path / runs.FOLDER))
    assert [v.outcome.value for v in run.verdicts] == ["PASS", "PASS", "PASS", "REGRESSED"]
    assert [r.test for r in run.results][-1] == "bench/test_latency.py::test_latency[hps_tf-64]"
    assert all(len(r.measurement.launches[0].latencies_ns) == 20 for r in run.results)


def test_baselines_can_be_elsewhere(session: Session, pytester: pytest.Pytester) -> None:
    assert session().ret == 0
    assert cli.main(["baseline", "update", "--baselines", "far/away"]) == 0
    assert session("--strict-gate").ret == 10
    assert session("--strict-gate", "--baselines", "far/away").ret == 0
    assert baselines.load(pytester.path / "far/away", MACHINE.cls).here


def test_a_session_without_benchmarks_says_and_stores_nothing(
    session: Session, pytester: pytest.Pytester
) -> None:
    path = pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess("--strict-gate", path)
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*verdicts*")
    assert not (pytester.path / ".hpsbench").exists()


def test_collecting_only_stores_nothing(session: Session, pytester: pytest.Pytester) -> None:
    assert session("--collect-only", "--strict-gate").ret == 0
    assert not (pytester.path / ".hpsbench").exists()


def test_a_gate_that_was_never_called_fails_its_test(
    session: Session, pytester: pytest.Pytester
) -> None:
    (pytester.path / "bench" / "test_latency.py").write_text("def test_it(gate): pass\n")
    result = session()
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the test has the gate fixture, and measured nothing with it"])


def test_one_test_is_one_benchmark(session: Session, pytester: pytest.Pytester) -> None:
    (pytester.path / "bench" / "test_latency.py").write_text(
        "from tests.scripted import measurement\n"
        "def test_twice(gate):\n    gate(measurement())\n    gate(measurement())\n"
    )
    result = session()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*RuntimeError: gate() was called twice in one test*"])


SERVED = """
import pytest
from hpsbench.errors import ServerError

@pytest.fixture(scope="session")
def server():
    try:
        raise OSError("connection refused")
    except OSError as error:
        raise ServerError("no answer from triton at x:1", hint="see whether it runs") from error

@pytest.mark.parametrize("batch_size", [7, 64])
def test_latency(batch_size, server):
    pass
"""


def test_what_a_server_says_is_told_without_a_traceback(project: pytest.Pytester) -> None:
    project.makepyfile(test_served=SERVED)
    result = project.runpytest_inprocess("--preset=smoke")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_latency?7?*",
            "no answer from triton at x:1",
            "  hint: see whether it runs",
            "*ERROR at setup of test_latency?64?*",
            "ERROR test_served.py::test_latency?7? - *no answer from triton at x:1*",
        ]
    )
    for told in ("*OSError*", "*raise ServerError*"):
        result.stdout.no_fnmatch_line(told)
    full = project.runpytest_inprocess("--preset=smoke", "--full-trace")
    full.stdout.fnmatch_lines(["*OSError: connection refused", "*raise ServerError*"])
