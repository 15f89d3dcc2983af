from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsbench import stats

LATENCIES = st.lists(st.integers(1, 10**12), min_size=1, max_size=200)


def test_percentiles_are_linear_between_ranks() -> None:
    summary = stats.summarize(np.arange(11, dtype=np.int64) * 100)
    assert (summary.min_ns, summary.p10_ns, summary.p50_ns) == (0, 100, 500)
    assert (summary.p90_ns, summary.p99_ns, summary.max_ns) == (900, 990, 1000)
    assert stats.percentile_ns([10, 20], 50) == 15
    assert stats.percentile_ns([10, 20], 25) == 12  # 12.5, rounded half to even


def test_one_latency_is_every_percentile() -> None:
    summary = stats.summarize([7])
    assert {summary.min_ns, summary.p10_ns, summary.p99_ns, summary.max_ns, summary.mean_ns} == {7}
    assert (summary.n, summary.stdev_ns) == (1, 0)


@given(LATENCIES)
def test_a_summary_is_ordered_and_agrees_with_the_standard_library(values: list[int]) -> None:
    summary = stats.summarize(values)
    ordered = [summary.min_ns, summary.p10_ns, summary.p50_ns]
    ordered += [summary.p90_ns, summary.p99_ns, summary.max_ns]
    assert ordered == sorted(ordered)
    assert summary.n == len(values)
    assert summary.p50_ns == pytest.approx(statistics.median(values), abs=1)
    assert summary.mean_ns == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1)
    if len(values) > 1:
        assert summary.stdev_ns == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1)


@given(LATENCIES, st.randoms())
def test_order_does_not_matter(values: list[int], random: object) -> None:
    shuffled = values[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert stats.summarize(shuffled).p10_ns == stats.summarize(values).p10_ns


@pytest.mark.parametrize("values", [[], [[1, 2]]], ids=["none", "two dimensions"])
def test_what_cannot_be_summarized_is_refused(values: list[object]) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        stats.summarize(values)
    with pytest.raises(ValueError, match="at least one value"):
        stats.percentile_ns(values, 50)
