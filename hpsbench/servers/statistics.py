"""Triton's per-model statistics, as counters that can be subtracted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelStatistics:
    """Cumulative counters of one model since the server started; times are total nanoseconds.

    `compute_infer_ns` and its siblings have Triton's meaning: per *request*, summed.
    Subtract an earlier reading from a later one to get an interval.
    """

    success_count: int
    fail_count: int
    execution_count: int
    inference_count: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int

    def __sub__(self, earlier: ModelStatistics) -> ModelStatistics:
        names = self.__dataclass_fields__
        return ModelStatistics(**{n: getattr(self, n) - getattr(earlier, n) for n in names})

    def __add__(self, other: ModelStatistics) -> ModelStatistics:
        names = self.__dataclass_fields__
        return ModelStatistics(**{n: getattr(self, n) + getattr(other, n) for n in names})
