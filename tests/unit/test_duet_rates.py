"""The duet's rates under the noise that was measured: false alarms, and changes that are found."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hpsbench.duets.decision import DuetPolicy, judge_duet, needs_confirmation
from hpsbench.duets.launches import DuetLaunch, DuetSession, pooled
from hpsbench.ratios import Statistic
from hpsbench.verdict import Outcome

POLICY = DuetPolicy()


def measured_session(rng: np.random.Generator, *, slower: float, neighbour: bool) -> DuetSession:
    """Return a session as measured on two shared cores.

    Servers differ from launch to launch by 1.5%, and one in 12 is slower by up to a third; a
    machine drifts within a launch for both alike; requests have a long tail, and a noisy neighbour
    lengthens a third of them.
    """
    shape = (POLICY.launches, POLICY.pairs)
    drift = np.repeat(rng.normal(0, 0.03, (POLICY.launches, 5)), POLICY.pairs // 5, axis=1)
    sides = []
    for factor in (1.0, 1 + slower):
        server = rng.normal(0, 0.015, (POLICY.launches, 1))
        server += (rng.random(server.shape) < 0.08) * rng.uniform(0, 0.3, server.shape)
        requests = 2e6 * factor * np.exp(server + drift + np.abs(rng.normal(0, 0.06, shape)))
        delayed = rng.random(shape) < (0.33 if neighbour else 0.02)
        sides.append((requests + delayed * rng.exponential(1e6, shape)).astype(int).tolist())
    return DuetSession(
        launches=tuple(
            DuetLaunch(baseline_ns=tuple(ours), candidate_ns=tuple(theirs))
            for ours, theirs in zip(*sides, strict=True)
        )
    )


def two_speed_session(rng: np.random.Generator, *, slower: float = 0.0) -> DuetSession:
    """Return a session beside programs that take the CPUs for seconds.

    A request is fast, or takes a quarter longer; how many are fast is each server's luck.
    """
    launches = []
    for _ in range(POLICY.launches):
        sides = []
        for factor in (1.0, 1 + slower):
            requests = 2e6 * factor * np.exp(np.abs(rng.normal(0, 0.02, POLICY.pairs)))
            slow = rng.random(POLICY.pairs) < rng.uniform(0.35, 0.65)
            requests *= np.where(slow, 1.25, 1.0)
            sides.append(tuple(requests.astype(int).tolist()))
        launches.append(DuetLaunch(baseline_ns=sides[0], candidate_ns=sides[1]))
    return DuetSession(launches=tuple(launches))


def shared_host_session(rng: np.random.Generator, *, slower: float = 0.0) -> DuetSession:
    """Return a session on a host whose other machines use the same cores, as measured on one.

    Requests differ by a fifth, half of which both of a pair have in common; now and then the core
    is free for one, and how often is each server's luck.
    """
    shape = (POLICY.launches, POLICY.pairs)
    common = rng.normal(0, 0.14, shape) + rng.normal(0, 0.12, (POLICY.launches, 1))
    sides = []
    for factor in (1.0, 1 + slower):
        requests = 2.4e6 * factor * np.exp(common + rng.normal(0, 0.13, shape))
        free = rng.random(shape) < rng.uniform(0.05, 0.15, (POLICY.launches, 1))
        sides.append((requests * np.where(free, 0.7, 1.0)).astype(int).tolist())
    return DuetSession(
        launches=tuple(
            DuetLaunch(baseline_ns=tuple(ours), candidate_ns=tuple(theirs))
            for ours, theirs in zip(*sides, strict=True)
        )
    )


def judged(first: DuetSession, second: DuetSession) -> Outcome:
    asked = [first, second] if needs_confirmation(first, POLICY) else [first]
    return judge_duet(asked, POLICY, name="dlrm").outcome


def outcomes(slower: float, *, decisions: int, neighbour: bool) -> Counter[Outcome]:
    rng = np.random.default_rng(7)
    return Counter(
        judged(
            *(measured_session(rng, slower=slower, neighbour=neighbour) for _ in range(2)),
        )
        for _ in range(decisions)
    )


@pytest.mark.parametrize("neighbour", [False, True], ids=["quiet", "noisy"])
def test_equal_servers_are_hardly_ever_told_apart(neighbour: bool) -> None:
    found = outcomes(0.0, decisions=400, neighbour=neighbour)
    assert found[Outcome.REGRESSED] <= 1
    assert found[Outcome.IMPROVED] <= 1
    assert found[Outcome.INCONCLUSIVE] <= 0.02 * 400


def test_five_percent_are_found_on_a_quiet_machine() -> None:
    found = outcomes(0.05, decisions=300, neighbour=False)
    assert found[Outcome.REGRESSED] >= 0.99 * 300
    assert found[Outcome.IMPROVED] == 0


def test_ten_percent_are_found_beside_a_neighbour() -> None:
    found = outcomes(0.10, decisions=100, neighbour=True)
    assert found[Outcome.REGRESSED] == 100


def test_requests_of_two_speeds_have_medians_that_differ_by_chance() -> None:
    rng = np.random.default_rng(7)
    sessions = [(two_speed_session(rng), two_speed_session(rng)) for _ in range(400)]
    # What is to be told apart is there: medians beyond the limit, both times to the same side.
    p50 = [(a.shift(Statistic.P50), b.shift(Statistic.P50)) for a, b in sessions]
    alike = [a * b > 0 for a, b in p50 if abs(a) > 0.1]
    assert sum(alike) > 20
    found = Counter(judged(*two) for two in sessions)
    assert found[Outcome.REGRESSED] == found[Outcome.IMPROVED] == 0


def test_a_median_that_is_slower_in_most_launches_is_found() -> None:
    rng = np.random.default_rng(7)
    found = Counter(
        judged(two_speed_session(rng, slower=0.2), two_speed_session(rng, slower=0.2))
        for _ in range(50)
    )
    assert found[Outcome.REGRESSED] == 50


def test_on_a_shared_host_the_pairs_tell_what_p10_does_not() -> None:
    rng = np.random.default_rng(7)
    equal = [(shared_host_session(rng), shared_host_session(rng)) for _ in range(200)]
    p10 = [pooled(two).shift(Statistic.P10) for two in equal]
    assert sum(abs(shift) > POLICY.limit for shift in p10) > 20
    found = Counter(judged(*two) for two in equal)
    assert found[Outcome.REGRESSED] + found[Outcome.IMPROVED] <= 1
    slower = Counter(
        judged(shared_host_session(rng, slower=0.05), shared_host_session(rng, slower=0.05))
        for _ in range(200)
    )
    assert slower[Outcome.REGRESSED] >= 0.93 * 200


@pytest.mark.parametrize(
    ("launches", "outcome"), [(4, Outcome.INCONCLUSIVE), (5, Outcome.REGRESSED)]
)
def test_half_of_the_launches_must_show_a_change_of_p10(launches: int, outcome: Outcome) -> None:
    # The machine was fast for the launches that show it, so that p10 is theirs alone.
    fast = DuetLaunch(baseline_ns=(1_000_000,) * 40, candidate_ns=(1_100_000,) * 40)
    slow = DuetLaunch(baseline_ns=(1_200_000,) * 40, candidate_ns=(1_200_000,) * 40)
    session = DuetSession(launches=(fast,) * launches + (slow,) * (10 - launches))
    verdict = judge_duet([session, session], POLICY, name="dlrm")
    assert verdict.change == pytest.approx(0.1)
    assert verdict.outcome is outcome
    assert ("too few launches agree on p10" in verdict.text) == (launches == 4)


@pytest.mark.parametrize(
    ("launches", "outcome"), [(5, Outcome.INCONCLUSIVE), (6, Outcome.REGRESSED)]
)
def test_three_fifths_of_the_launches_must_show_a_change_of_pairs(
    launches: int, outcome: Outcome
) -> None:
    # The neighbour that slowed one side of these launches left p10 to luck.
    def launch(number: int) -> DuetLaunch:
        lucky_ns = 600_000 + 20_000 * ((7 * number) % 20)
        slower = 1.10 if number % 10 < launches else 1.0
        return DuetLaunch(
            baseline_ns=(lucky_ns,) * 6 + (1_000_000,) * 34,
            candidate_ns=(1_580_000 - lucky_ns,) * 6 + (round(slower * 1_000_000),) * 34,
        )

    sessions = [
        DuetSession(launches=tuple(map(launch, numbers))) for numbers in (range(10), range(10, 20))
    ]
    verdict = judge_duet(sessions, POLICY, name="dlrm")
    assert verdict.statistic == "pairs"
    assert verdict.change is not None
    assert verdict.change > POLICY.limit
    assert verdict.outcome is outcome
    assert ("too few launches agree on pairs" in verdict.text) == (launches == 5)
