"""`hpsbench compare` over scripted servers: what it measures, its words and its exit codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hpsbench import cli, revisions
from hpsbench.commands import compare as module
from hpsbench.commands import compared_sides
from hpsbench.commands.comparison import Comparison, compare
from hpsbench.duets import comparisons
from hpsbench.duets.answers import Answers
from hpsbench.duets.benchmarks import DuetBenchmark, benchmarks_of
from hpsbench.duets.comparisons import StoredComparison
from hpsbench.duets.decision import BASELINE, CANDIDATE, DuetPolicy
from hpsbench.duets.pairs import Contender
from hpsbench.duets.requests import WrittenRequests
from hpsbench.errors import RequestError, ServerDied, ServerNotReady
from hpsbench.load.interleaved import Participant
from hpsbench.report.markdown import comparison_summary
from hpsbench.revisions import BuiltModels, Revision
from hpsbench.telemetry import Recording, Telemetry
from hpsbench.verdict import Outcome
from tests.unit.test_telemetry import IDLE_HOST

MS = 1_000_000
POLICY = DuetPolicy(launches=2, pairs=10, warm_up=3)
DLRM = benchmarks_of([("dlrm", 1)])


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

    def answers(self, benchmark: DuetBenchmark) -> dict[str, Answers]:
        if self.refuses:
            raise RequestError("model dlrm answered with status 400: no", hint="none")
        ones = np.ones((benchmark.batch_size, 1), np.float32)
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

    def participants(self, benchmark: DuetBenchmark) -> Sequence[Participant]:
        launch = len(self.numbers)
        candidate_ms = self.candidate_ms[min(launch, len(self.candidate_ms)) - 1]
        costs_ms = {BASELINE: self.baseline_ms, CANDIDATE: candidate_ms}
        return [
            self._participant(name, cost * benchmark.batch_size) for name, cost in costs_ms.items()
        ]

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
            requests={("dlrm", 3): tmp_path / "requests.json"},
            models=("lookup", "dlrm"),
        )

    monkeypatch.setattr(
        compared_sides.revisions, "find_commit", lambda name, _: {"v2": "2" * 40}.get(name)
    )
    monkeypatch.setattr(
        compared_sides.revisions, "prepare", lambda sha, *_: Revision(commit=sha, python=python)
    )
    monkeypatch.setattr(compared_sides.revisions, "build_models", build)
    paired: list[dict[str, Contender]] = []
    fake = FakePairs(2.0)

    def fresh_pair(contenders: dict[str, Contender], ask: object, number: int, protocol: str):  # type: ignore[no-untyped-def]
        paired.append(contenders)
        return fake.pair(number)

    monkeypatch.setattr(module, "fresh_pair", fresh_pair)
    asked: list[object] = []
    monkeypatch.setattr(module, "same_requests", lambda source, _: asked.append(source))
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
    assert (order["commit"], order["preset"]) == ("2" * 40, "smoke")
    assert (order["places"], order["overrides"]) == ([("dlrm", 3)], ["load.rounds=2"])
    (dlrm,) = benchmarks_of([("dlrm", 3)])
    assert asked == [WrittenRequests(files={dlrm: tmp_path / "requests.json"})]
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


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--model", " ,", "--model ' ,' names no model"),
        ("--batch-size", "7,many", "--batch-size '7,many' is no number of samples"),
        ("--batch-size", "7,0", "--batch-size 0 measures nothing"),
        ("--model", "dlrm,absent", "the model repository . has no model 'absent'"),
    ],
)
def test_several_are_separated_by_commas(
    option: str,
    value: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dlrm").mkdir()
    assert cli.main([*ARGUMENTS, option, value]) == 4
    assert problem in capsys.readouterr().err


def test_without_a_model_both_sides_must_have_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "--baseline", ".", "--candidate", "."]) == 4
    assert "--model is missing, and not both sides are git revisions" in capsys.readouterr().err


class FakeRevisions:
    """Two revisions, v1 and v2, that offer and build what they are told to."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, **offers: Sequence[tuple[str, int]]
    ) -> None:
        self.folder, self.offers = folder, offers
        self.built: list[list[tuple[str, int]]] = []
        self.asked_sizes: list[Sequence[int]] = []
        fakes = {
            "find_commit": lambda name, _: name * 20 if name in offers else None,
            "prepare": lambda sha, *_: Revision(commit=sha, python=Path("python")),
            "offered": self.offered,
            "build_models": self.build,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(compared_sides.revisions, name, fake)

    def offered(
        self, revision: Revision, *, batch_sizes: Sequence[int], **_: object
    ) -> revisions.Offer:
        self.asked_sizes.append(batch_sizes)
        return revisions.Offer(
            places=tuple(self.offers[revision.commit[:2]]), left_out={"half": "no GPU here"}
        )

    def build(
        self, revision: Revision, *, places: Sequence[tuple[str, int]], **_: object
    ) -> BuiltModels:
        self.built.append(list(places))
        commit = revision.commit[:2]
        return BuiltModels(
            repository=self.folder / commit,
            requests={(m, n): self.folder / f"{commit}-{m}-{n}.json" for m, n in places},
            models=("lookup", *dict.fromkeys(m for m, _ in places)),
        )


TWO_REVISIONS = ("compare", "--baseline", "v1", "--candidate", "v2", "--preset", "smoke")


def test_two_revisions_are_compared_in_all_that_both_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPSBENCH_CACHE_DIR", str(tmp_path / "cache"))
    sizes = (7, 64)
    v1 = [(name, size) for name in ("old", "a", "b") for size in sizes]
    v2 = [("b", 7), ("a", 64), ("a", 7), ("new", 7)]
    fakes = FakeRevisions(tmp_path, monkeypatch, v1=v1, v2=v2)
    contenders: list[dict[str, Contender]] = []
    sources: list[WrittenRequests] = []
    fake = FakePairs(2.0)
    timed = partial(compare, clock_ns=fake.clock_ns, sleep=fake.sleep)
    monkeypatch.setattr(module, "compare", timed)

    def fresh_pair(sides: dict[str, Contender], ask: object, number: int, protocol: str):  # type: ignore[no-untyped-def]
        contenders.append(sides)
        return fake.pair(number)

    monkeypatch.setattr(module, "fresh_pair", fresh_pair)
    monkeypatch.setattr(module, "same_requests", lambda source, _: sources.append(source))
    few = ("--launches", "2", "--pairs", "1")
    written = ("--junit", "out/junit.xml", "--markdown", "out/summary.md")
    assert cli.main([*TWO_REVISIONS, *few, *written]) == 0
    common = [("a", 7), ("a", 64), ("b", 7)]
    assert fakes.built == [common, common]
    assert contenders[0][CANDIDATE].models == ("lookup", "a", "b")
    # Both are sent the baseline's requests.
    assert sources[0].files == {
        b: tmp_path / f"v1-{b.model}-{b.batch_size}.json" for b in benchmarks_of(common)
    }
    out = capsys.readouterr().out
    assert "\nbenchmarks 3: a-b7, a-b64, b-b7\n" in out
    for said in (
        "left out: half: no GPU here",
        "left out: old at batch size 7: only the baseline has it",
        "left out: b at batch size 64: only the baseline has it",
        "left out: new at batch size 7: only the candidate has it",
        "verdicts: 3 PASS",
        "wrote out/junit.xml",
    ):
        assert said in out
    assert 'tests="3"' in (tmp_path / "out" / "junit.xml").read_text()
    assert "All 3 benchmarks passed" in (tmp_path / "out" / "summary.md").read_text()
    (file,) = (tmp_path / ".hpsbench" / "comparisons").glob("*.json")
    assert [b.name for b in comparisons.load(file).benchmarks] == ["a-b7", "a-b64", "b-b7"]


def test_batch_sizes_may_be_chosen_of_all_models_and_models_without_a_size_have_one_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPSBENCH_CACHE_DIR", str(tmp_path / "cache"))
    fakes = FakeRevisions(tmp_path, monkeypatch, v1=[("a", 3)], v2=[("a", 3)])
    fake = FakePairs(2.0)
    monkeypatch.setattr(module, "fresh_pair", lambda _, __, number, protocol: fake.pair(number))
    few = ("--launches", "1", "--pairs", "1")
    cli.main([*TWO_REVISIONS, *few, "--batch-size", "3"])
    assert fakes.asked_sizes == [(3,), (3,)]
    cli.main([*TWO_REVISIONS, *few, "--model", "a,b"])
    assert fakes.built[-1] == [("a", 1), ("b", 1)]
    assert len(fakes.asked_sizes) == 2


def test_revisions_without_anything_in_common_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPSBENCH_CACHE_DIR", str(tmp_path / "cache"))
    FakeRevisions(tmp_path, monkeypatch, v1=[("a", 3)], v2=[("b", 3)])
    assert cli.main([*TWO_REVISIONS]) == 4
    assert "nothing of preset smoke in common" in capsys.readouterr().err
