from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpsbench.config import ARRIVALS
from hpsbench.errors import ConfigError
from hpsbench.load.arrivals import Arrivals, read_intervals
from hpsbench.load.records import Nanoseconds
from hpsbench.load.schedule import (
    constant_arrivals,
    poisson_arrivals,
    recorded_arrivals,
    spike_arrivals,
)

EVERY_KIND = [
    Arrivals(kind=kind, intervals_ns=(1, 2, 3) if kind == "recorded" else ()) for kind in ARRIVALS
]


@pytest.mark.parametrize("arrivals", EVERY_KIND, ids=ARRIVALS)
def test_a_schedule_is_increasing_within_its_time_and_of_its_rate(arrivals: Arrivals) -> None:
    times = arrivals.times(500, 40, seed=1)
    assert times.dtype == np.int64
    assert (np.diff(times) >= 0).all()
    assert 0 <= times[0] <= times[-1] < 40e9
    # 20,000 Poisson arrivals have a standard deviation of 141.
    assert len(times) == pytest.approx(20_000, abs=600)
    np.testing.assert_array_equal(times, arrivals.times(500, 40, seed=1))


def test_constant_arrivals_are_evenly_spaced() -> None:
    assert constant_arrivals(4, 1).tolist() == [0, 250_000_000, 500_000_000, 750_000_000]
    assert len(constant_arrivals(200, 30)) == 6000


def test_poisson_intervals_are_exponential_and_independent() -> None:
    intervals = np.diff(poisson_arrivals(200, 200, seed=3)) / 5e6
    assert intervals.mean() == pytest.approx(1, abs=0.02)
    assert intervals.std() == pytest.approx(1, abs=0.03)
    assert (intervals > 1).mean() == pytest.approx(np.exp(-1), abs=0.01)
    assert abs(np.corrcoef(intervals[:-1], intervals[1:])[0, 1]) < 0.02


def test_another_seed_is_another_schedule_of_the_same_rate() -> None:
    first, second = (poisson_arrivals(200, 10, seed=seed) for seed in (1, 2))
    assert first[0] != second[0]


def test_a_spike_has_its_factor_in_the_middle_tenth() -> None:
    times = spike_arrivals(1000, 100, factor=5, seed=1) / 1e9
    inside = np.count_nonzero((times >= 45) & (times < 55)) / 10
    outside = np.count_nonzero((times < 45) | (times >= 55)) / 90
    assert inside / outside == pytest.approx(5, rel=0.05)
    assert np.count_nonzero(times < 45) == pytest.approx(np.count_nonzero(times >= 55), rel=0.03)


def test_recorded_intervals_start_over() -> None:
    times = recorded_arrivals([100_000_000, 300_000_000], 1)
    assert (times / 1e6).round().tolist() == [100, 400, 500, 800, 900]


def test_recorded_intervals_are_stretched_to_a_rate() -> None:
    times = recorded_arrivals([1, 3], 1, rate_hz=10)
    assert (np.diff(times) / 1e6).round().tolist() == [150, 50] * 4
    assert Arrivals(kind="recorded", intervals_ns=(10**8, 3 * 10**8)).recorded_rate_hz == 5


NONSENSE: dict[str, Callable[[], Nanoseconds]] = {
    "rate": lambda: poisson_arrivals(0, 1, seed=1),
    "duration": lambda: constant_arrivals(1, -1),
    "factor": lambda: spike_arrivals(1, 1, factor=0, seed=1),
    "negative": lambda: recorded_arrivals([1, -1], 1),
    "not all of them 0": lambda: recorded_arrivals([0, 0], 1),
}


@pytest.mark.parametrize("word", NONSENSE)
def test_a_schedule_that_cannot_be_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=word):
        NONSENSE[word]()


def test_intervals_are_read_as_perf_analyzer_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "intervals"
    path.write_text("100\n250\n\n50\n")
    assert read_intervals(path) == (100_000, 250_000, 50_000)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("100\n1.5\n", "line 2 is '1.5'"), ("", "no usable"), ("0\n0\n", "no usable")],
)
def test_a_file_of_anything_else_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "intervals"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_intervals(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_intervals(tmp_path / "missing")
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is no text"):
        read_intervals(path)


def test_kind_and_intervals_must_agree() -> None:
    with pytest.raises(ConfigError, match="unknown arrivals 'bursty'"):
        Arrivals(kind="bursty")
    with pytest.raises(ConfigError, match="need a file"):
        Arrivals(kind="recorded")
    with pytest.raises(ConfigError, match="others take none"):
        Arrivals(kind="poisson", intervals_ns=(1,))
