"""`hpsbench compare` over scripted servers: what it measures, its words and its exit codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hpsbench import cli
from hpsbench.commands import compare as module
from hpsbench.commands.compare import Comparison, compare
from hpsbench.duets import comparisons
from hpsbench.duets.answers import Answers
from hpsbench.duets.comparisons import StoredComparison
from hpsbench.duets.decision import BASELINE, CANDIDATE, DuetPolicy
from hpsbench.duets.pairs import Contender
from hpsbench.errors import RequestError, ServerDied, ServerNotReady
from hpsbench.load.inputs import Requests
from hpsbench.load.interleaved import Participant
from hpsbench.report.markdown import comparison_summary
from hpsbench.revisions import BuiltModels, Revision
from hpsbench.telemetry import Recording, Telemetry
from hpsbench.verdict import Outcome
from tests.unit.test_telemetry import IDLE_HOST

MS = 1_000_000
POLICY = DuetPolicy(launches=2, pairs=10, warm_up=3)


class FakePairs:
    """Pairs of servers under a clock that moves only when one of them is asked."""

    def __init__(self, *candidate_ms: float, baseline_ms: float = 2.0) -> None:
        """`candidate_ms` are the costs of a request by launch, the last of all that follow."""
        self.candidate_ms, self.baseline_ms = candidate_ms, baseline_ms
        self.now_ns = 0
        self.asked: list[list[str]] = []
        self.numbers: list[int] = []
        self.dies_in = self.fails_in = 0
        self.answers_apart = 0.0
        self.refuses = False
        self.open = 0

    def clock_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)

    def answers(self, batch_size: int) -> dict[str, Answers]:
        if self.refuses:
            raise RequestError("model dlrm answered with status 400: no", hint="none")
        ones = np.ones((batch_size, 1), np.float32)
        return {BASELINE: [{"y": ones}], CANDIDATE: [{"y": ones + self.answers_apart}]}

    @contextmanager
    def pair(self, number: int) -> Iterator[FakePairs]:
        self.numbers.append(number)
        self.asked.append([])
        self.open += 1
        yield self
        self.open -= 1

    def check_alive(self) -> None:
        if len(self.numbers) == self.dies_in:
            raise ServerDied("triton (process 7) was killed by signal 9", hint="read its log")

    def participants(self, batch_size: int, keys: str = "") -> Sequence[Participant]:
        launch = len(self.numbers)
        candidate_ms = self.candidate_ms[min(launch, len(self.candidate_ms)) - 1]
        costs_ms = {BASELINE: self.baseline_ms, CANDIDATE: candidate_ms}
        return [self._participant(name, cost * batch_size) for name, cost in costs_ms.items()]

    def _participant(self, name: str, cost_ms: float) -> Participant:
        def send() -> None:
            self.asked[-1].append(name)
            self.now_ns += round(cost_ms * MS)
            if name == CANDIDATE and len(self.numbers) == self.fails_in:
                raise RequestError("model dlrm answered with status 500: full", hint="none")

        return Participant(name=name, send=send)


def run(pairs: FakePairs, *, fresh: bool = True) -> tuple[int, list[str]]:
    lines: list[str] = []
    comparison = Comparison(
        model="dlrm", baseline="old/", candidate="new/", policy=POLICY, batch_size=2, fresh=fresh
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
        "2 launches of 10 pairs of requests, after 3 to warm up; limits: p10 3.0%, p50 10.0%",
        "",
        "answers are the same (1 request)",
        "session  launch  baseline p10, ms  candidate p10, ms      p10      p50      p99",
        "      1       1             4.000              4.000    +0.0%    +0.0%    +0.0%",
        "      1       2             4.000              4.000    +0.0%    +0.0%    +0.0%",
        "      1     all             4.000              4.000    +0.0%    +0.0%    +0.0%",
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
        "      1       1             4.000              4.400   +10.0%   +10.0%   +10.0%",
        "      1       2             4.000              4.200    +5.0%    +5.0%    +5.0%",
        "      1     all             4.000              4.200    +5.0%    +7.5%   +10.0%",
        "a change shows: a second session, of fresh servers, has to confirm it by itself",
        "      2       1             4.000              4.320    +8.0%    +8.0%    +8.0%",
        "      2       2             4.000              4.320    +8.0%    +8.0%    +8.0%",
        "      2     all             4.000              4.320    +8.0%    +8.0%    +8.0%",
        "   both     all             4.000              4.200    +5.0%    +8.0%   +10.0%",
        "",
        "REGRESSED dlrm: p10 5.0% slower (+5.0%, then +8.0%; limit 3.0%), p50 8.0% slower "
        "(+7.5%, then +8.0%; limit 10.0%), p99 +10.0% (not judged, of only 40 requests); "
        "4 launches of 10 pairs",
        "hint: find the cause in what differs between the two; each launch's ratio is above",
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
    comparison = Comparison(model="dlrm", baseline="old/", candidate="new/", policy=POLICY)
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
    comparison = Comparison(model="dlrm", baseline="old/", candidate="new/", policy=POLICY)
    compare(
        comparison,
        pairs.pair,
        lambda _: None,
        store=stored.append,
        clock_ns=pairs.clock_ns,
        sleep=pairs.sleep,
    )
    (one,) = stored
    assert [(ln.session, ln.ratio_p10) for ln in one.launches] == [
        (1, 1.1),
        (1, 1.1),
        (2, 1.1),
        (2, 1.1),
    ]
    assert one.launches[0].candidate_p10_ns == 2_200_000
    assert one.verdict.outcome is Outcome.REGRESSED
    assert one.answers == "answers are the same (1 request)"
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


ARGUMENTS = ("compare", "--baseline", ".", "--candidate", ".", "--model", "dlrm")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ((), "the model repository . has no model 'dlrm'"),
        (("--baseline", "absent"), "absent is no folder, no URL and no git revision of hpsbench"),
        (("--answer-tolerance", "-1"), "--answer-tolerance -1.0 allows for nothing"),
        (("--shape", "ids"), "--shape 'ids' is not NAME:N,N"),
        (("--set", "load.rounds=2"), "--set 'load.rounds=2': only a git revision has a preset"),
        (("--preset", "smoke"), "--preset smoke: only a git revision has a preset"),
        (("--set", "servers.triton=http://a:1"), "which would serve both sides"),
        (("--set", "servers.request_timeout_s=0"), "servers.request_timeout_s is 0"),
    ],
)
def test_misuse_is_an_error_with_a_hint(
    more: tuple[str, ...],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*ARGUMENTS, *more]) == 4
    error = capsys.readouterr().err
    assert problem in error
    assert "\nhint: " in error
    assert list(tmp_path.iterdir()) == []


def test_a_git_revision_is_built_by_its_own_code_and_served_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPSBENCH_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "old" / "dlrm").mkdir(parents=True)
    (tmp_path / "old" / "dlrm" / "config.pbtxt").write_text("")
    python = tmp_path / "environment" / "bin" / "python"
    built: list[dict[str, object]] = []

    def build(revision: Revision, **given: object) -> BuiltModels:
        built.append({"commit": revision.commit, **given})
        return BuiltModels(
            repository=tmp_path / "built",
            requests=tmp_path / "requests.json",
            models=("lookup", "dlrm"),
        )

    monkeypatch.setattr(module.revisions, "find_commit", lambda name, _: {"v2": "2" * 40}.get(name))
    monkeypatch.setattr(
        module.revisions, "prepare", lambda sha, *_: Revision(commit=sha, python=python)
    )
    monkeypatch.setattr(module.revisions, "build_models", build)
    paired: list[dict[str, Contender]] = []
    fake = FakePairs(2.0)

    def fresh_pair(contenders: dict[str, Contender], ask: object, number: int, protocol: str):  # type: ignore[no-untyped-def]
        paired.append(contenders)
        return fake.pair(number)

    monkeypatch.setattr(module, "fresh_pair", fresh_pair)
    asked: list[Requests] = []
    monkeypatch.setattr(module, "same_requests", lambda requests, _: asked.append(requests))
    sides = ("--baseline", "old", "--candidate", "v2", "--model", "dlrm")
    more = (
        "--batch-size",
        "3",
        "--preset",
        "smoke",
        "--set",
        "load.rounds=2",
        "--launches",
        "1",
        "--pairs",
        "1",
    )
    cli.main(["compare", *sides, *more])
    baseline, candidate = paired[0][BASELINE], paired[0][CANDIDATE]
    assert (baseline.repository, baseline.python) == (tmp_path / "old", None)
    assert (candidate.repository, candidate.python) == (tmp_path / "built", python)
    assert candidate.models == ("lookup", "dlrm")
    (order,) = built
    assert (order["commit"], order["preset"], order["variant"]) == ("2" * 40, "smoke", "dlrm")
    assert (order["batch_size"], order["overrides"]) == (3, ["load.rounds=2"])
    assert asked == [Requests(input_data=tmp_path / "requests.json")]
    out = capsys.readouterr().out
    assert "candidate  v2 (revision 222222222222)\n" in out


@pytest.mark.parametrize(
    ("option", "value"), [("--launches", "0"), ("--pairs", "0"), ("--batch-size", "-1")]
)
def test_numbers_that_measure_nothing_are_refused(
    option: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dlrm").mkdir()
    assert cli.main([*ARGUMENTS, option, value]) == 4
    assert f"{option} {value} measures nothing" in capsys.readouterr().err
    assert cli.main([*ARGUMENTS, "--warm-up", "-1"]) == 4
