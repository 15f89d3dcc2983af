"""One benchmark's launches -> the few figures that a table shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean, median

from hpsbench.measurements import Measurement
from hpsbench.session import NATIVE_TF


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Medians over the launches, nanoseconds; `ratio` is p10 over `native_tf`'s, a geometric mean.

    `samples_per_s` is what the closed loop's clients got while it was this variant's turn.
    """

    p10_ns: float
    p50_ns: float
    compute_infer_ns: float | None
    samples_per_s: float
    ratio: float | None


def figures(measurement: Measurement, *, concurrency: int) -> Figures | None:
    """Return a measurement's figures, or None when it has no launch to take them from."""
    launches = measurement.launches
    if not launches:
        return None
    infer = [launch.server.compute_infer_ns for launch in launches if launch.server is not None]
    mean_ns = fmean(launch.mean_ns for launch in launches)
    return Figures(
        p10_ns=median(launch.p10_ns for launch in launches),
        p50_ns=median(launch.p50_ns for launch in launches),
        compute_infer_ns=median(infer) if infer else None,
        samples_per_s=concurrency * measurement.batch_size * 1e9 / mean_ns,
        ratio=_ratio(measurement),
    )


def _ratio(measurement: Measurement) -> float | None:
    if measurement.variant == NATIVE_TF:
        return 1.0
    if measurement.reference != NATIVE_TF:
        return None
    return typical_ratio([[launch.ratio_p10 for launch in measurement.launches]])


def typical_ratio(sessions: Sequence[Sequence[float]]) -> float:
    """Return the geometric mean of ratios of launches, every session counting the same."""
    return geometric_mean(map(geometric_mean, sessions))
