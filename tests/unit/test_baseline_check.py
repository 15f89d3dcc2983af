"""What stored runs say of each other, with nothing measured."""

from __future__ import annotations

import pytest

from hpsbench.baseline_check import SHARES, check
from hpsbench.config import GateConfig
from hpsbench.report import stored
from tests.scripted import EVEN, LUCK, baseline_of, measurement

POLICY = GateConfig()
FIRM = [measurement(slowdown=1 + 0.005 * (i % 3 - 1)) for i in range(6)]


def test_runs_that_agree_raise_no_alarm_and_find_what_is_beyond_their_limit() -> None:
    found = check(baseline_of(*FIRM), POLICY)
    assert (found.runs, found.occasions, found.judged) == (6, 6, 6)
    assert found.limit is not None
    assert 0.03 <= found.limit < 0.05
    assert found.regressed == {0.0: 0, 0.05: 6, 0.10: 6, 0.20: 6}


def test_a_run_that_differs_is_an_alarm_and_widens_the_limit_of_the_others() -> None:
    odd = measurement(slowdown=1.3)
    found = check(baseline_of(*FIRM, odd), POLICY)
    assert found.regressed[0.0] == 1
    assert found.limit is not None
    assert found.limit > 0.1


def test_sessions_in_a_row_are_one_occasion_and_keep_their_limit_wide() -> None:
    found = check(baseline_of(*FIRM, minutes_apart=5), POLICY)
    assert found.occasions == 1
    assert found.regressed[0.05] == 0
    assert found.regressed[0.20] == 6


def test_pairs_tell_what_luck_hides() -> None:
    paired = [measurement(launches=LUCK, pairs=EVEN) for _ in range(6)]
    unpaired = [measurement(launches=LUCK) for _ in range(6)]
    assert check(baseline_of(*paired), POLICY).regressed[0.05] == 6
    assert check(baseline_of(*unpaired), POLICY).regressed[0.05] == 0


@pytest.mark.parametrize("sessions", [1, 3])
def test_launches_alone_cannot_be_judged(sessions: int) -> None:
    short = baseline_of(*[measurement(launches=(1.0,))] * sessions)
    assert check(short, POLICY).judged == 0
    assert check(short, POLICY).limit is None
    assert check(baseline_of(measurement()), POLICY).judged == 0


def test_the_table_adds_up_and_says_what_would_tell_more() -> None:
    found = [
        check(baseline_of(*FIRM), POLICY),
        check(baseline_of(measurement("native_tf")), POLICY),
    ]
    lines = stored.checks(found)
    assert lines[0].split()[:4] == ["benchmark", "runs", "occasions", "limit"]
    assert " ".join(lines[1].split()[-12:]) == "0 of 6 6 of 6 6 of 6 6 of 6"
    assert lines[2].split()[-4:] == ["\N{EN DASH}"] * len(SHARES)
    assert " ".join(lines[3].split()) == "together 0 of 6 6 of 6 6 of 6 6 of 6"
    assert lines[-1].startswith("1 of 2 are of one occasion: measure again")
    assert len(stored.checks(found[:1])) == len(lines) - 2
