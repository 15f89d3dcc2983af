from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from hpsbench.load.interleaved import ParticipantRun, Step, StepCount
from hpsbench.load.records import Records
from hpsbench.measurements import Measurement, ServerTimes, measure, server_times
from hpsbench.servers.statistics import ModelStatistics

LOOKUP, DENSE = ("here:1", "lookup"), ("here:1", "dense")


def records(latencies_ns: Sequence[int], failed: int = 0) -> Records:
    n = len(latencies_ns) + failed
    sent = np.arange(n, dtype=np.int64) * 1000
    ok = np.arange(n) >= failed
    return Records(
        scheduled_ns=sent,
        sent_ns=sent,
        received_ns=sent + np.array([1] * failed + list(latencies_ns), np.int64),
        ok=ok,
        messages=("status 500: boom",) if failed else (),
    )


def count(n: int, *, expected: int | None = None, each_ns: int = 0) -> StepCount:
    return StepCount(
        statistics=ModelStatistics(
            success_count=n,
            fail_count=0,
            execution_count=n,
            inference_count=n,
            queue_ns=1 * each_ns * n,
            compute_input_ns=2 * each_ns * n,
            compute_infer_ns=30 * each_ns * n,
            compute_output_ns=4 * each_ns * n,
        ),
        expected=n if expected is None else expected,
    )


def run(
    name: str,
    *rounds: Records,
    steps: Sequence[Mapping[Step, StepCount]] = (),
    gave_up: str | None = None,
) -> ParticipantRun:
    return ParticipantRun(
        name=name,
        rounds=rounds,
        steps=tuple(steps),
        step_multiplicity=dict.fromkeys(steps[0], 1) if steps else {},
        gave_up=gave_up,
    )


def measured(*launches: Sequence[ParticipantRun], min_requests: int = 2) -> Measurement:
    return measure(
        [{r.name: r for r in runs} for runs in launches],
        benchmark="latency[hps_tf-256]",
        variant="hps_tf",
        batch_size=256,
        reference="native_tf",
        min_requests=min_requests,
    )


REFERENCE = run("native_tf", records([100] * 5 + [200] * 5))


def test_a_launch_is_percentiles_and_their_ratio_to_the_reference() -> None:
    own = run("hps_tf", records(range(100, 150)), records(range(150, 201)))
    measurement = measured([own, REFERENCE], [run("hps_tf", records([300, 300])), REFERENCE])
    first, second = measurement.launches
    assert (first.launch, first.p10_ns, first.p50_ns, first.mean_ns) == (1, 110, 150, 150)
    assert (first.ratio_p10, first.ratio_p50) == pytest.approx((1.1, 1.0))
    assert first.ratio_pairs is None  # not as many as of the reference
    assert first.latencies_ns == tuple(range(100, 201))
    assert first.server is None
    assert (second.launch, second.ratio_p10) == (2, 3.0)
    assert measurement.invalid is None
    assert measurement.interleaved_with == ("native_tf",)


def test_requests_asked_one_behind_the_other_are_paired() -> None:
    own = run("hps_tf", records([110, 210, 330, 440, 5000]))
    reference = run("native_tf", records([100, 200, 300, 400, 500]))
    (launch,) = measured([own, reference]).launches
    # The mean of the middle three of the log ratios: 1.05, 1.1, 1.1, 1.1 and 10.
    assert launch.ratio_pairs == pytest.approx(1.1, abs=1e-5)
    assert launch.ratio_p10 == pytest.approx(150 / 140)


def test_requests_around_a_failed_one_are_not_paired() -> None:
    own = run("hps_tf", records([110, 210, 330, 440], failed=1))
    reference = run("native_tf", records([100, 200, 300, 400]))
    (launch,) = measured([own, reference]).launches
    assert launch.ratio_pairs is None


