"""`hpsbench compare` over scripted servers: what it measures, its words and its exit codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpsbench.commands.comparison import Comparison, compare
from hpsbench.duets import comparisons
from hpsbench.duets.benchmarks import benchmarks_of
from hpsbench.duets.comparisons import StoredComparison
from hpsbench.duets.decision import BASELINE, CANDIDATE, DuetPolicy
from hpsbench.errors import ServerNotReady
from hpsbench.report.markdown import comparison_summary
from hpsbench.telemetry import Recording, Telemetry
from hpsbench.verdict import Outcome
from tests.scripted_pairs import FakePairs
from tests.unit.test_telemetry_host import IDLE_HOST

POLICY = DuetPolicy(launches=2, pairs=10, warm_up=3)
DLRM = benchmarks_of([("dlrm", 1)])


def run(pairs: FakePairs, *, fresh: bool = True) -> tuple[int, list[str]]:
    lines: list[str] = []
    comparison = Comparison(
        benchmarks=benchmarks_of([("dlrm", 2)]),
        baseline="old/",
        candidate="new/",
        policy=POLICY,
        fresh=fresh,
    )
    code = compare(comparison, pairs.pair, lines.append, clock_ns=pairs.clock_ns, sleep=pairs.sleep)
    return code, lines


def test_equal_servers_pass_after_one_session() -> None:
    pairs = FakePairs(2.0)
    code, lines = run(pairs)
    assert code == 0
    assert lines == [
        "model      dlrm",
        "baseline   old/",
        "candidate  new/",
        "2 launches of 10 pairs of requests, after 3 to warm up; limits: 3.0%, of p50 10.0%",
        "",
        "answers are the same (1 request)",
        "session  launch  baseline p10, ms  candidate p10, ms     p10   pairs     p50     p99",
        "      1       1             4.000              4.000   +0.0%   +0.0%   +0.0%   +0.0%",
        "      1       2             4.000              4.000   +0.0%   +0.0%   +0.0%   +0.0%",
        "      1     all             4.000              4.000   +0.0%   +0.0%   +0.0%   +0.0%",
        "",
        "PASS dlrm: p10 the same (limit 3.0%), p50 the same (limit 10.0%), "
        "p99 +0.0% (not judged, of only 20 requests); 2 launches of 10 pairs",
    ]


def test_every_launch_is_a_fresh_pair_asked_strictly_in_turn() -> None:
    pairs = FakePairs(2.0)
    run(pairs)
    assert (pairs.numbers, pairs.open) == ([1, 2], 0)
    for asked in pairs.asked:
        assert len(asked) == 2 * (3 + 10)
        in_pairs = [asked[i : i + 2] for i in range(0, len(asked), 2)]
        assert all(sorted(pair) == [BASELINE, CANDIDATE] for pair in in_pairs)
        assert len({tuple(pair) for pair in in_pairs[3:]}) == 2
    assert pairs.asked[0] != pairs.asked[1]


def test_a_slow_candidate_is_confirmed_on_fresh_servers_and_fails() -> None:
    pairs = FakePairs(2.2, 2.1, 2.16)
    code, lines = run(pairs)
    assert code == 1
    assert pairs.numbers == [1, 2, 3, 4]
    assert lines[7:] == [
        "      1       1             4.000              4.400  +10.0%  +10.0%  +10.0%  +10.0%",
        "      1       2             4.000              4.200   +5.0%   +5.0%   +5.0%   +5.0%",
        "      1     all             4.000              4.200   +5.0%   +7.5%   +7.5%  +10.0%",
        "a change may show: a second session, of fresh servers, has to show it as well",
        "      2       1             4.000              4.320   +8.0%   +8.0%   +8.0%   +8.0%",
        "      2       2             4.000              4.320   +8.0%   +8.0%   +8.0%   +8.0%",
        "      2     all             4.000              4.320   +8.0%   +8.0%   +8.0%   +8.0%",
        "   both     all             4.000              4.200   +5.0%   +7.9%   +8.0%  +10.0%",
        "",
        "REGRESSED dlrm: pairs 7.9% slower (+7.5%, then +8.0%; limit 3.0%), p50 8.0% slower "
        "(+7.5%, then +8.0%; limit 10.0%), p99 +10.0% (not judged, of only 40 requests); "
        "4 launches of 10 pairs",
        "hint: find the cause in what differs between the two",
    ]


@pytest.mark.parametrize(
    ("candidate_ms", "outcome", "code"),
    [
        ((2.0,), "PASS", 0),
        ((1.8,), "IMPROVED", 0),
        ((2.2,), "REGRESSED", 1),
        ((2.2, 2.2, 2.0), "INCONCLUSIVE", 10),
        ((1.8, 1.8, 2.0), "PASS", 0),
    ],
)
def test_each_outcome_has_its_exit_code(
    candidate_ms: tuple[float, ...], outcome: str, code: int
) -> None:
    returned, lines = run(FakePairs(*candidate_ms))
    assert returned == code
    assert sum(line.startswith(f"{outcome} dlrm: ") for line in lines) == 1


def test_a_candidate_that_answers_otherwise_is_not_measured() -> None:
    pairs = FakePairs(1.0)
    pairs.answers_apart = 0.5
    code, lines = run(pairs)
    assert code == 10
    assert pairs.asked == [[]]
    assert pairs.numbers == [1]
    assert lines[-2:] == [
        "INVALID dlrm: answers differ: by 0.5 at most, relative 0.5, where 0.001 is allowed; a "
        "candidate that answers otherwise is not measured",
        "hint: mend the candidate, or allow for more with --answer-tolerance",
    ]


def test_answers_that_differ_a_little_are_told_and_measured() -> None:
    pairs = FakePairs(2.0)
    pairs.answers_apart = 0.0005
    code, lines = run(pairs)
    assert code == 0
    assert lines[5] == "answers differ by 0.0005 at most (1 request, relative 0.0005)"


def test_answers_that_cannot_be_had_are_told_by_what_is_measured() -> None:
    pairs = FakePairs(2.0)
    pairs.refuses, pairs.fails_in = True, 1
    code, lines = run(pairs)
    assert code == 10
    assert "answers cannot be compared: model dlrm answered with status 400: no" in lines


def test_an_unfit_machine_gets_no_verdict() -> None:
    seen: list[int] = []

    @contextmanager
    def watch() -> Iterator[Recording]:
        recording = Recording()
        yield recording
        seen.append(len(seen))
        busy = dataclasses.replace(IDLE_HOST, others=0.98 if len(seen) == 2 else 0.1)
        recording.telemetry = Telemetry(elapsed_s=2.0, samples=4, sampling_cpu_s=0.0, host=busy)

    pairs, lines = FakePairs(2.0), []
    comparison = Comparison(benchmarks=DLRM, baseline="old/", candidate="new/", policy=POLICY)
    code = compare(
        comparison,
        pairs.pair,
        lines.append,
        watch=watch,
        clock_ns=pairs.clock_ns,
        sleep=pairs.sleep,
    )
    assert code == 10
    assert lines[-2].startswith("INVALID dlrm: launch 2: other processes used 98% of the CPUs")
    assert pairs.numbers == [1, 2]


def test_what_was_compared_is_stored_and_read_back(tmp_path: Path) -> None:
    stored: list[StoredComparison] = []
    pairs = FakePairs(2.2)
    comparison = Comparison(benchmarks=DLRM, baseline="old/", candidate="new/", policy=POLICY)
    compare(
        comparison,
        pairs.pair,
        lambda _: None,
        store=stored.append,
        clock_ns=pairs.clock_ns,
        sleep=pairs.sleep,
    )
    (one,) = stored
    (dlrm,) = one.benchmarks
    assert (dlrm.name, dlrm.model, dlrm.batch_size) == ("dlrm", "dlrm", 1)
    assert dlrm.measure_s == pytest.approx(4 * 13 * 0.0042, abs=0.001)
    assert [(ln.session, ln.ratio_p10) for ln in dlrm.launches] == [
        (1, 1.1),
        (1, 1.1),
        (2, 1.1),
        (2, 1.1),
    ]
    assert dlrm.launches[0].candidate_p10_ns == 2_200_000
    assert dlrm.verdict.outcome is Outcome.REGRESSED
    assert dlrm.answers == "answers are the same (1 request)"
    path = comparisons.save(tmp_path, one)
    (tmp_path / "broken.json").write_text("{")
    assert comparisons.newest(tmp_path, one.machine, 5) == [one]
    assert comparisons.newest(tmp_path, "another", 5) == []
    assert path.name.startswith(one.recorded_at[:4])
    text = comparison_summary(one)
    assert text.startswith("## hpsbench compare: REGRESSED dlrm\n")
    assert "| 2 | 4 | 2.000 | 2.200 | +10.0% | +10.0% |" in text


def test_a_failed_request_ends_the_comparison_without_a_verdict() -> None:
    pairs = FakePairs(2.0)
    pairs.fails_in = 2
    code, lines = run(pairs)
    assert code == 10
    assert lines[-2:] == [
        "INVALID dlrm: launch 2: candidate was given up after 5 requests in a row failed: "
        "model dlrm answered with status 500: full",
        "hint: mend that and compare again; these figures count for nothing",
    ]
    assert pairs.numbers == [1, 2]


def test_a_dead_server_ends_the_comparison_without_a_verdict() -> None:
    pairs = FakePairs(2.2)
    pairs.dies_in = 3
    code, lines = run(pairs)
    assert code == 10
    assert lines[-2] == (
        "INVALID dlrm: confirming session, launch 1: triton (process 7) was killed by signal 9"
    )


def test_a_server_that_never_starts_is_an_error_and_no_verdict() -> None:
    class NeverReady(FakePairs):
        @contextmanager
        def pair(self, number: int) -> Iterator[FakePairs]:
            raise ServerNotReady("triton was not ready after 120 s", hint="read its log")
            yield self

    with pytest.raises(ServerNotReady):
        run(NeverReady(2.0))


def test_a_server_that_runs_already_is_said_to_be_the_same_in_every_launch() -> None:
    assert any("runs already" in line for line in run(FakePairs(2.0), fresh=False)[1])
    assert not any("runs already" in line for line in run(FakePairs(2.0))[1])
