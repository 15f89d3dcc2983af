"""The verdict: every outcome by a case, its laws by Hypothesis, its promise by simulation."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsbench.config import GateConfig
from hpsbench.measurements import Measurement
from hpsbench.presets import load_suite
from hpsbench.telemetry import Telemetry
from hpsbench.telemetry_host import HostTelemetry
from hpsbench.verdict import (
    CROWDED_HINT,
    P50_NOISE_THRESHOLD,
    Outcome,
    judge,
    vanished,
)
from hpsbench.workload import workload_of
from tests.scripted import EVEN, LUCK, MACHINE, baseline_of, measurement, verdict

CHANGED = (Outcome.REGRESSED, Outcome.IMPROVED)
BASELINE = baseline_of(measurement())
#: Ten quiet sessions that differ by half a percent: a firm baseline.
FIRM = baseline_of(*(measurement(slowdown=1 + 0.005 * (i % 3 - 1)) for i in range(10)))


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        pytest.param(measurement(), Outcome.PASS, id="unchanged"),
        pytest.param(measurement(slowdown=1.02), Outcome.PASS, id="within-noise"),
        pytest.param(measurement(slowdown=1.05), Outcome.INCONCLUSIVE, id="slower-not-surely"),
        pytest.param(measurement(slowdown=1.20), Outcome.REGRESSED, id="slower"),
        pytest.param(measurement(slowdown=0.95), Outcome.PASS, id="faster-not-surely"),
        pytest.param(measurement(slowdown=0.80), Outcome.IMPROVED, id="faster"),
        pytest.param(
            measurement(slowdown_p50=1.30), Outcome.REGRESSED, id="median-slower-p10-unchanged"
        ),
        pytest.param(
            measurement(slowdown_p50=1.12), Outcome.INCONCLUSIVE, id="median-slower-not-surely"
        ),
        pytest.param(measurement(slowdown_p50=1.08), Outcome.PASS, id="median-within-noise"),
        pytest.param(
            measurement(slowdown=0.80, slowdown_p50=1.30), Outcome.REGRESSED, id="p50-worsens-p10"
        ),
        pytest.param(measurement(launches=(1.2,)), Outcome.INCONCLUSIVE, id="one-launch"),
        pytest.param(measurement(invalid="3 failed"), Outcome.INVALID, id="invalid"),
        pytest.param(measurement(launches=()), Outcome.INVALID, id="no-launch"),
    ],
)
def test_a_change_has_one_outcome(candidate: object, expected: Outcome) -> None:
    assert verdict(candidate, BASELINE).outcome is expected  # type: ignore[arg-type]


def test_a_firm_baseline_resolves_what_a_single_session_cannot() -> None:
    slower = measurement(slowdown=1.05)
    assert verdict(slower, BASELINE).outcome is Outcome.INCONCLUSIVE
    assert verdict(slower, FIRM).outcome is Outcome.REGRESSED


def test_sessions_that_differ_widen_the_limit() -> None:
    wide = baseline_of(*(measurement(slowdown=1 + 0.08 * (i % 3 - 1)) for i in range(10)))
    firm_limit, wide_limit = (verdict(measurement(), b).limit for b in (FIRM, wide))
    assert firm_limit is not None
    assert wide_limit is not None
    assert wide_limit > 3 * firm_limit
    # What sessions differ by themselves is no doubt, and half as much again is.
    assert verdict(measurement(slowdown=1.08), wide).outcome is Outcome.PASS
    assert verdict(measurement(slowdown=1.12), wide).outcome is Outcome.INCONCLUSIVE


def test_sessions_in_a_row_tell_no_more_of_the_machine_than_one() -> None:
    sessions = [measurement(slowdown=1 + 0.002 * (i % 3 - 1)) for i in range(10)]
    in_a_row = baseline_of(*sessions, minutes_apart=6)
    limits = [verdict(measurement(), b).limit for b in (BASELINE, in_a_row, FIRM)]
    alone, row, firm = (limit or 0 for limit in limits)
    assert row == pytest.approx(alone, rel=0.1)
    assert firm < 0.5 * row


def test_the_figures_are_fractions_and_the_interval_holds_the_change() -> None:
    found = verdict(measurement(slowdown=1.2), BASELINE)
    assert found.change == pytest.approx(0.2, abs=1e-6)
    assert found.change_p50 == pytest.approx(0.2, abs=1e-6)
    assert found.low is not None
    assert found.high is not None
    assert found.limit is not None
    assert 0.03 < found.limit < found.low < found.change < found.high


def test_the_limit_is_never_below_the_noise_threshold() -> None:
    policy = GateConfig(noise_threshold=0.2)
    suite = load_suite("smoke")
    found = judge(
        measurement(slowdown=1.15),
        BASELINE,
        policy,
        workload=workload_of(suite),
        under_test={},
        machine=MACHINE.cls,
    )
    assert found.outcome is Outcome.PASS
    assert found.limit == pytest.approx(0.2)
    assert found.limit_p50 is not None
    assert found.limit_p50 >= P50_NOISE_THRESHOLD


def test_where_the_fastest_tenth_is_luck_pairs_are_judged() -> None:
    baseline = baseline_of(measurement(launches=LUCK, pairs=EVEN))
    luckless = measurement(launches=[1.06 * ratio for ratio in LUCK], pairs=EVEN)
    found = verdict(luckless, baseline)
    assert (found.outcome, found.statistic) == (Outcome.PASS, "pairs")
    assert found.change == pytest.approx(0, abs=1e-6)
    slower = verdict(measurement(slowdown=1.1, launches=LUCK, pairs=EVEN), baseline)
    assert (slower.outcome, slower.statistic) == (Outcome.REGRESSED, "pairs")
    assert slower.text.startswith("smoke-hps_tf-b64: pairs 10.0% slower than its baseline")


def test_where_pairs_differ_p10_is_judged() -> None:
    baseline = baseline_of(measurement(launches=EVEN, pairs=LUCK))
    slower = verdict(measurement(slowdown=1.1, launches=EVEN, pairs=LUCK), baseline)
    assert (slower.outcome, slower.statistic) == (Outcome.REGRESSED, "p10")


@pytest.mark.parametrize(
    ("stored", "found"), [(None, EVEN), (EVEN, None)], ids=["stored-before", "unpaired"]
)
def test_without_pairs_on_either_side_p10_is_judged(
    stored: tuple[float, ...] | None, found: tuple[float, ...] | None
) -> None:
    firm = measurement(launches=LUCK, pairs=EVEN)
    baseline = baseline_of(firm, measurement(launches=LUCK, pairs=stored))
    judged = verdict(measurement(launches=LUCK, pairs=found), baseline)
    assert (judged.outcome, judged.statistic) == (Outcome.PASS, "p10")


@given(st.floats(1.0, 1.5), st.floats(1.0, 1.5))
def test_slower_is_never_judged_better(slowdown: float, more: float) -> None:
    rank = [Outcome.IMPROVED, Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.REGRESSED]
    baseline = baseline_of(measurement(launches=LUCK, pairs=EVEN))
    before, after = (
        verdict(measurement(slowdown=slow, launches=LUCK, pairs=EVEN), baseline).outcome
        for slow in (slowdown, slowdown * more)
    )
    assert rank.index(after) >= rank.index(before)


def beside_others(found: Measurement, share: float) -> Measurement:
    """Return the measurement as watched on a machine of which others used `share`."""
    host = HostTelemetry(
        cpus=2, own=0.3, others=share / 2, steal=share / 2, iowait=0.0, frequency_mhz=None,
        min_frequency_mhz=None, load_1min=1.0, min_available_bytes=2**30, swapped_in_bytes=0,
        swapped_out_bytes=0,
    )  # fmt: skip
    watched = Telemetry(elapsed_s=1.0, samples=2, sampling_cpu_s=0.0, host=host)
    launches = [dataclasses.replace(launch, telemetry=watched) for launch in found.launches]
    return dataclasses.replace(found, launches=tuple(launches))


@pytest.mark.parametrize("slowdown", [1.3, 0.7])
def test_beside_others_a_change_against_numpy_is_no_evidence(slowdown: float) -> None:
    baseline = baseline_of(measurement("native_tf"))
    changed = measurement("native_tf", slowdown=slowdown)
    assert verdict(beside_others(changed, 0.1), baseline).outcome in CHANGED
    crowded = verdict(beside_others(changed, 0.4), baseline)
    assert crowded.outcome is Outcome.INCONCLUSIVE
    assert "other programs took 40% of the CPUs" in crowded.text
    assert crowded.hint == CROWDED_HINT
    # What ran interleaved on the same server met the same others.
    other = beside_others(measurement("hps_tf", slowdown=slowdown), 0.4)
    assert verdict(other, BASELINE).outcome in CHANGED


def test_a_machine_too_noisy_to_see_a_fifth_gets_no_pass() -> None:
    noisy = measurement(launches=(0.8, 1.25, 0.75, 1.3))
    found = verdict(noisy, BASELINE)
    assert found.limit is not None
    assert found.limit > 0.2
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.hint.startswith("too noisy for a verdict")


@pytest.mark.parametrize(
    ("candidate_launches", "baseline_launches", "outcome"),
    [(2, 2, Outcome.PASS), (1, 4, Outcome.INCONCLUSIVE), (4, 1, Outcome.INCONCLUSIVE)],
)
def test_too_few_launches_are_inconclusive(
    candidate_launches: int, baseline_launches: int, outcome: Outcome
) -> None:
    candidate = measurement(launches=(1.0, 1.01, 0.99, 1.0)[:candidate_launches])
    baseline = baseline_of(measurement(launches=(1.0, 1.01, 0.99, 1.0)[:baseline_launches]))
    assert verdict(candidate, baseline).outcome is outcome


def test_no_baseline_names_the_machine_and_the_command() -> None:
    found = verdict(measurement())
    assert found.outcome is Outcome.NO_BASELINE
    assert found.text == "smoke-hps_tf-b64: no baseline for cpu-test-2c"
    assert found.hint == "run `hpsbench baseline update` to store this run, and commit the files"


def test_another_machine_is_named_beside_this_one() -> None:
    suite = load_suite("smoke")
    found = judge(
        measurement(),
        None,
        suite.gate,
        workload=workload_of(suite),
        under_test={},
        machine=MACHINE.cls,
        elsewhere=("gpu-nvidia-h100-80gb-hbm3",),
    )
    assert found.outcome is Outcome.OTHER_MACHINE
    assert found.text == (
        "smoke-hps_tf-b64: this machine is cpu-test-2c; its baseline is of "
        "gpu-nvidia-h100-80gb-hbm3"
    )


def test_a_baseline_of_another_workload_is_none() -> None:
    suite = load_suite("smoke", ["load.protocol=grpc"])
    found = judge(
        measurement(),
        BASELINE,
        suite.gate,
        workload=workload_of(suite),
        under_test={},
        machine=MACHINE.cls,
    )
    assert found.outcome is Outcome.NO_BASELINE
    assert "another workload: load.protocol http -> grpc" in found.text


def test_a_baseline_against_another_reference_is_none() -> None:
    found = verdict(dataclasses.replace(measurement(), reference="numpy"), BASELINE)
    assert found.outcome is Outcome.NO_BASELINE
    assert "reference native_tf -> numpy" in found.text


def test_the_text_says_what_was_compared_and_the_hint_what_to_do() -> None:
    found = verdict(measurement(slowdown=1.2), BASELINE)
    assert found.text == (
        "smoke-hps_tf-b64: p10 20.0% slower than its baseline (limit 8.8%, 99% interval +10.3% to "
        "+30.5%), p50 +20.0% (limit 18.6%), as ratios to native_tf; 4 launches against 4 in 1 run "
        "of 2026-01-02"
    )
    assert found.hint == "find the cause; if it is intended, run `hpsbench baseline update`"


def test_the_text_begins_with_the_percentile_that_decided() -> None:
    found = verdict(measurement(slowdown_p50=1.3), BASELINE)
    assert found.text.startswith(
        "smoke-hps_tf-b64: p50 30.0% slower than its baseline (limit 18.6%"
    )
    assert "p10 +0.0% (limit 8.8%)" in found.text


def test_the_text_names_what_changed_since_the_baseline() -> None:
    suite = load_suite("smoke", ["hps.gpucacheper=0.5"])
    candidate = dataclasses.replace(measurement(slowdown=1.2), interleaved_with=("numpy",))
    found = judge(
        candidate,
        BASELINE,
        suite.gate,
        workload=workload_of(suite),
        under_test={**BASELINE.runs[0].under_test, "tensorflow": "2.22.0"},
        machine=MACHINE.cls,
    )
    assert found.text.endswith(
        "; changed since: tensorflow 2.21.0 -> 2.22.0, also asked in turn: numpy, "
        "no longer asked in turn: native_tf"
    )


def test_an_engine_that_the_baseline_did_not_record_is_no_change() -> None:
    def since(before: dict[str, str]) -> str:
        run = dataclasses.replace(BASELINE.runs[0], under_test=before)
        found = judge(
            measurement(slowdown=1.2),
            dataclasses.replace(BASELINE, runs=(run,)),
            load_suite("smoke").gate,
            workload=workload_of(load_suite("smoke")),
            under_test={"python": "3.11.7", "engine": "TensorFlow 2.21.0, GPU"},
            machine=MACHINE.cls,
        )
        return found.text.partition("changed since: ")[2]

    assert since({"python": "3.11.7"}) == ""
    before = {"python": "3.11.7", "engine": "TensorFlow 2.21.0, CPU"}
    assert since(before) == "engine TensorFlow 2.21.0, CPU -> TensorFlow 2.21.0, GPU"


def test_a_vanished_benchmark_names_its_test_and_its_file() -> None:
    found = vanished(BASELINE)
    assert found.outcome is Outcome.VANISHED
    assert BASELINE.test in found.text
    assert "delete its file" in found.hint
