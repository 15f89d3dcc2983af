"""A whole report made up for the tests: six variants, four batch sizes, every outcome."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from hpsbench import published
from hpsbench.baselines import Baseline
from hpsbench.duets.comparisons import ComparedBenchmark, ComparedLaunch, StoredComparison
from hpsbench.duets.decision import HINTS, DuetPolicy
from hpsbench.duets.resolution import Decision, SelfTest, resolutions
from hpsbench.measurements import LaunchMeasurement, Measurement, ServerTimes
from hpsbench.presets import load_suite
from hpsbench.report.contents import Contents
from hpsbench.runs import Result, Run, combined
from hpsbench.servers.traces import STAGES
from hpsbench.session import reference_of
from hpsbench.stages import StageProfile, StageSummary
from hpsbench.telemetry import Telemetry
from hpsbench.telemetry_gpu import GpuTelemetry
from hpsbench.telemetry_host import HostTelemetry
from hpsbench.verdict import Outcome, Verdict, judge, vanished
from hpsbench.workload import row_of
from tests.scripted import MACHINE, measurement, run_of, verdict
from tests.scripted_load import load_curve, loaded_variant

BASELINES_FOLDER = Path(__file__).parents[1] / "baselines"
BATCH_SIZES = (32, 256, 1024, 4096)
#: Each variant's p10 in ms at those sizes, and what it is divided by.
P10_MS = {
    "native_tf": (0.93, 1.71, 4.86, 18.4),
    "native_tf_hybrid": (0.97, 1.82, 5.11, 19.2),
    "hps_tf": (0.98, 1.74, 4.71, 17.6),
    "hps_ensemble": (1.64, 2.96, 7.92, 31.5),
    "hps_onnx_fp32": (0.71, 1.38, 4.02, 15.1),
    "hps_onnx_fp16": (0.74, 1.49, 4.44, 17.0),
}
NUMPY_MS = (1.9, 5.2, 17.0, 66.0)


def sample_measurement(
    variant: str,
    batch_size: int,
    *,
    session: int = 0,
    slowdown: float = 1.0,
    launches: int = 4,
    keys: str = "",
) -> Measurement:
    """Return a measurement with lifelike latencies: a floor, a skewed body, a few stragglers."""
    at = BATCH_SIZES.index(batch_size)
    rng = np.random.default_rng([session, at, *variant.encode(), *keys.encode()])
    reference_ms = NUMPY_MS[at] if variant == "native_tf" else P10_MS["native_tf"][at]
    drift = 1 + 0.03 * rng.standard_normal()
    measured = []
    for number in range(1, launches + 1):
        scale_ms = P10_MS[variant][at] * slowdown * drift * (1 + 0.008 * rng.standard_normal())
        latencies = scale_ms * (0.97 + 0.14 * rng.gamma(1.6, 0.5, 120))
        latencies[rng.random(120) < 0.02] *= 2.5
        latencies_ns = tuple(int(v * 1e6) for v in latencies)
        p10_ns, p50_ns = (int(v) for v in np.percentile(latencies_ns, (10, 50)))
        mean_ns = int(np.mean(latencies_ns))
        measured.append(
            LaunchMeasurement(
                launch=number,
                latencies_ns=latencies_ns,
                failed=0,
                p10_ns=p10_ns,
                p50_ns=p50_ns,
                mean_ns=mean_ns,
                reference_p10_ns=int(reference_ms * drift * 1e6),
                reference_p50_ns=int(reference_ms * drift * 1.08e6),
                server=ServerTimes(
                    queue_ns=int(28_000 + 0.01 * mean_ns),
                    compute_input_ns=int(35_000 + 0.04 * mean_ns),
                    compute_infer_ns=int(0.72 * mean_ns),
                    compute_output_ns=int(22_000 + 0.01 * mean_ns),
                ),
                stages=_stages(mean_ns, int(reference_ms * drift * 1.1e6)),
                hit_rates=_hit_rates(variant, keys, at),
                telemetry=_telemetry(number, at),
            )
        )
    row = row_of(variant, keys)
    return Measurement(
        benchmark=f"laptop-{row}-b{batch_size}",
        variant=row,
        batch_size=batch_size,
        reference=reference_of(row, "native_tf"),
        launches=tuple(measured),
        interleaved_with=tuple(row_of(v, keys) for v in P10_MS if v != variant),
    )


def _stages(mean_ns: int, reference_ns: int) -> StageProfile:
    def summary(share: float) -> StageSummary:
        typical_ns = int(share * mean_ns)
        return StageSummary(
            typical_ns=typical_ns,
            p10_ns=int(0.9 * typical_ns),
            p50_ns=typical_ns,
            p90_ns=int(1.4 * typical_ns),
            p99_ns=int(2.2 * typical_ns),
        )

    shares = dict(zip(STAGES, (0.03, 0.08, 0.7, 0.04, 0.15), strict=True))
    return StageProfile(
        requests=50,
        reference_ns=reference_ns,
        whole=summary(1.0),
        stages={stage: summary(share) for stage, share in shares.items()},
    )


def _hit_rates(variant: str, keys: str, at: int) -> dict[str, float]:
    if variant.startswith("native_tf"):
        return {}
    cached = 0.655 + 0.02 * at if keys else 1.0
    return {"GPU 0 cache": cached, "host table": 1.0}


def _telemetry(launch: int, at: int) -> Telemetry:
    return Telemetry(
        elapsed_s=12.5,
        samples=26,
        sampling_cpu_s=0.009,
        host=HostTelemetry(
            cpus=16,
            own=0.21,
            others=0.02 + 0.01 * launch,
            steal=0.001,
            iowait=0.0,
            frequency_mhz=2600.0,
            min_frequency_mhz=2590.0,
            load_1min=2.25,
            min_available_bytes=98 * 2**30,
            swapped_in_bytes=0,
            swapped_out_bytes=0,
        ),
        gpus=(
            GpuTelemetry(
                name="GPU 0 (NVIDIA H100 80GB HBM3)",
                used=True,
                sm_clock_mhz=1965.0,
                min_sm_clock_mhz=1905.0,
                memory_clock_mhz=2619.0,
                power_w=310.0 + 40 * at,
                energy_j=3875.0 + 500 * at,
                max_temperature_c=51.0,
                utilization=0.74,
                max_memory_bytes=41 * 2**30,
                reasons={"power cap": 0.12} if at == 3 else {},
                shared_with=(),
            ),
        ),
    )


def duets() -> list[StoredComparison]:
    """Return a confirmed regression, a pass, an invalid one, and all of them in one comparison."""
    slow, steady = (1.052, 1.061, 1.047, 1.058), (1.003, 0.994, 1.011, 0.998)

    def duet(
        name: str, outcome: Outcome, text: str, *sessions: Sequence[float]
    ) -> ComparedBenchmark:
        changes = [ratio - 1 for session in sessions for ratio in session]
        return ComparedBenchmark(
            model=name,
            batch_size=64,
            launches=tuple(
                ComparedLaunch(
                    session=number,
                    ratio_p10=ratio,
                    ratio_pairs=1 + 1.2 * (ratio - 1),
                    ratio_p50=1 + 1.6 * (ratio - 1),
                    baseline_p10_ns=1_710_000,
                    candidate_p10_ns=round(1_710_000 * ratio),
                )
                for number, session in enumerate(sessions, start=1)
                for ratio in session
            ),
            verdict=Verdict(
                outcome=outcome,
                benchmark=name,
                text=f"{name}: {text}",
                hint="" if outcome is Outcome.PASS else HINTS[outcome],
                statistic="pairs" if "pairs 5.4%" in text else "p10",
                change=fmean(changes) if changes else None,
                limit=0.03 if changes else None,
                change_p50=1.6 * fmean(changes) if changes else None,
                limit_p50=0.10 if changes else None,
            ),
            answers="answers are the same (4 requests)" if sessions else None,
        )

    def comparison(name: str, *benchmarks: ComparedBenchmark) -> StoredComparison:
        return StoredComparison(
            comparison_id=f"20260108T030405.000Z-{name}",
            recorded_at="2026-01-08T03:04:05Z",
            machine=MACHINE.cls,
            baseline="main (revision 4d84dd7b1c02)",
            candidate="HEAD (revision cbe677d41e9a)",
            policy=DuetPolicy(),
            benchmarks=benchmarks,
        )

    each = [
        duet(
            "hps_tf",
            Outcome.REGRESSED,
            "pairs 5.4% slower (+5.5%, then +5.3%; limit 3.0%), p50 8.7% slower (+8.8%, then "
            "+8.6%; limit 10.0%), p99 +9.1% (not judged, of only 1000 requests); 8 launches of "
            "125 pairs",
            slow,
            slow[::-1],
        ),
        duet(
            "hps_ensemble",
            Outcome.PASS,
            "p10 the same (limit 3.0%), p50 0.2% slower (limit 10.0%); 4 launches of 125 pairs",
            steady,
        ),
        duet(
            "hps_onnx_fp16",
            Outcome.INVALID,
            "answers differ: by 0.02 at most, relative 0.02, where 0.001 is allowed; a candidate "
            "that answers otherwise is not measured",
        ),
    ]
    worst_first = (each[0], each[2], each[1])
    return [*(comparison(one.name, one) for one in each), comparison("all", *worst_first)]


def selftest_of_the_host(neighbours: int = 0) -> SelfTest:
    """Return a self-test of a hundred decisions on each of two changes."""
    slower = {0.0: 1, 0.05: 97}
    decisions = [
        Decision(
            injected=share,
            outcome=Outcome.REGRESSED if number < found else Outcome.PASS,
            statistic="p10",
            change=share,
            change_p50=share,
            mean_change=share + 0.01 * (number % 7 - 3),
            ratios_p10=(1 + share,),
            ratios_pairs=(1 + share,),
            ratios_p50=(1 + share,),
            sessions=1 + bool(share),
            measure_s=2.8,
            total_s=9.5,
        )
        for share, found in slower.items()
        for number in range(100)
    ]
    return SelfTest(
        recorded_at="2026-01-07T03:04:05Z",
        machine=MACHINE.cls,
        policy=DuetPolicy(),
        request_ns=2_000_000,
        confidence=0.95,
        resolutions=resolutions(decisions),
        decisions=tuple(decisions),
        neighbours=neighbours,
    )


def sample_run(session: int = 0, *, variants: Sequence[str] = tuple(P10_MS)) -> Run:
    """Return one session; the sessions follow each other by a day."""
    measured = [sample_measurement(v, b, session=session) for b in BATCH_SIZES for v in variants]
    measured += [
        sample_measurement(v, b, session=session, slowdown=1.04, keys="zipf")
        for b in BATCH_SIZES[2:]
        for v in ("native_tf", "hps_tf", "hps_ensemble")
        if v in variants
    ]
    day = f"2026-01-{session + 1:02}"
    run = run_of(*measured, run_id=f"{day.replace('-', '')}T030405Z-{session:06}")
    return dataclasses.replace(
        run,
        preset="laptop",
        recorded_at=f"{day}T03:04:05Z",
        under_test={"commit": f"{session:x}a7c0de4b1f2", **run.under_test},
    )


def every_outcome() -> Contents:
    """Return a report's contents in which every outcome occurs, with three earlier sessions."""
    earlier = [sample_run(session) for session in range(3)]
    stored = {b.benchmark: b for b in combined(earlier[:2])}
    run = sample_run(7)
    slowdowns = {
        "laptop-hps_ensemble-b1024": 1.21,
        "laptop-hps_tf-b4096": 1.13,
        "laptop-hps_onnx_fp16-b256": 1.05,
        "laptop-hps_onnx_fp32-b32": 0.86,
    }
    without = ("laptop-hps_onnx_fp32-b4096", "laptop-hps_onnx_fp16-b4096")
    elsewhere = ("laptop-native_tf_hybrid-b4096",)
    results = []
    for result in run.results:
        m = result.measurement
        name = m.benchmark
        if name in slowdowns:
            m = sample_measurement(m.variant, m.batch_size, session=7, slowdown=slowdowns[name])
        if name == "laptop-hps_ensemble-b32":
            m = dataclasses.replace(m, invalid="launch 2: hps_ensemble had 3 of 120 requests fail")
        known: Baseline | None = stored[name]
        if name in (*without, *elsewhere):
            known = None
            del stored[name]
        judged = judge(
            m,
            known,
            load_suite("smoke").gate,
            workload=run.workload,
            under_test=run.under_test,
            machine=run.machine.cls,
            elsewhere=["gpu-nvidia-h100-80gb-hbm3"] * (name in elsewhere),
        )
        results.append(Result(test=f"tests/t.py::test[{name}]", measurement=m, verdict=judged))
    gone = dataclasses.replace(stored["laptop-hps_tf-b32"], benchmark="laptop-hps_old-b32")
    return Contents(
        run=dataclasses.replace(
            run, results=tuple(results), vanished=(vanished(gone),), loads=(loaded_variant(),)
        ),
        baselines=stored,
        publications=published.load(BASELINES_FOLDER),
        earlier=earlier,
        comparisons=duets(),
        loads=[load_curve()],
        selftests=[selftest_of_the_host(), selftest_of_the_host(neighbours=1)],
    )


def noisy() -> Contents:
    """Return a report of a machine that can resolve nothing: changes beyond any scale."""
    sizes = (7, 32, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 131072)
    wild = ((1.0, 1.1), (4.0, 0.3), (0.2, 6.0))
    sessions = [
        run_of(
            *(
                measurement(variant, size, launches=launches, reference_ns=900_000 + 9_137 * size)
                for size in sizes
                for variant, launches in zip(variants, wild, strict=True)
            ),
            run_id=f"20260102T030405Z-{number:06}",
        )
        for number, variants in enumerate(itertools.permutations(("native_tf", "hps_tf", "newer")))
    ]
    stored = {b.benchmark: b for b in combined(sessions[:1])}
    results = tuple(
        dataclasses.replace(
            result, verdict=verdict(result.measurement, stored[result.measurement.benchmark])
        )
        for result in sessions[-1].results
    )
    return Contents(
        run=dataclasses.replace(sessions[-1], results=results),
        baselines=stored,
        publications=published.load(BASELINES_FOLDER),
        earlier=sessions[:-1],
    )
