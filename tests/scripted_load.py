"""Curves of open-loop load for the tests of reports, without anything that was measured."""

from __future__ import annotations

from hpsbench.load_curve import PERCENTILES, Knee, LoadCurve, LoadPoint
from hpsbench.load_results import LoadResult
from hpsbench.runs import LoadMeasurement
from hpsbench.stats import Percentile
from tests.scripted import MACHINE

_SHARES = {50.0: 0.3, 90.0: 0.6, 95.0: 0.75, 99.0: 1.0, 99.9: 1.4}


def load_point(
    rate_hz: float,
    p99_ms: float,
    *,
    failed: int = 0,
    delayed_by_client: int = 0,
    saturated: bool = False,
    within_slo: float | None = None,
    invalid: str | None = None,
) -> LoadPoint:
    """Return a rate of ten seconds; p99.9 is bounded on one side alone."""
    requests = int(10 * rate_hz)
    return LoadPoint(
        asked_hz=rate_hz,
        offered_hz=rate_hz,
        achieved_hz=min(rate_hz, 520.0),
        duration_s=10.0,
        requests=requests,
        failed=failed,
        timed_out=min(failed, 1),
        unsent=0,
        delayed_by_server=0,
        delayed_by_client=delayed_by_client,
        max_delay_ns=2_345_000 if delayed_by_client else 40_000,
        percentiles=tuple(
            Percentile(
                q=q,
                value_ns=int(p99_ms * 1e6 * share),
                low_ns=int(p99_ms * 0.9e6 * share),
                high_ns=None if q > 99 else int(p99_ms * 1.2e6 * share),
                min_requests=5000,
            )
            for q, share in _SHARES.items()
            if q in PERCENTILES
        ),
        saturated=saturated,
        within_slo=None if within_slo is None else int(requests * within_slo),
        invalid=invalid,
    )


def load_curve() -> LoadResult:
    """Return a sweep with an SLO that saturates at its fourth rate."""
    return LoadResult(
        recorded_at="2026-01-06T03:04:05Z",
        machine=MACHINE.cls,
        source="models/",
        model="hps_tf",
        protocol="http",
        batch_size=64,
        curve=LoadCurve(
            arrivals="poisson",
            unloaded_ns=1_900_000,
            capacity_hz=520.0,
            slo_ns=20_000_000,
            points=(
                load_point(100.0, 3.1, within_slo=1.0),
                load_point(200.0, 4.4, within_slo=0.9995),
                load_point(400.0, 12.5, within_slo=0.993, failed=3, delayed_by_client=8),
                load_point(800.0, 3000.0, within_slo=0.25, saturated=True),
            ),
            knee=Knee(rate_hz=400.0, next_hz=800.0, limit_ns=20_000_000, is_slo=True),
        ),
    )


def loaded_variant() -> LoadMeasurement:
    """Return a variant of a run at two rates, the second of which the client did not keep."""
    return LoadMeasurement(
        test="tests/t.py::test_load[laptop-hps_ensemble-b64]",
        benchmark="laptop-hps_ensemble-b64",
        variant="hps_ensemble",
        batch_size=64,
        curve=LoadCurve(
            arrivals="constant",
            unloaded_ns=5_100_000,
            capacity_hz=None,
            slo_ns=None,
            points=(
                load_point(20.0, 7.5),
                load_point(
                    40.0, 11.5, delayed_by_client=31,
                    invalid="31 of 400 requests left more than 1 ms late (the worst 2.3 ms) with "
                    "connections free: the machine is too busy for the client to keep time",
                ),
            ),
        ),
    )  # fmt: skip
