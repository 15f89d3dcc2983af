"""From what was recorded to what is judged: one `Measurement` per variant and batch size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerTimes:
    """Mean nanoseconds per request inside Triton, over one launch; an ensemble's steps added up."""

    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int


@dataclass(frozen=True, kw_only=True)
class LaunchMeasurement:
    """One variant at one batch size on one fresh server: *one* observation for the verdict.

    `ratio_p10` and `ratio_p50` divide by the reference that ran interleaved on the same server.
    """

    launch: int
    latencies_ns: tuple[int, ...]
    failed: int
    p10_ns: int
    p50_ns: int
    mean_ns: int
    reference_p10_ns: int
    reference_p50_ns: int
    server: ServerTimes | None

    @property
    def ratio_p10(self) -> float:
        return self.p10_ns / self.reference_p10_ns

    @property
    def ratio_p50(self) -> float:
        return self.p50_ns / self.reference_p50_ns


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything measured of one benchmark in one session; `invalid` says why it must not count."""

    benchmark: str
    variant: str
    batch_size: int
    reference: str
    launches: tuple[LaunchMeasurement, ...]
    invalid: str | None = None
