"""Measurements made up for the tests: what a session would have recorded, without a server."""

from __future__ import annotations

from collections.abc import Sequence

from hpsbench.measurements import LaunchMeasurement, Measurement, ServerTimes
from hpsbench.session import reference_of

STEADY = (1.0, 1.008, 0.994, 1.002)


def measurement(
    variant: str = "hps_tf",
    batch_size: int = 64,
    *,
    slowdown: float = 1.0,
    slowdown_p50: float | None = None,
    launches: Sequence[float] = STEADY,
    preset: str = "smoke",
    reference_ns: int = 1_000_000,
    requests: int = 20,
    invalid: str | None = None,
) -> Measurement:
    """Return a measurement whose launches have the ratios `launches`, each times `slowdown`."""
    return Measurement(
        benchmark=f"{preset}-{variant}-b{batch_size}",
        variant=variant,
        batch_size=batch_size,
        reference=reference_of(variant),
        launches=tuple(
            _launch(
                number,
                p10_ns=round(reference_ns * ratio * slowdown),
                p50_ns=round(reference_ns * 1.1 * ratio * (slowdown_p50 or slowdown)),
                reference_ns=reference_ns,
                requests=requests,
            )
            for number, ratio in enumerate(launches, start=1)
        ),
        invalid=invalid,
        interleaved_with=("native_tf",),
    )


def _launch(
    number: int, *, p10_ns: int, p50_ns: int, reference_ns: int, requests: int
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
    )
