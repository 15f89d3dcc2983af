"""The duet's decision: every outcome and its words, what it is blind to, and its rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hpsbench.duets.decision import DuetPolicy, judge_duet, needs_confirmation
from hpsbench.duets.launches import DuetLaunch, DuetSession, pooled
from hpsbench.ratios import STEADY, Statistic
from hpsbench.servers.traces import STAGES
from hpsbench.stages import StageProfile, StageSummary
from hpsbench.verdict import Outcome, Verdict

SUMMARY = StageSummary.__dataclass_fields__

POLICY = DuetPolicy(launches=4, pairs=20)


def session(
    slower: float = 0.0,
    *,
    slower_p50: float | None = None,
    invalid: str | None = None,
    p10_ns: int = 1_000_000,
) -> DuetSession:
    """Return four launches whose p10, and p50, are slower by these fractions."""
    low, high = 1 + slower, 1 + (slower if slower_p50 is None else slower_p50)
    p50_ns = p10_ns * 11 // 10
    launch = DuetLaunch(
        baseline_ns=(p10_ns,) * 8 + (p50_ns,) * 12,
        candidate_ns=(round(p10_ns * low),) * 8 + (round(p50_ns * high),) * 12,
    )
    return DuetSession(launches=(launch,) * 4, invalid=invalid)


def judge(*sessions: DuetSession) -> Verdict:
    return judge_duet(sessions, POLICY, name="dlrm")


def swapped(given: DuetSession) -> DuetSession:
    return DuetSession(
        launches=tuple(
            DuetLaunch(baseline_ns=ln.candidate_ns, candidate_ns=ln.baseline_ns)
            for ln in given.launches
        )
    )


@pytest.mark.parametrize("slower", [0.0, 0.0149, -0.0147])
def test_a_change_within_half_the_limit_passes_at_once(slower: float) -> None:
    assert not needs_confirmation(session(slower), POLICY)
    verdict = judge(session(slower))
    assert verdict.outcome is Outcome.PASS
    assert verdict.hint == ""
    assert verdict.change == pytest.approx(slower)


def test_a_pass_says_what_was_found_and_how_much_was_asked() -> None:
    assert judge(session(0.01)).text == (
        "dlrm: p10 1.0% slower (limit 3.0%), p50 1.0% slower (limit 10.0%), "
        "p99 +1.0% (not judged, of only 80 requests); 4 launches of 20 pairs"
    )


@pytest.mark.parametrize("slower", [0.0151, 0.029, -0.0151, -0.029])
def test_a_change_beyond_half_the_limit_is_asked_again_and_may_still_pass(slower: float) -> None:
    assert needs_confirmation(session(slower), POLICY)
    for second in (0.0, slower):
        verdict = judge(session(slower), session(second))
        assert verdict.outcome is Outcome.PASS
        assert "did not confirm" not in verdict.text


def test_the_limit_is_held_against_both_sessions_together() -> None:
    # What was measured of +5%: 2.7% in the first session, more than the limit in both.
    assert judge(session(0.027), session(0.05, p10_ns=990_000)).outcome is Outcome.REGRESSED
    assert judge(session(-0.027), session(-0.05)).outcome is Outcome.IMPROVED


def test_a_change_that_the_second_session_confirms_is_a_regression() -> None:
    verdict = judge(session(0.06), session(0.05))
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.text == (
        "dlrm: p10 5.0% slower (+6.0%, then +5.0%; limit 3.0%), "
        "p50 5.0% slower (+6.0%, then +5.0%; limit 10.0%), "
        "p99 +6.0% (not judged, of only 160 requests); 8 launches of 20 pairs"
    )
    assert verdict.hint.startswith("find the cause")
    assert (verdict.limit, verdict.limit_p50) == (0.03, 0.10)


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        (0.0, Outcome.INCONCLUSIVE),
        (0.0149, Outcome.INCONCLUSIVE),
        (0.0151, Outcome.REGRESSED),
    ],
)
def test_the_second_session_must_show_half_the_limit_by_itself(
    second: float, outcome: Outcome
) -> None:
    # The machine was slower in the second session, so both together are the first alone.
    verdict = judge(session(0.09), session(second, p10_ns=1_200_000))
    assert verdict.change == pytest.approx(0.09)
    assert verdict.outcome is outcome
    assert ("did not confirm" in verdict.text) == (outcome is Outcome.INCONCLUSIVE)


def test_both_sessions_together_must_be_beyond_the_limit() -> None:
    # Alone above half the limit, but too little to carry both over it: the fastest tenth of
    # the requests are mostly the second session's.
    verdict = judge(session(0.04), session(0.016))
    assert verdict.change is not None
    assert verdict.change < 0.03
    assert verdict.outcome is Outcome.INCONCLUSIVE


def test_a_confirmed_gain_is_an_improvement_and_an_unconfirmed_one_passes() -> None:
    assert judge(session(-0.06), session(-0.05)).outcome is Outcome.IMPROVED
    verdict = judge(session(-0.06), session(0.0))
    assert verdict.outcome is Outcome.PASS
    assert "the second session did not confirm the first" in verdict.text


def test_sessions_that_contradict_each_other_are_inconclusive() -> None:
    slow = dataclasses.replace(session(0.4), launches=session(0.4).launches * 4)
    assert judge(session(-0.06), slow).outcome is Outcome.INCONCLUSIVE


def test_the_median_has_a_wider_limit_and_can_regress_alone() -> None:
    assert judge(session(0.0, slower_p50=0.049)).outcome is Outcome.PASS
    within = session(0.0, slower_p50=0.09)
    assert judge(within, within).outcome is Outcome.PASS
    verdict = judge(session(0.0, slower_p50=0.2), session(0.0, slower_p50=0.2))
    assert verdict.outcome is Outcome.REGRESSED
    # What decided stands first.
    assert verdict.text.startswith("dlrm: p50 20.0% slower")
    assert judge(session(0.0, slower_p50=0.2), session()).outcome is Outcome.INCONCLUSIVE


def test_a_slower_median_outweighs_a_faster_tenth_percentile() -> None:
    traded = session(-0.2, slower_p50=0.2)
    assert judge(traded, traded).outcome is Outcome.REGRESSED


def test_an_invalid_session_counts_for_nothing() -> None:
    broken = session(0.5, invalid="launch 2: candidate had 3 of 20 requests fail: refused")
    assert not needs_confirmation(broken, POLICY)
    for sessions in ([broken], [session(0.06), broken]):
        verdict = judge(*sessions)
        assert verdict.outcome is Outcome.INVALID
        assert verdict.text == "dlrm: launch 2: candidate had 3 of 20 requests fail: refused"
        assert verdict.change is None
    assert judge(DuetSession(launches=())).text == "dlrm: nothing was measured"


def test_thousands_of_requests_make_p99_more_than_an_anecdote() -> None:
    many = DuetSession(launches=session().launches * 40)
    assert "p99 +0.0% (not judged)" in judge(many).text


@pytest.mark.parametrize("sessions", [(session(0.06),), (session(), session())])
def test_the_sessions_must_be_what_the_first_asked_for(sessions: Sequence[DuetSession]) -> None:
    with pytest.raises(ValueError, match="not what the first asked for"):
        judge(*sessions)


@pytest.mark.parametrize(
    "bad", [{"launches": 0}, {"pairs": 0}, {"warm_up": -1}, {"limit": 0.0}, {"limit_p50": -1}]
)
def test_a_policy_that_measures_nothing_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"a duet needs|must be positive"):
        DuetPolicy(**bad)  # type: ignore[arg-type]


def test_a_launch_without_an_answer_is_refused() -> None:
    for baseline_ns in ((), (1, 2)):
        with pytest.raises(ValueError, match="answered request"):
            DuetLaunch(baseline_ns=baseline_ns, candidate_ns=(1,))


latencies = st.integers(500_000, 2_000_000)
launches = st.lists(st.tuples(latencies, latencies), min_size=1, max_size=12).map(
    lambda pairs: DuetLaunch(
        baseline_ns=tuple(baseline for baseline, _ in pairs),
        candidate_ns=tuple(candidate for _, candidate in pairs),
    )
)
any_session = st.lists(launches, min_size=1, max_size=3).map(
    lambda ls: DuetSession(launches=tuple(ls))
)
MIRRORED = {Outcome.REGRESSED: Outcome.IMPROVED, Outcome.IMPROVED: Outcome.REGRESSED}


def as_asked(first: DuetSession, second: DuetSession) -> list[DuetSession]:
    return [first, second] if needs_confirmation(first, POLICY) else [first]


def far_from_limits(sessions: Sequence[DuetSession]) -> bool:
    """Whether rounding in the last place cannot move a shift over a limit, or what is judged."""
    limits = [x for limit in (0.03, 0.10) for x in (math.log1p(limit), math.log1p(limit / 2))]
    both = pooled(sessions)
    judged = (*STEADY, Statistic.P50)
    shifts = [s.shift(one) for s in (*sessions, both, *both.launches) for one in judged]
    errors = [[s.error(one) for one in STEADY] for s in (*sessions, both) if len(s.launches) > 1]
    return all(abs(abs(shift) - limit) > 1e-9 for shift in shifts for limit in limits) and all(
        abs(of_p10 - of_pairs) > 1e-9 for of_p10, of_pairs in errors
    )


@given(any_session, any_session, st.integers(2, 1000))
def test_the_unit_of_time_changes_no_verdict(
    first: DuetSession, second: DuetSession, factor: int
) -> None:
    sessions = as_asked(first, second)
    assume(far_from_limits(sessions))
    scaled = [
        DuetSession(
            launches=tuple(
                DuetLaunch(
                    baseline_ns=tuple(ns * factor for ns in ln.baseline_ns),
                    candidate_ns=tuple(ns * factor for ns in ln.candidate_ns),
                )
                for ln in s.launches
            )
        )
        for s in sessions
    ]
    before, after = judge(*sessions), judge(*scaled)
    assert after.outcome is before.outcome
    assert after.change == pytest.approx(before.change, abs=1e-9)


@given(any_session, any_session)
def test_exchanging_the_sides_exchanges_regressed_and_improved(
    first: DuetSession, second: DuetSession
) -> None:
    sessions = as_asked(first, second)
    assume(far_from_limits(sessions))
    policy = dataclasses.replace(POLICY, limit_p50=1000.0)
    assume(needs_confirmation(first, policy) == (len(sessions) == 2))
    there = judge_duet(sessions, policy, name="x").outcome
    back = judge_duet([swapped(s) for s in sessions], policy, name="x").outcome
    if there in MIRRORED or back in MIRRORED:
        assert back is MIRRORED[there]


@given(any_session)
def test_equal_sides_pass_and_the_order_of_launches_does_not_matter(given: DuetSession) -> None:
    equal = DuetSession(
        launches=tuple(
            DuetLaunch(baseline_ns=ln.baseline_ns, candidate_ns=ln.baseline_ns)
            for ln in given.launches
        )
    )
    assert judge(equal).outcome is Outcome.PASS
    backwards = DuetSession(launches=given.launches[::-1])
    for statistic in Statistic:
        assert backwards.shift(statistic) == pytest.approx(given.shift(statistic))


def test_what_the_launches_agree_on_better_is_judged() -> None:
    # Fast requests are a launch's luck, pairs are not: and the other way round.
    def launch(fastest_ns: int, factor: float) -> DuetLaunch:
        baseline_ns = (fastest_ns,) * 4 + (1_500_000,) * 16
        candidate_ns = (1_060_000,) * 4 + (round(factor * 1_500_000),) * 16
        return DuetLaunch(baseline_ns=baseline_ns, candidate_ns=candidate_ns)

    lucky = DuetSession(
        launches=tuple(launch(ns, 1.06) for ns in (900_000, 1_000_000, 1_100_000, 1_200_000))
    )
    assert lucky.steadiest is Statistic.PAIRS
    assert lucky.error(Statistic.PAIRS) < 0.01 < lucky.error(Statistic.P10)
    verdict = judge(lucky, lucky)
    assert (verdict.outcome, verdict.statistic) == (Outcome.REGRESSED, "pairs")
    assert verdict.change == pytest.approx(0.06)
    assert verdict.text.startswith("dlrm: pairs 6.0% slower (+6.0%, then +6.0%; limit 3.0%), p50 ")
    steady = DuetSession(launches=tuple(launch(1_000_000, f) for f in (0.8, 1.0, 1.1, 1.3)))
    assert steady.steadiest is Statistic.P10
    assert judge(steady, steady).change == pytest.approx(0.06)


def test_a_disturbed_request_does_not_move_what_pairs_say() -> None:
    slow_us = (1_000, 1_040, 1_030, 9_000, 1_010, 1_020, 1_050, 1_030, 70, 1_020)
    launch = DuetLaunch(
        baseline_ns=(1_000_000,) * 10, candidate_ns=tuple(1000 * us for us in slow_us)
    )
    assert launch.ratio(Statistic.PAIRS) == pytest.approx(1.025, abs=1e-3)
    assert DuetSession(launches=(launch,)).steadiest is Statistic.P10


def test_a_confirmed_change_names_the_stage_that_differs() -> None:
    def traced(given: DuetSession, change_us: int) -> DuetSession:
        sides = [
            StageProfile(
                requests=50,
                reference_ns=1,
                whole=StageSummary(**dict.fromkeys(SUMMARY, 1000_000)),
                stages={
                    stage: StageSummary(
                        **dict.fromkeys(SUMMARY, 200_000 + (stage == "queue") * moved * 1000)
                    )
                    for stage in STAGES
                },
            )
            for moved in (0, change_us)
        ]
        launches = (
            dataclasses.replace(ln, baseline_stages=sides[0], candidate_stages=sides[1])
            for ln in given.launches
        )
        return DuetSession(launches=tuple(launches))

    slower = judge(session(0.06), traced(session(0.06), 60))
    assert slower.text.endswith("8 launches of 20 pairs; of +0.06 ms, queue +0.06 ms (+30%)")
    faster = judge(session(-0.06), traced(session(-0.06), -60))
    assert faster.text.endswith("; of -0.06 ms, queue -0.06 ms (-30%)")
    assert "queue" not in judge(session(0.06), session(0.06)).text
    unconfirmed = judge(session(0.06), traced(session(0.0), 60))
    assert unconfirmed.outcome is not Outcome.REGRESSED
    assert "queue" not in unconfirmed.text