def test_an_ensembles_steps_add_up_and_rounds_weigh_by_their_requests() -> None:
    steps = [
        {LOOKUP: count(10, each_ns=10), DENSE: count(10, each_ns=100)},
        {LOOKUP: count(30, each_ns=50), DENSE: count(30, each_ns=100)},
    ]
    whole, rounds = server_times(run("e", records([1]), records([1]), steps=steps))
    assert whole == ServerTimes(
        queue_ns=140, compute_input_ns=280, compute_infer_ns=4200, compute_output_ns=560
    )
    assert [r.compute_infer_ns for r in rounds] == [3300, 4500]
    assert whole.total_ns == 5180


def test_a_step_taken_twice_counts_twice() -> None:
    twice = ParticipantRun(
        name="e",
        rounds=(records([1]),),
        steps=({LOOKUP: count(20, each_ns=10)},),
        step_multiplicity={LOOKUP: 2},
    )
    whole, _ = server_times(twice)
    assert whole is not None
    assert whole.compute_infer_ns == 600


def test_a_server_that_counted_nothing_has_no_times() -> None:
    nothing = run("m", records([1]), steps=[{LOOKUP: count(0, expected=1)}])
    assert server_times(nothing) == (None, ())


FINE = run("hps_tf", records([200] * 10), steps=[{DENSE: count(10)}])

INVALID = {
    "too few": (
        [run("hps_tf", records([200] * 4)), REFERENCE],
        "launch 2: hps_tf answered 4 requests: needs at least 6 more",
    ),
    "failed": (
        [run("hps_tf", records([200] * 10, failed=2)), REFERENCE],
        "launch 2: hps_tf had 2 of 12 requests fail: status 500: boom",
    ),
    "reference failed": (
        [FINE, run("native_tf", records([100] * 10, failed=1))],
        "launch 2: native_tf had 1 of 11 requests fail: status 500: boom",
    ),
    "given up": (
        [run("hps_tf", gave_up="5 requests in a row failed: boom"), REFERENCE],
        "launch 2: hps_tf was given up after 5 requests in a row failed: boom",
    ),
    "someone else": (
        [
            run(
                "hps_tf",
                *[records([200] * 5)] * 2,
                steps=[{DENSE: count(5)}, {DENSE: count(8, expected=5)}],
            ),
            REFERENCE,
        ],
        "launch 2: hps_tf round 2: dense at here:1 counted 8 requests where 5 were sent: "
        "something else used the server",
    ),
    "not counted": (
        [run("hps_tf", records([200] * 10), steps=[{DENSE: count(3, expected=10)}]), REFERENCE],
        "launch 2: hps_tf round 1: dense at here:1 counted only 3 of the 10 requests that were "
        "answered",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_must_not_count_says_why(name: str) -> None:
    bad, why = INVALID[name]
    measurement = measured([FINE, REFERENCE], bad, min_requests=10)
    assert measurement.invalid == why


def test_a_launch_without_an_answer_is_left_out() -> None:
    measurement = measured([run("hps_tf", records([], failed=5)), REFERENCE], [FINE, REFERENCE])
    assert [launch.launch for launch in measurement.launches] == [2]
    assert measurement.invalid == "launch 1: hps_tf had 5 of 5 requests fail: status 500: boom"
    without_reference = measured([FINE, run("native_tf", records([], failed=5))])
    assert without_reference.launches == ()
    assert without_reference.invalid is not None


def test_what_ran_a_variant_is_said_once_and_each_where_launches_differ() -> None:
    def launch(engine: str | None) -> list[ParticipantRun]:
        return [replace(run("hps_tf", records([100, 100])), engine=engine), REFERENCE]

    assert measured(launch(None)).engine is None
    assert measured(launch(None)).under_test == {}
    same = measured(launch("TensorFlow, GPU"), launch("TensorFlow, GPU"))
    assert same.under_test == {"engine": "TensorFlow, GPU"}
    assert measured(launch("CUDA"), launch("CPU")).engine == "CUDA or CPU"
