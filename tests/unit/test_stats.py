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


def exponential(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).exponential(1e6, n).astype(np.int64)


@pytest.mark.parametrize("q", [50, 90, 99])
def test_bounds_hold_as_often_as_they_say(q: float) -> None:
    true_ns = -np.log(1 - q / 100) * 1e6
    held = 0
    for seed in range(300):
        found = stats.open_loop_percentile(exponential(2000, seed), q)
        assert found.low_ns is not None
        assert found.high_ns is not None
        held += found.low_ns <= true_ns <= found.high_ns
    assert held >= 0.93 * 300


def test_bounds_hold_where_neighbours_are_slow_together() -> None:
    # Blocks of 30 equal latencies: 3000 of them say no more than 100.
    held, naive = 0, 0
    true_ns = -np.log(0.1) * 1e6
    for seed in range(200):
        blocks = np.repeat(exponential(200, seed), 30)
        found = stats.open_loop_percentile(blocks, 90)
        assert found.value_ns is not None
        held += (found.low_ns or 0) <= true_ns <= (found.high_ns or np.inf)
        shuffled = np.random.default_rng(seed).permutation(blocks)
        other = stats.open_loop_percentile(shuffled, 90)
        assert other.low_ns is not None
        assert other.high_ns is not None
        naive += other.low_ns <= true_ns <= other.high_ns
    assert held >= 0.85 * 200
    assert naive < 0.6 * 200


def test_too_few_requests_say_how_many_it_takes() -> None:
    assert stats.min_requests(99, 0.95) == 368
    assert stats.min_requests(99.9, 0.95) == 3688
    assert stats.min_requests(50, 0.95) == 6
    few = stats.open_loop_percentile(exponential(300, 1), 99)
    assert few.value_ns is not None
    assert few.low_ns is not None
    assert few.high_ns is None
    assert few.min_requests >= 368


def test_failed_requests_are_slower_than_every_other() -> None:
    answered = np.arange(1, 91) * 1000
    assert stats.open_loop_percentile(answered, 50, failed=10).value_ns == 50_500
    assert stats.open_loop_percentile(answered, 99, failed=10).value_ns is None
    with pytest.raises(ValueError, match="no request"):
        stats.open_loop_percentile([], 50)
    assert stats.open_loop_percentile([], 50, failed=3).value_ns is None


@pytest.mark.parametrize("q", [0, 100])
def test_no_number_of_requests_bounds_an_extreme(q: float) -> None:
    with pytest.raises(ValueError, match="bounds"):
        stats.min_requests(q, 0.95)
