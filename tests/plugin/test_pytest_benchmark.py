"""Recorded latencies go through pytest-benchmark's own options and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpsbench.gate import RecordedClock

pytest_plugins = ["pytester"]

Session = Callable[..., pytest.RunResult]


def saved(path: Path) -> dict[str, dict[str, Any]]:
    content = json.loads(path.read_text("utf-8"))
    return {b["extra_info"]["benchmark"]: b for b in content["benchmarks"]}


def test_the_json_holds_the_recorded_nanoseconds_exactly(
    session: Session, project: pytest.Pytester
) -> None:
    script = {"hps_tf-b64": {"launches": [1.234567, 1.0], "requests": 10}}
    assert session("--benchmark-json=out.json", script=script).ret == 0
    benchmark = saved(project.path / "out.json")["smoke-hps_tf-b64"]
    expected_ns = [1_234_567] + [1_358_024] * 9 + [1_000_000] + [1_100_000] * 9
    assert [round(s * 1e9) for s in benchmark["stats"]["data"]] == expected_ns
    assert benchmark["stats"]["data"][0] == 1_234_567 / 1e9
    assert benchmark["stats"]["rounds"] == 20
    assert benchmark["stats"]["iterations"] == 1


def test_the_json_carries_server_times_ratios_and_the_verdict(
    session: Session, project: pytest.Pytester
) -> None:
    assert session("--benchmark-json=out.json").ret == 0
    benchmark = saved(project.path / "out.json")["smoke-hps_tf-b64"]
    info = benchmark["extra_info"]
    assert info["outcome"] == "NO_BASELINE"
    assert info["reference"] == "native_tf"
    assert info["launches"][1]["ratio_p10"] == pytest.approx(1.008)
    assert info["launches"][0]["server"]["compute_infer_ns"] == 800_000
    assert benchmark["group"] == "batch size 64"


def test_an_invalid_measurement_without_figures_is_not_in_the_json(
    session: Session, project: pytest.Pytester
) -> None:
    script = {"hps_tf-b64": {"invalid": "Triton died", "launches": []}}
    assert session("--benchmark-json=out.json", script=script).ret == 10
    assert "smoke-hps_tf-b64" not in saved(project.path / "out.json")


def test_saved_runs_compare(session: Session) -> None:
    assert session("--benchmark-save=first").ret == 0
    result = session("--benchmark-compare", script={"hps_tf-b64": {"slowdown": 1.5}})
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*benchmark 'batch size 64': 4 tests*", "*hps_tf-64* (NOW)*"])


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((), False),
        (("--benchmark-columns=min,median",), True),
        (("--benchmark-verbose",), True),
        (("-v",), True),
    ],
    ids=str,
)
def test_its_table_stands_beside_ours_only_when_asked_for(
    session: Session, arguments: tuple[str, ...], shown: bool
) -> None:
    result = session(*arguments)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*native_tf*hps_tf*", "verdicts: 4 NO_BASELINE"])
    if shown:
        result.stdout.fnmatch_lines(["*benchmark 'batch size 64': 2 tests*"])
    else:
        result.stdout.no_fnmatch_line("*benchmark 'batch size*")


def test_disabled_benchmarks_are_judged_all_the_same(session: Session) -> None:
    assert session("--benchmark-disable", "--strict-gate").ret == 10


def test_skipped_benchmarks_have_not_vanished(session: Session) -> None:
    result = session("--benchmark-skip", "--strict-gate")
    assert result.ret == 0
    result.assert_outcomes(skipped=4)


def test_benchmarks_never_share_the_machine_with_xdist(
    session: Session, project: pytest.Pytester
) -> None:
    marker = project.path / "measured"
    path = project.path / "bench" / "test_latency.py"
    path.write_text(
        "import pathlib\n"
        f"def test_other(): pathlib.Path({str(marker)!r}).touch()\n"
        "def test_it(gate): pass\n"
    )
    result = project.runpytest_subprocess("--preset=smoke", "bench", "-n2")
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        [
            "ERROR: benchmarks cannot be measured beside each other, and pytest-xdist is active",
            "  hint: run them with -n0, apart from other tests; nothing was run",
        ]
    )
    assert not marker.exists()


def test_other_tests_run_under_xdist(project: pytest.Pytester) -> None:
    path = project.makepyfile("def test_it(): pass")
    result = project.runpytest_subprocess("-n1", path)
    assert result.ret == 0
    result.assert_outcomes(passed=1)


def test_a_recorded_clock_tells_what_passed_since_its_last_reading() -> None:
    clock = RecordedClock()
    clock.load([5_000_000_001, 7])
    assert clock.seconds() == 0.0
    clock.play()
    assert clock.seconds() == 5.000000001
    assert clock.seconds() == 0.0
    clock.play()
    assert clock.seconds() == 7e-9
    with pytest.raises(LookupError):
        clock.play()
