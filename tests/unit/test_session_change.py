"""How far sessions are apart: its laws by Hypothesis, its promise by simulation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsbench.ratios import Statistic
from hpsbench.session_change import SESSION_SPREAD, Change, compare

ratios = st.lists(st.floats(0.2, 5.0), min_size=2, max_size=6)
sessions = st.lists(ratios, min_size=1, max_size=5)
scales = st.floats(0.01, 100.0)


def change(candidate: list[float], baseline: list[list[float]]) -> Change:
    return compare(
        candidate,
        baseline,
        confidence=0.99,
        noise_threshold=0.03,
        session_spread=SESSION_SPREAD[Statistic.P10],
    )


@given(ratios, sessions, scales)
def test_a_change_does_not_depend_on_the_unit(
    candidate: list[float], baseline: list[list[float]], scale: float
) -> None:
    scaled = change([r * scale for r in candidate], [[r * scale for r in s] for s in baseline])
    plain = change(candidate, baseline)
    assert scaled.value == pytest.approx(plain.value, abs=1e-9)
    assert scaled.margin == pytest.approx(plain.margin, rel=1e-6, abs=1e-9)


@given(ratios, sessions, st.floats(1.0, 3.0))
def test_slower_is_a_larger_change_with_the_same_limit(
    candidate: list[float], baseline: list[list[float]], slowdown: float
) -> None:
    before = change(candidate, baseline)
    after = change([r * slowdown for r in candidate], baseline)
    assert after.limit == pytest.approx(before.limit)
    assert after.value >= before.value


@given(ratios, sessions)
def test_the_order_of_launches_and_sessions_does_not_matter(
    candidate: list[float], baseline: list[list[float]]
) -> None:
    plain = change(candidate, baseline)
    shuffled = change(candidate[::-1], [s[::-1] for s in baseline[::-1]])
    assert shuffled.value == pytest.approx(plain.value, abs=1e-9)
    assert shuffled.margin == pytest.approx(plain.margin)


@given(ratios, sessions)
def test_regressed_and_improved_mirror_each_other(
    candidate: list[float], baseline: list[list[float]]
) -> None:
    plain = change(candidate, baseline)
    mirrored = change([1 / r for r in candidate], [[1 / r for r in s] for s in baseline])
    assert mirrored.value == pytest.approx(-plain.value, abs=1e-9)
    assert mirrored.limit == pytest.approx(plain.limit)


@given(ratios, sessions)
def test_the_limit_covers_noise_threshold_and_interval(
    candidate: list[float], baseline: list[list[float]]
) -> None:
    found = change(candidate, baseline)
    assert found.limit >= math.log(1.03)
    assert found.limit >= found.margin > 0


def test_launches_alone_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="two launches"):
        change([1.0], [[1.0]])


@dataclasses.dataclass(frozen=True)
class Noise:
    """Standard deviations of the log ratio between launches and between sessions."""

    launch: float
    session: float


@pytest.mark.parametrize(
    ("noise", "false_alarms", "found"),
    [
        pytest.param(Noise(launch=0.01, session=0.01), 0.001, 0.999, id="quiet"),
        pytest.param(Noise(launch=0.02, session=0.015), 0.003, 0.999, id="usual"),
        pytest.param(Noise(launch=0.03, session=0.02), 0.015, 0.98, id="noisy"),
    ],
)
def test_repeats_raise_no_alarm_and_a_fifth_slower_is_found(
    noise: Noise, false_alarms: float, found: float
) -> None:
    rng = np.random.default_rng(20260101)

    def session(slowdown: float) -> list[float]:
        shift = rng.normal(math.log(slowdown), noise.session)
        return list(np.exp(shift + rng.normal(0, noise.launch, 4)))

    def rate(slowdown: float, trials: int) -> float:
        changes = [change(session(slowdown), [session(1.0)]) for _ in range(trials)]
        return sum(found.value > found.limit for found in changes) / trials

    assert rate(1.0, 4000) <= false_alarms
    assert rate(1.2, 2000) >= found
