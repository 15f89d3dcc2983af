"""A whole report made up for the tests: six variants, four batch sizes, every outcome."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpsbench import published
from hpsbench.baselines import Baseline
from hpsbench.config import load_suite
from hpsbench.measurements import LaunchMeasurement, Measurement, ServerTimes
from hpsbench.report.contents import Contents
from hpsbench.runs import Result, Run, combined
from hpsbench.session import reference_of
from hpsbench.verdict import judge, vanished
from tests.scripted import measurement, run_of, verdict

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
    variant: str, batch_size: int, *, session: int = 0, slowdown: float = 1.0, launches: int = 4
) -> Measurement:
    """Return a measurement with lifelike latencies: a floor, a skewed body, a few stragglers."""
    at = BATCH_SIZES.index(batch_size)
    rng = np.random.default_rng([session, at, *variant.encode()])
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
            )
        )
    return Measurement(
        benchmark=f"laptop-{variant}-b{batch_size}",
        variant=variant,
        batch_size=batch_size,
        reference=reference_of(variant),
        launches=tuple(measured),
        interleaved_with=tuple(v for v in P10_MS if v != variant),
    )


def sample_run(session: int = 0, *, variants: Sequence[str] = tuple(P10_MS)) -> Run:
    """Return one session; the sessions follow each other by a day."""
    measured = [sample_measurement(v, b, session=session) for b in BATCH_SIZES for v in variants]
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
        run=dataclasses.replace(run, results=tuple(results), vanished=(vanished(gone),)),
        baselines=stored,
        publications=published.load(BASELINES_FOLDER),
        earlier=earlier,
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
