"""What has vanished, and what the verdicts of a session mean for its exit status."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hpsbench.baselines import Baseline, Baselines
from hpsbench.errors import ConfigError
from hpsbench.gate import Selection, SessionGate, exit_code
from hpsbench.presets import load_suite
from hpsbench.runs import baselines_of, new_run
from hpsbench.verdict import Outcome, Verdict
from hpsbench.workload import workload_of
from tests.scripted import MACHINE, baseline_of, measurement

TEST = "bench/test_latency.py::test_latency[hps_tf-64]"
STORED = dataclasses.replace(baseline_of(measurement()), test=TEST)
EVERYTHING = Selection(
    prefixes=["bench"], whole=True, variants=None, batch_sizes=None, failed=frozenset()
)


def vanished(selection: Selection, baseline: Baseline = STORED) -> bool:
    """Return whether a session that measured nothing misses `baseline`."""
    suite = load_suite("smoke")
    stored = Baselines(machine=MACHINE.cls, here={baseline.benchmark: baseline}, elsewhere={})
    run = SessionGate(suite, stored, new_run(suite, MACHINE)).finish(selection)
    assert {v.outcome for v in run.verdicts} <= {Outcome.VANISHED}
    return bool(run.verdicts)


@pytest.mark.parametrize(
    "prefix",
    ["", ".", "bench", "bench/test_latency.py", "bench/test_latency.py::test_latency", TEST],
)
def test_a_baseline_below_what_was_collected_has_vanished(prefix: str) -> None:
    assert vanished(dataclasses.replace(EVERYTHING, prefixes=["tests/unit", prefix]))


@pytest.mark.parametrize("prefix", ["tests", "benc", "bench/test_lat", "bench/test_latency.py::te"])
def test_a_baseline_elsewhere_was_not_asked_for(prefix: str) -> None:
    assert not vanished(dataclasses.replace(EVERYTHING, prefixes=[prefix]))


@pytest.mark.parametrize(
    ("left_out", "missed"),
    [
        ({"whole": False}, False),
        ({"variants": ["native_tf"]}, False),
        ({"variants": ["hps_tf"]}, True),
        ({"batch_sizes": [7]}, False),
        ({"batch_sizes": [7, 64]}, True),
        ({"failed": {TEST}}, False),
        ({"failed": {"bench/test_latency.py::test_latency[hps_tf-7]"}}, True),
    ],
)
def test_what_was_left_out_or_failed_has_not_vanished(
    left_out: dict[str, Any], missed: bool
) -> None:
    assert vanished(dataclasses.replace(EVERYTHING, **left_out)) is missed


def test_baselines_of_another_preset_or_workload_are_not_missed() -> None:
    other = workload_of(load_suite("laptop"))
    assert not vanished(EVERYTHING, dataclasses.replace(STORED, preset="other"))
    assert not vanished(EVERYTHING, dataclasses.replace(STORED, workload=other))


_UNDECIDED = ("VANISHED", "OTHER_MACHINE", "NO_BASELINE", "INCONCLUSIVE")


@pytest.mark.parametrize(
    ("outcomes", "other_failures", "loose", "strict"),
    [
        ([], False, 0, 0),
        (["PASS", "IMPROVED"], False, 0, 0),
        (["PASS"], True, 1, 1),
        *[(["PASS", name], False, 0, 10) for name in _UNDECIDED],
        (["INVALID"], False, 10, 10),
        (["INVALID"], True, 1, 1),
        (["REGRESSED", "INVALID", "NO_BASELINE"], False, 1, 1),
    ],
)
def test_the_worst_verdict_decides_the_exit_status(
    outcomes: list[str], other_failures: bool, loose: int, strict: int
) -> None:
    verdicts = [Verdict(outcome=Outcome(o), benchmark=o, text="", hint="") for o in outcomes]
    assert exit_code(verdicts, strict=False, other_failures=other_failures) == loose
    assert exit_code(verdicts, strict=True, other_failures=other_failures) == strict


def test_rows_of_other_keys_are_judged_with_their_own_workload() -> None:
    suite = load_suite("smoke", ['load.also_keys=["zipf"]'])
    row = dataclasses.replace(measurement("hps_tf"), variant="hps_tf-zipf", benchmark="zipf")
    stored = dataclasses.replace(
        baseline_of(row), workload=workload_of(suite, "zipf"), test=TEST, variant="hps_tf-zipf"
    )
    assert stored.workload.settings["load.keys"] == "zipf"
    here = Baselines(machine=MACHINE.cls, here={"zipf": stored}, elsewhere={})
    gate = SessionGate(suite, here, new_run(suite, MACHINE))
    assert gate.judge(TEST, row).outcome is Outcome.PASS
    run = gate.finish(EVERYTHING)
    assert run.workload.settings["load.keys"] == "repeated"
    assert run.workload_of(run.results[0]) == stored.workload
    (as_stored,) = baselines_of(run)
    assert as_stored.workload == stored.workload
    # One that is not measured is missed, unless the session was not to measure such keys.
    fresh = new_run(suite, MACHINE)
    assert SessionGate(suite, here, fresh).finish(EVERYTHING).vanished
    chosen = dataclasses.replace(EVERYTHING, variants=["hps_tf"])
    assert SessionGate(suite, here, fresh).finish(chosen).vanished
    without = load_suite("smoke")
    assert not SessionGate(without, here, new_run(without, MACHINE)).finish(EVERYTHING).vanished


@pytest.mark.parametrize("keys", ['["often"]', '["repeated"]', '"zipf"', "[1]"])
def test_other_keys_are_known_streams_and_not_the_suites_own(keys: str) -> None:
    with pytest.raises(ConfigError, match="also_keys"):
        load_suite("smoke", [f"load.also_keys={keys}"])
