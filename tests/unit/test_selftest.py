"""The self-test over scripted servers: rates, intervals, calibration, and its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from hpsbench import storage
from hpsbench.commands import selftest
from hpsbench.duets import selftests
from hpsbench.duets.benchmarks import DuetBenchmark
from hpsbench.duets.decision import BASELINE, CANDIDATE, DuetPolicy
from hpsbench.duets.launches import DuetLaunch, DuetSession
from hpsbench.duets.resolution import (
    INJECTED,
    Decision,
    SelfTest,
    mean_change,
    merged,
    rate,
    resolutions,
)
from hpsbench.duets.session import Pair
from hpsbench.duets.slowed import Calibration, Recalibrated, calibration
from hpsbench.errors import ConfigError, RequestError
from hpsbench.load.interleaved import Participant, no_garbage_collection
from hpsbench.report import resolution as report
from hpsbench.verdict import Outcome

MS = 1_000_000
POLICY = DuetPolicy(launches=2, pairs=10, warm_up=0)


class SlowedHost:
    """Servers of 2 ms, and candidates slower by a share, under a clock that only they move."""

    def __init__(self, *, blind: bool = False, failing: bool = False) -> None:
        self.now_ns = 0
        self.blind, self.failing = blind, failing
        self.shares: list[float] = []

    def clock_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)

    def slowed(self, share: float) -> Pair[SlowedPair]:
        self.shares.append(share)
        # A little less than the share, for a rule at 5% would stand on its edge.
        slower = 0 if self.blind else 0.96 * share
        costs_ns = {BASELINE: 2 * MS, CANDIDATE: round(2 * MS * (1 + slower))}

        @contextmanager
        def pair(number: int) -> Iterator[SlowedPair]:
            self.now_ns += 1000 * MS
            yield SlowedPair(self, costs_ns)

        return pair


class SlowedPair:
    def __init__(self, host: SlowedHost, costs_ns: dict[str, int]) -> None:
        self.host, self.costs_ns = host, costs_ns

    def check_alive(self) -> None: ...

    def participants(self, benchmark: DuetBenchmark) -> Sequence[Participant]:
        return [
            Participant(name=name, send=lambda cost=cost: self.send(cost))  # type: ignore[misc]
            for name, cost in self.costs_ns.items()
        ]

    def send(self, cost_ns: int) -> None:
        self.host.now_ns += cost_ns
        if self.host.failing:
            raise RequestError("refused", hint="none")


def decisions(
    host: SlowedHost, sessions: int = 2, shares: Sequence[float] = INJECTED
) -> list[Decision]:
    return selftest.selftest(
        host.slowed,
        sessions=sessions,
        policy=POLICY,
        shares=shares,
        clock_ns=host.clock_ns,
        sleep=host.sleep,
    )


def result(found: Sequence[Decision]) -> SelfTest:
    return SelfTest(
        recorded_at="2026-01-02T03:04:05Z",
        machine="cpu-test-2c",
        policy=POLICY,
        request_ns=2 * MS,
        confidence=0.95,
        resolutions=resolutions(found),
        decisions=tuple(found),
    )


@pytest.fixture(scope="module", autouse=True)
def _one_collection() -> Iterator[None]:
    """Collect garbage once, and not before every scripted launch."""
    with no_garbage_collection():
        yield


@pytest.fixture(scope="module")
def found() -> list[Decision]:
    """Two decisions per share, on a host without noise."""
    return decisions(SlowedHost())


def test_every_share_is_injected_as_often_and_found(found: list[Decision]) -> None:
    assert sorted(d.injected for d in found) == sorted(INJECTED * 2)
    by_share = {row.injected: row for row in resolutions(found)}
    assert [by_share[share].regressed.found for share in INJECTED] == [0, 2, 2, 2]
    assert [by_share[share].mean_rule.found for share in INJECTED] == [0, 0, 2, 2]


def test_the_order_of_the_shares_changes() -> None:
    host = SlowedHost()
    decisions(host, sessions=3)
    rounds = [tuple(host.shares[i : i + 4]) for i in range(0, 12, 4)]
    assert len(set(rounds)) > 1


def test_a_decision_counts_its_sessions_and_its_time(found: list[Decision]) -> None:
    by_share = {d.injected: d for d in found}
    none, tenth = by_share[0.0], by_share[0.10]
    assert (none.sessions, tenth.sessions) == (1, 2)
    assert none.outcome is Outcome.PASS
    assert tenth.change == pytest.approx(0.096)
    assert tenth.mean_change == pytest.approx(0.096)
    assert tenth.ratios_p10 == tenth.ratios_p50 == pytest.approx((1.096,) * 4)
    assert tenth.ratios_pairs == pytest.approx(tenth.ratios_p10)
    assert tenth.statistic == "p10"
    # One warm-up pair is always asked.
    assert none.measure_s == pytest.approx(2 * 11 * 0.004)
    assert none.total_s == pytest.approx(2 + none.measure_s)


def test_failed_requests_count_in_no_rate() -> None:
    found = decisions(SlowedHost(failing=True))
    for row in resolutions(found):
        assert row.invalid == 2
        assert (row.regressed.of, row.mean_rule.of) == (0, 0)
    assert any("2 INVALID" in line for line in report.summary(result(found)))


def test_a_rule_that_sees_nothing_finds_nothing() -> None:
    rows = resolutions(decisions(SlowedHost(blind=True)))
    assert [row.regressed.found for row in rows] == [0, 0, 0, 0]


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_the_exact_one(counts: tuple[int, int]) -> None:
    found, of = counts
    interval = binomtest(found, of).proportion_ci(0.95, method="exact")
    ours = rate(found, of)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert ours.low <= found / of <= ours.high


def test_no_decision_tells_nothing_and_more_found_than_there_were_is_refused() -> None:
    assert (rate(0, 0).low, rate(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        rate(3, 2)


def test_the_mean_is_that_of_every_request() -> None:
    launch = DuetLaunch(baseline_ns=(100, 100), candidate_ns=(100, 120))
    assert mean_change(DuetSession(launches=(launch,))) == pytest.approx(0.10)


STEPS = {BASELINE: 100, CANDIDATE: 300}


def steps_measured(few_ns: Sequence[int], many_ns: Sequence[int]) -> DuetSession:
    """Return a duet of as many launches, in each of which requests of a side take as long."""
    return DuetSession(
        launches=tuple(
            DuetLaunch(baseline_ns=(few,) * 10, candidate_ns=(many,) * 10)
            for few, many in zip(few_ns, many_ns, strict=True)
        )
    )


def test_calibration_slows_the_whole_request_by_the_share() -> None:
    # 0.4 ms of transport, and 5 us a step.
    found = calibration(steps_measured([900_000] * 8, [1_900_000] * 8), STEPS, 2 * MS)
    assert found == Calibration(steps=320, step_ns=5000.0, request_ns=2 * MS)
    assert [found.slowed(share) for share in INJECTED] == [320, 340, 360, 400]


def test_calibration_believes_the_pairs_where_fast_requests_are_luck() -> None:
    lucky = [(0.9, 0.6), (0.5, 1.0), (0.7, 0.7), (0.6, 0.95)]
    launches = tuple(
        DuetLaunch(
            baseline_ns=(round(900_000 * few),) * 2 + (900_000,) * 8,
            candidate_ns=(round(1_900_000 * many),) * 2 + (1_900_000,) * 8,
        )
        for few, many in lucky
    )
    found = calibration(DuetSession(launches=launches), STEPS, 2 * MS)
    assert found.steps == 320
    assert found.step_ns == pytest.approx(5000, rel=0.01)


def test_a_slow_host_gets_longer_requests_and_a_senseless_one_an_error() -> None:
    found = calibration(steps_measured([5 * MS] * 2, [10 * MS] * 2), STEPS, 2 * MS)
    assert (found.steps, found.request_ns) == (100, 5 * MS)
    with pytest.raises(ConfigError, match="300 steps of work took 900000 ns"):
        calibration(steps_measured([900_000] * 2, [900_000] * 2), STEPS)


def test_a_calibration_is_made_anew_every_so_often() -> None:
    made = [Calibration(steps=n, step_ns=5000.0, request_ns=2 * MS) for n in (300, 310, 320)]
    later = iter(made[1:])
    calibrated = Recalibrated(made[0], lambda: next(later), every=2)
    assert [calibrated().steps for _ in range(6)] == [300, 300, 310, 310, 320, 320]


def test_the_words_of_a_self_test(found: list[Decision]) -> None:
    assert report.introduction(
        POLICY, machine="cpu-test-2c", request_ns=2_040_000, decisions=8
    ) == [
        "machine    cpu-test-2c",
        "request    2.04 ms",
        "decisions  8, each of 2 launches of 10 pairs, and as many again where a change may show",
        "",
    ]
    one = next(d for d in found if d.injected == 0.10)
    assert report.decision_line(3, 8, one) == (
        "   3/8   +10%  REGRESSED     p10 +9.6%  p50 +9.6%  mean +9.6%  4.2 s"
    )
    assert report.summary(result(found)) == [
        "",
        "found slower, with the 95% interval of the rate:",
        "injected      seen  duet                      mean:5% (pytest-benchmark)  others of the "
        "duet",
        "     A/A     +0.0%  0 of 2 (0% to 84%)        0 of 2 (0% to 84%)          -",
        "     +5%     +4.8%  2 of 2 (16% to 100%)      0 of 2 (0% to 84%)          -",
        "    +10%     +9.6%  2 of 2 (16% to 100%)      2 of 2 (16% to 100%)        -",
        "    +20%    +19.2%  2 of 2 (16% to 100%)      2 of 2 (16% to 100%)        -",
        "",
        "a decision took 4.2 s, of which 0.2 s were requests (medians; 0.2 s at most)",
    ]


def test_what_is_stored_is_read_back(found: list[Decision], tmp_path: Path) -> None:
    stored = result(found)
    path = tmp_path / "selftest.json"
    storage.write_atomically(path, storage.encode(stored, schema_version=selftests.SCHEMA_VERSION))
    read = storage.read(
        SelfTest, path, schema_version=selftests.SCHEMA_VERSION, restore="run it again"
    )
    assert read == stored


def test_a_stored_self_test_is_quoted_for_its_machine_and_policy_only(
    found: list[Decision], tmp_path: Path
) -> None:
    path = tmp_path / "selftest.json"
    assert selftests.stored("cpu-test-2c", path, POLICY) is None
    path.write_text(storage.encode(result(found), schema_version=selftests.SCHEMA_VERSION))
    known = selftests.stored("cpu-test-2c", path, POLICY)
    assert known is not None
    assert report.quotation(known) == (
        "found slower by this machine's selftest of 2026-01-02: A/A 0 of 2, +5% 2 of 2, "
        "+10% 2 of 2, +20% 2 of 2"
    )
    assert selftests.stored("cpu-other-2c", path, POLICY) is None
    assert selftests.stored("cpu-test-2c", path, DuetPolicy()) is None
    path.write_text("{")
    assert selftests.stored("cpu-test-2c", path, POLICY) is None


def test_nothing_to_merge_is_refused(found: list[Decision]) -> None:
    one = result(found)
    assert merged([one, one]).resolutions[1].regressed.of == 4
    with pytest.raises(ValueError, match="nothing to merge"):
        merged([])
    with pytest.raises(ValueError, match="machine a and cpu-test-2c"):
        merged([dataclasses.replace(one, machine="a", recorded_at="2027"), one])
