"""Whole pytest sessions that are interrupted between parts, and continued with --resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpsbench import runs

pytest_plugins = ["pytester"]

#: Counts launches, and is interrupted, or loses its server, in the one that script.json names.
BENCHMARKS = """
import json, pathlib, pytest
from hpsbench.plugin import OPTIONS_KEY
from hpsbench.session import run_session
from hpsbench.workload import benchmark_id
from tests.unit.test_session import FakeHost

SCRIPT = json.loads(pathlib.Path("script.json").read_text())
PLACES = [(v, size) for v in ("native_tf", "hps_tf") for size in (7, 64)]

@pytest.fixture(scope="session")
def measured(pytestconfig, open_checkpoint, progress):
    suite, host = pytestconfig.stash[OPTIONS_KEY].suite, FakeHost()
    plan = {place: benchmark_id(suite, *place) for place in PLACES}
    kept = open_checkpoint(plan)

    def interrupt(seen):
        if (seen.launch, seen.batch_size) == (SCRIPT["interrupted_in"], 64):
            raise KeyboardInterrupt
        host.dead = (seen.launch, seen.batch_size) == (SCRIPT["dies_in"], 64)
        progress(seen)

    found = run_session(
        suite, plan, host.launch, interrupt, kept=kept.parts(), on_part=kept.keep,
        clock_ns=host.clock_ns, sleep=host.sleep,
    )
    pathlib.Path("started").write_text(str(host.started))
    return found

@pytest.mark.parametrize("place", PLACES, ids=str)
def test_latency(place, measured, gate):
    gate(measured[place])
"""


@pytest.fixture
def interrupted(project: pytest.Pytester) -> pytest.Pytester:
    """A project whose first session was interrupted in its second launch."""
    (project.mkdir("bench") / "test_latency.py").write_text(BENCHMARKS)
    result = run(project, stops=2)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["hpsbench: 3 of 4 parts are measured and kept; the same command with --resume goes on *"]
    )
    return project


def run(
    project: pytest.Pytester, *arguments: str, stops: int = 0, dies: int = 0
) -> pytest.RunResult:
    script = {"interrupted_in": stops, "dies_in": dies}
    (project.path / "script.json").write_text(json.dumps(script))
    return project.runpytest_inprocess("--preset=smoke", "bench", *arguments, no_reraise_ctrlc=True)


def kept(project: pytest.Pytester) -> list[Path]:
    return sorted((project.path / ".hpsbench" / "interrupted").glob("*"))


def test_a_session_goes_on_and_its_run_says_so(interrupted: pytest.Pytester) -> None:
    result = run(interrupted, "--resume")
    assert result.ret == 0
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["going on with the session of *: 3 of 4 parts are measured"])
    assert (interrupted.path / "started").read_text() == "1"
    run_file = runs.load(runs.latest(interrupted.path / runs.FOLDER))
    assert run_file.resumed is not None
    assert {len(r.measurement.launches) for r in run_file.results} == {2}
    assert kept(interrupted) == []


def test_a_dead_server_is_invalid_and_what_was_measured_is_kept(project: pytest.Pytester) -> None:
    (project.mkdir("bench") / "test_latency.py").write_text(BENCHMARKS)
    result = run(project, dies=2)
    assert result.ret == 10
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "INVALID       smoke-*-b64, smoke-*-b64: launch 2: triton ended with status -9",
            "verdicts: 2 INVALID, 2 NO_BASELINE",
            "hpsbench: 3 of 4 parts are measured and kept; the same command with --resume goes *",
        ]
    )
    assert run(project, "--resume").ret == 0
    assert (project.path / "started").read_text() == "1"
    assert kept(project) == []


def test_a_session_that_begins_anew_tells_of_the_other(interrupted: pytest.Pytester) -> None:
    (before,) = kept(interrupted)
    result = run(interrupted)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["the session of * was interrupted with 3 of 4 parts measured: --resume goes on with it"]
    )
    assert runs.load(runs.latest(interrupted.path / runs.FOLDER)).resumed is None
    assert kept(interrupted) == [before]


def test_other_options_are_refused_with_what_differs(interrupted: pytest.Pytester) -> None:
    result = run(interrupted, "--resume", "--set", "load.measure_s=9.0")
    assert result.ret == 4
    result.stdout.fnmatch_lines(["*was another one: load.measure_s 0.2 -> 9.0*"])
    assert len(kept(interrupted)) == 1


def test_nothing_to_go_on_with_is_an_error(project: pytest.Pytester) -> None:
    (project.mkdir("bench") / "test_latency.py").write_text(BENCHMARKS)
    result = run(project, "--resume")
    assert result.ret == 4
    result.stdout.fnmatch_lines(["*no interrupted session in *"])
