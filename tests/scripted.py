"""Measurements made up for the tests: what a session would have recorded, without a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hpsbench.baselines import Baseline
from hpsbench.machine import Machine
from hpsbench.measurements import LaunchMeasurement, Measurement, ServerTimes
from hpsbench.models.kinds import kind_of
from hpsbench.presets import load_suite, preset_names
from hpsbench.runs import Result, Run, combined, new_run
from hpsbench.session import reference_of
from hpsbench.verdict import Verdict, judge
from hpsbench.workload import subject_settings, workload_of

STEADY = (1.0, 1.008, 0.994, 1.002)
#: Where the fastest tenth is luck, and whoever is asked one behind the other meets the same.
LUCK, EVEN = (0.93, 1.08, 0.96, 1.05), (1.002, 0.998, 1.001, 0.999)


def measurement(
    variant: str = "hps_tf",
    batch_size: int = 64,
    *,
    slowdown: float = 1.0,
    slowdown_p50: float | None = None,
    launches: Sequence[float] = STEADY,
    pairs: Sequence[float] | None = None,
    preset: str = "smoke",
    reference_ns: int = 1_000_000,
    requests: int = 20,
    invalid: str | None = None,
) -> Measurement:
    """Return a measurement whose launches have the ratios `launches`, each times `slowdown`.

    Their requests make the ratios `pairs`, times the same, or cannot be paired.
    """
    reference = kind_of(load_suite(preset)).reference if preset in preset_names() else "native_tf"
    return Measurement(
        benchmark=f"{preset}-{variant}-b{batch_size}",
        variant=variant,
        batch_size=batch_size,
        reference=reference_of(variant, reference),
        launches=tuple(
            _launch(
                number,
                p10_ns=round(reference_ns * ratio * slowdown),
                p50_ns=round(reference_ns * 1.1 * ratio * (slowdown_p50 or slowdown)),
                reference_ns=reference_ns,
                requests=requests,
                ratio_pairs=None if of_pairs is None else of_pairs * slowdown,
            )
            for number, (ratio, of_pairs) in enumerate(
                zip(launches, pairs or [None] * len(launches), strict=True), start=1
            )
        ),
        invalid=invalid,
        interleaved_with=(reference,),
    )


def _launch(
    number: int,
    *,
    p10_ns: int,
    p50_ns: int,
    reference_ns: int,
    requests: int,
    ratio_pairs: float | None,
) -> LaunchMeasurement:
    tenth = max(1, requests // 10)
    latencies_ns = (p10_ns,) * tenth + (p50_ns,) * (requests - tenth)
    return LaunchMeasurement(
        launch=number,
        latencies_ns=latencies_ns,
        failed=0,
        p10_ns=p10_ns,
        p50_ns=p50_ns,
        mean_ns=p50_ns,
        reference_p10_ns=reference_ns,
        reference_p50_ns=round(reference_ns * 1.1),
        server=ServerTimes(
            queue_ns=20_000,
            compute_input_ns=30_000,
            compute_infer_ns=round(p10_ns * 0.8),
            compute_output_ns=10_000,
        ),
        ratio_pairs=ratio_pairs,
    )


MACHINE = Machine(
    cls="cpu-test-2c", fingerprint={"cpu": "Test CPU"}, versions={"tensorflow": "2.21.0"}
)


def run_of(
    *measurements: Measurement,
    run_id: str = "20260102T030405Z-aaaaaa",
    recorded_at: str = "2026-01-02T03:04:05Z",
    machine: Machine = MACHINE,
) -> Run:
    """Return the run of a smoke session that measured these, found nothing to compare with."""
    suite = load_suite("smoke")
    run = dataclasses.replace(new_run(suite, machine), run_id=run_id, recorded_at=recorded_at)
    results = [
        Result(test=f"tests/test_it.py::test_it[{m.benchmark}]", measurement=m, verdict=verdict(m))
        for m in measurements
    ]
    return dataclasses.replace(run, results=tuple(results))


def baseline_of(*sessions: Measurement, minutes_apart: int = 120) -> Baseline:
    """Return the baseline of one benchmark, measured in these sessions of one day."""
    runs = []
    for number, of_session in enumerate(sessions):
        hours, minutes = divmod(number * minutes_apart, 60)
        runs.append(
            run_of(
                of_session,
                run_id=f"20260102T{hours:02}{minutes:02}05Z-{number:06}",
                recorded_at=f"2026-01-02T{hours:02}:{minutes:02}:05Z",
            )
        )
    (baseline,) = combined(runs)
    return baseline


def verdict(
    measurement: Measurement, baseline: Baseline | None = None, *, elsewhere: Sequence[str] = ()
) -> Verdict:
    """Return the verdict of the smoke suite on `MACHINE`."""
    suite = load_suite("smoke")
    return judge(
        measurement,
        baseline,
        suite.gate,
        workload=workload_of(suite),
        under_test={**MACHINE.versions, **subject_settings(suite)},
        machine=MACHINE.cls,
        elsewhere=elsewhere,
    )
