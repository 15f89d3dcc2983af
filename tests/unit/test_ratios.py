"""Latencies to one ratio: what each statistic sees, and what it does not."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from hpsbench.ratios import TRIMMED, Statistic, log_ratio, ratios_alike, ratios_of
from tests.scripted import measurement

STEADY = measurement(launches=(1.0, 1.1)).launches
PAIRED = measurement(launches=(1.0, 1.1), pairs=(1.02, 1.04)).launches


@pytest.mark.parametrize("statistic", Statistic)
def test_a_side_as_slow_again_is_twice_the_other_by_every_statistic(statistic: Statistic) -> None:
    other = np.arange(100, 1100)
    assert log_ratio(2 * other, other, statistic) == pytest.approx(math.log(2))
    assert log_ratio(other, 2 * other, statistic) == pytest.approx(-math.log(2))


def test_pairs_see_what_a_machine_that_changes_its_speed_hides_from_percentiles() -> None:
    speed = np.where(np.arange(1000) % 10 < 5, 1.0, 3.0)
    own, other = 1.05 * 1e6 * speed, 1e6 * speed
    own[:100:10] *= 0.5  # luck, of fewer than are trimmed
    assert log_ratio(own, other, Statistic.PAIRS) == pytest.approx(math.log(1.05))


def test_pairs_leave_out_a_share_at_either_end() -> None:
    ratios = np.linspace(0.5, 2.0, 11)
    middle = np.log(ratios[int(11 * TRIMMED) : 11 - int(11 * TRIMMED)])
    assert log_ratio(1e6 * ratios, np.full(11, 1e6), Statistic.PAIRS) == pytest.approx(
        middle.mean(), abs=1e-6
    )


@pytest.mark.parametrize(("own", "other"), [([], []), ([1, 2], [1])])
def test_what_cannot_be_paired_is_refused(own: list[int], other: list[int]) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        log_ratio(own, other, Statistic.PAIRS)


def test_launches_have_a_statistic_when_each_of_them_does() -> None:
    assert ratios_of(STEADY, Statistic.P10) == pytest.approx([1.0, 1.1])
    assert ratios_of(STEADY, Statistic.P50) == pytest.approx([1.0, 1.1])
    assert ratios_of(STEADY, Statistic.PAIRS) is None
    assert ratios_of(PAIRED, Statistic.PAIRS) == [1.02, 1.04]
    mixed = (PAIRED[0], dataclasses.replace(PAIRED[1], ratio_pairs=None))
    assert ratios_of(mixed, Statistic.PAIRS) is None


def test_sessions_are_told_by_p10_unless_all_have_the_statistic() -> None:
    assert ratios_alike([PAIRED, PAIRED], Statistic.PAIRS) == (
        Statistic.PAIRS,
        [[1.02, 1.04], [1.02, 1.04]],
    )
    statistic, ratios = ratios_alike([PAIRED, STEADY], Statistic.PAIRS)
    assert statistic is Statistic.P10
    assert ratios == [pytest.approx([1.0, 1.1]), pytest.approx([1.0, 1.1])]
