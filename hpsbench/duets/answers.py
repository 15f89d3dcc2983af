"""Do two servers answer the same? Pure: tensors of both sides in, the difference in words out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpsbench.load.client import Tensor

#: Answers of float32 models that compute in another order differ by less than this.
TOLERANCE = 1e-3

#: One side's answers to the same requests, by output name.
Answers = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class AnswerDifference:
    """The largest difference of two sides' answers; `problem` says why it is too large.

    `relative` is to the larger of 1 and the baseline's value, so that small values are compared as
    they are. Both are 0 where nothing could be compared.
    """

    requests: int
    absolute: float
    relative: float
    problem: str | None = None

    @property
    def text(self) -> str:
        """The finding in one line."""
        if self.problem is not None:
            return f"answers differ: {self.problem}"
        if self.relative == 0:
            return f"answers are the same ({_counted(self.requests)})"
        return (
            f"answers differ by {self.absolute:.2g} at most ({_counted(self.requests)}, relative "
            f"{self.relative:.2g})"
        )


def answer_difference(
    baseline: Answers, candidate: Answers, *, tolerance: float = TOLERANCE
) -> AnswerDifference:
    """Return how far the candidate's answers are from the baseline's, request by request.

    Numbers may differ by `tolerance`, relative to the larger of 1 and the baseline's; outputs,
    shapes, types, texts, and what is no number must be the same.
    """
    absolute = relative = 0.0
    for number, (ours, theirs) in enumerate(zip(baseline, candidate, strict=True), start=1):
        if ours.keys() != theirs.keys():
            names = f"{', '.join(sorted(ours))} -> {', '.join(sorted(theirs))}"
            return _too_far(baseline, f"request {number} has other outputs: {names}")
        for name in ours:
            a, b = ours[name], theirs[name]
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                kinds = f"{a.dtype} {list(a.shape)} -> {b.dtype} {list(b.shape)}"
                return _too_far(baseline, f"request {number}, output {name}: {kinds}")
            if not np.issubdtype(a.dtype, np.number):
                if not np.array_equal(a, b):
                    return _too_far(baseline, f"request {number}, output {name}: other values")
                continue
            finite = np.isfinite(a)
            if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
                a[~finite], b[~finite], equal_nan=True
            ):
                return _too_far(
                    baseline, f"request {number}, output {name}: values that are no finite numbers"
                )
            ours64, theirs64 = a[finite].astype(np.float64), b[finite].astype(np.float64)
            apart = np.abs(theirs64 - ours64)
            if apart.size:
                absolute = max(absolute, float(apart.max()))
                relative = max(relative, float((apart / np.maximum(1.0, np.abs(ours64))).max()))
    problem = None
    if relative > tolerance:
        problem = (
            f"by {absolute:.2g} at most, relative {relative:.2g}, where {tolerance:g} is allowed"
        )
    return AnswerDifference(
        requests=len(baseline), absolute=absolute, relative=relative, problem=problem
    )


def _too_far(answers: Answers, problem: str) -> AnswerDifference:
    return AnswerDifference(requests=len(answers), absolute=0.0, relative=0.0, problem=problem)


def _counted(requests: int) -> str:
    return f"{requests} request{'s' if requests != 1 else ''}"
