"""Curves of open-loop load in a session: kept in the run file, shown, never judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpsbench import runs

pytest_plugins = ["pytester"]

CURVES = """
import pytest
from hpsbench.load_curve import LoadCurve
from tests.unit.test_report_load import CURVE, POINT
import dataclasses

@pytest.mark.parametrize("invalid", [None, "the client was the limit"])
def test_load(record_load, invalid):
    point = dataclasses.replace(POINT, invalid=invalid)
    curve = dataclasses.replace(CURVE, points=(point,))
    record_load("smoke-hps_tf-b7", "hps_tf", 7, curve)
"""


@pytest.fixture
def loads(project: pytest.Pytester) -> pytest.Pytester:
    (project.mkdir("bench") / "test_load.py").write_text(CURVES)
    return project


def stored(project: pytest.Pytester) -> runs.Run:
    return runs.load(runs.latest(Path(project.path) / runs.FOLDER))


def test_a_curve_is_stored_and_shown(loads: pytest.Pytester) -> None:
    result = loads.runpytest_inprocess("--preset=smoke", "bench", "-k", "None")
    assert result.ret == 0
    (kept,) = stored(loads).loads
    assert (kept.benchmark, kept.variant, kept.batch_size) == ("smoke-hps_tf-b7", "hps_tf", 7)
    assert kept.curve.points[0].offered_hz == 201.5
    result.stdout.fnmatch_lines(
        [
            "smoke-hps_tf-b7, open loop, poisson arrivals",
            "*201.5*200.2*",
            "knee *",
            "run stored in*",
        ]
    )


def test_a_rate_that_was_not_kept_fails_its_test_and_is_stored(loads: pytest.Pytester) -> None:
    result = loads.runpytest_inprocess("--preset=smoke", "bench")
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*INVALID smoke-hps_tf-b7: at 200.0/s: the client was the limit*"])
    assert len(stored(loads).loads) == 2


def test_loads_are_not_measured_beside_each_other(loads: pytest.Pytester) -> None:
    (loads.path / "bench" / "test_load.py").write_text("def test_load(record_load): assert 0")
    result = loads.runpytest_subprocess("--preset=smoke", "bench", "-n2")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*benchmarks cannot be measured beside each other*"])
