"""Several benchmarks in one comparison, over scripted servers: each is decided by itself."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hpsbench.commands.comparison import Comparison, compare
from hpsbench.duets import comparisons
from hpsbench.duets.answers import Answers
from hpsbench.duets.benchmarks import DuetBenchmark, benchmarks_of
from hpsbench.duets.comparisons import StoredComparison
from hpsbench.duets.decision import BASELINE, CANDIDATE, DuetPolicy
from hpsbench.errors import BaselineError, ConfigError, InputsDiffer, RequestError, ServerDied
from hpsbench.load.interleaved import Participant, no_garbage_collection
from hpsbench.telemetry import Recording, Telemetry
from hpsbench.verdict import Outcome
from tests.scripted_report import duets
from tests.unit.test_telemetry_host import IDLE_HOST

MS = 1_000_000
POLICY = DuetPolicy(launches=3, pairs=40, warm_up=3)
#: Twelve: `a-b1` to `d-b64`.
BENCHMARKS = benchmarks_of((model, size) for model in "abcd" for size in (1, 8, 64))
NAMES = [b.name for b in BENCHMARKS]


@pytest.fixture(scope="module", autouse=True)
def _one_collection() -> Iterator[None]:
    """Collect garbage once, and not before every benchmark of every launch."""
    with no_garbage_collection():
        yield


class Host:
    """Servers of 2 ms with seeded noise, some of whose benchmarks misbehave; names say which."""

    def __init__(
        self,
        *,
        slower: Mapping[str, float] = {},
        fails: Sequence[str] = (),
        dies: Sequence[str] = (),
        from_launch: int = 1,
        differs: Mapping[str, float] = {},
        takes_else: Sequence[str] = (),
        never_starts: int = 0,
        dies_answering: str = "",
    ) -> None:
        self.dies_answering = dies_answering
        self.slower, self.fails, self.dies, self.from_launch = slower, fails, dies, from_launch
        self.differs, self.takes_else, self.never_starts = differs, takes_else, never_starts
        self.rng = np.random.default_rng(7)
        self.now_ns = 0
        self.dead = False
        self.starts: list[int] = []
        #: Who was asked on each pair, and examined.
        self.asked: list[list[str]] = []
        self.examined: list[str] = []
        self.open = 0

    def clock_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)

    @contextmanager
    def pair(self, number: int) -> Iterator[Host]:
        self.starts.append(number)
        self.asked.append([])
        self.dead = False
        if number == self.never_starts:
            raise ServerDied("triton ended with exit status 1", hint="read its log")
        yield self

    def check_alive(self) -> None:
        if self.dead:
            raise ServerDied("triton (process 7) was killed by signal 9", hint="read its log")

    def answers(self, benchmark: DuetBenchmark) -> dict[str, Answers]:
        self.examined.append(benchmark.name)
        if self.dead or benchmark.name == self.dies_answering:
            self.dead = True
            raise RequestError("triton cannot be reached", hint="none")
        if benchmark.name in self.takes_else:
            raise InputsDiffer("baseline and candidate take different inputs: ids", hint="compare")
        ones = np.ones((benchmark.batch_size, 1), np.float32)
        apart = self.differs.get(benchmark.name, 0.0)
        return {BASELINE: [{"y": ones}], CANDIDATE: [{"y": ones + apart}]}

    def participants(self, benchmark: DuetBenchmark) -> list[Participant]:
        self.asked[-1].append(benchmark.name)
        self.open += 2
        return [self.participant(side, benchmark.name) for side in (BASELINE, CANDIDATE)]

    def participant(self, side: str, name: str) -> Participant:
        slower = self.slower.get(name, 0.0) if side == CANDIDATE else 0.0
        misbehaves = side == CANDIDATE and self.starts[-1] >= self.from_launch

        def send() -> None:
            noise = 1 + abs(self.rng.normal(0, 0.03))
            self.now_ns += round(2 * MS * (1 + slower) * noise)
            if misbehaves and name in self.dies:
                self.dead = True
                raise RequestError("connection broke", hint="none")
            if misbehaves and name in self.fails:
                raise RequestError(f"model {name} answered with status 500: full", hint="none")

        return Participant(name=side, send=send, close=self.close)

    def close(self) -> None:
        self.open -= 1


def run(
    host: Host, benchmarks: Sequence[DuetBenchmark] = BENCHMARKS
) -> tuple[int, StoredComparison, list[str]]:
    lines: list[str] = []
    stored: list[StoredComparison] = []
    code = compare(
        Comparison(benchmarks=tuple(benchmarks), baseline="old/", candidate="new/", policy=POLICY),
        host.pair,
        lines.append,
        store=stored.append,
        clock_ns=host.clock_ns,
        sleep=host.sleep,
    )
    assert host.open == 0, "a client was left open"
    return code, stored[0], lines


def outcomes(compared: StoredComparison) -> dict[str, str]:
    """Return what is no PASS."""
    found = {b.name: b.verdict.outcome.value for b in compared.benchmarks}
    assert sorted(found) == sorted(NAMES)
    return {name: outcome for name, outcome in found.items() if outcome != "PASS"}


def text_of(compared: StoredComparison, name: str) -> str:
    return next(v.text for v in compared.verdicts if v.benchmark == name)


def test_all_benchmarks_share_the_launches_in_an_order_of_chance() -> None:
    host = Host()
    code, compared, _ = run(host)
    assert (code, outcomes(compared)) == (0, {})
    assert host.starts == [1, 2, 3]
    assert [sorted(names) for names in host.asked] == [sorted(NAMES)] * 3
    assert len({tuple(names) for names in host.asked}) == 3


def test_only_the_slow_one_regresses_and_only_it_is_asked_again() -> None:
    host = Host(slower={"c-b8": 0.08})
    code, compared, lines = run(host)
    assert (code, outcomes(compared)) == (1, {"c-b8": "REGRESSED"})
    assert host.starts == [1, 2, 3, 4, 5, 6]
    assert host.asked[3:] == [["c-b8"]] * 3
    assert compared.benchmarks[0].name == "c-b8"
    assert [ln.session for ln in compared.benchmarks[0].launches] == [1, 1, 1, 2, 2, 2]
    assert [ln.session for ln in compared.benchmarks[1].launches] == [1, 1, 1]
    assert "hint: find the cause" in "\n".join(lines)


def test_every_change_is_found_at_once_each_by_its_own_figures() -> None:
    slower = {"a-b1": 0.08, "b-b8": -0.08, "d-b64": 0.2}
    code, compared, _ = run(Host(slower=slower))
    assert code == 1
    assert outcomes(compared) == {
        "a-b1": "REGRESSED",
        "d-b64": "REGRESSED",
        "b-b8": "IMPROVED",
    }
    for benchmark in compared.benchmarks:
        wanted = slower.get(benchmark.name, 0.0)
        assert benchmark.verdict.change == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (
            Host(fails=["b-b8"]),
            "b-b8: launch 1: candidate was given up after 5 requests in a row failed: "
            "model b-b8 answered with status 500: full",
        ),
        (
            Host(differs={"b-b8": 0.5}),
            "b-b8: answers differ: by 0.5 at most, relative 0.5, where 0.001 is allowed; a "
            "candidate that answers otherwise is not measured",
        ),
        (Host(takes_else=["b-b8"]), "b-b8: baseline and candidate take different inputs: ids"),
    ],
    ids=["fails", "differs", "takes-else"],
)
def test_an_invalid_benchmark_leaves_the_others_their_verdicts(host: Host, text: str) -> None:
    host.slower = {"d-b1": 0.1}
    code, compared, _ = run(host)
    assert outcomes(compared) == {"d-b1": "REGRESSED", "b-b8": "INVALID"}
    assert code == 1
    assert text_of(compared, "b-b8") == text
    # It is asked no more, and the others in every launch.
    assert [len(names) for names in host.asked[1:3]] == [11, 11]
    assert all("b-b8" not in names for names in host.asked[1:])


def test_an_invalid_benchmark_alone_is_no_verdict() -> None:
    assert run(Host(fails=["b-b8"]))[0] == 10


def test_answers_are_compared_before_anything_is_measured() -> None:
    host = Host(differs=dict.fromkeys(NAMES, 0.5))
    code, compared, _ = run(host)
    assert (code, set(outcomes(compared).values())) == (10, {"INVALID"})
    assert (host.starts, host.asked, sorted(host.examined)) == ([1], [[]], sorted(NAMES))


def test_whoever_is_asked_when_a_server_dies_ends_and_the_rest_get_another_pair() -> None:
    host = Host(dies=["c-b1"], from_launch=2)
    code, compared, _ = run(host)
    assert (code, outcomes(compared)) == (10, {"c-b1": "INVALID"})
    assert text_of(compared, "c-b1") == "c-b1: launch 2: triton (process 7) was killed by signal 9"
    assert host.starts == [1, 2, 2, 3]
    # The first of the two pairs ended with it, and nobody was asked twice.
    assert sorted(host.asked[1] + host.asked[2]) == sorted(NAMES)
    assert host.asked[1][-1] == "c-b1"
    assert {len(b.launches) for b in compared.benchmarks if b.name != "c-b1"} == {3}


def test_whoever_kills_a_server_as_answers_are_compared_ends_alone() -> None:
    host = Host(dies_answering="c-b1")
    code, compared, _ = run(host)
    assert (code, outcomes(compared)) == (10, {"c-b1": "INVALID"})
    assert text_of(compared, "c-b1") == "c-b1: launch 1: triton (process 7) was killed by signal 9"
    assert host.starts == [1, 1, 2, 3]
    assert sorted(host.examined) == sorted(NAMES)
    assert [len(names) for names in host.asked] == [0, 11, 11, 11]


def test_a_server_that_dies_while_it_confirms_ends_that_benchmark_alone() -> None:
    host = Host(slower={"a-b1": 0.1, "b-b8": 0.1}, dies=["b-b8"], from_launch=5)
    code, compared, _ = run(host)
    assert (code, outcomes(compared)) == (1, {"a-b1": "REGRESSED", "b-b8": "INVALID"})
    assert text_of(compared, "b-b8").startswith("b-b8: confirming session, launch 2: triton")


def test_a_server_that_dies_before_anyone_is_asked_ends_all() -> None:
    host = Host(never_starts=2)
    code, compared, _ = run(host)
    assert (code, len(outcomes(compared))) == (10, 12)
    assert text_of(compared, "d-b64") == "d-b64: launch 2: triton ended with exit status 1"
    assert host.starts == [1, 2]


def test_requests_that_fit_no_model_are_an_error_before_anything_is_measured() -> None:
    class Misfit(Host):
        def answers(self, benchmark: DuetBenchmark) -> dict[str, Answers]:
            raise ConfigError("--shape idz: none of the models has such an input", hint="ids")

    host = Misfit()
    with pytest.raises(ConfigError):
        run(host)
    assert host.asked == [[]]


def test_an_unfit_machine_ends_whoever_was_asked_then() -> None:
    seen: list[str] = []
    host = Host()

    @contextmanager
    def watch() -> Iterator[Recording]:
        recording = Recording()
        yield recording
        seen.append(host.asked[-1][-1])
        busy = dataclasses.replace(IDLE_HOST, others=0.98 if len(seen) == 5 else 0.1)
        recording.telemetry = Telemetry(elapsed_s=2.0, samples=4, sampling_cpu_s=0.0, host=busy)

    stored: list[StoredComparison] = []
    code = compare(
        Comparison(benchmarks=BENCHMARKS, baseline="old/", candidate="new/", policy=POLICY),
        host.pair,
        lambda _: None,
        store=stored.append,
        watch=watch,
        clock_ns=host.clock_ns,
        sleep=host.sleep,
    )
    assert (code, outcomes(stored[0])) == (10, {seen[4]: "INVALID"})


def test_the_lines_stay_few_and_put_the_worst_first() -> None:
    three = benchmarks_of([("rank", 8), ("rank", 64), ("dlrm", 8)])
    host = Host(slower={"rank-b64": 0.1}, differs={"dlrm-b8": 0.0005})
    _, compared, lines = run(host, three)
    assert lines[:6] == [
        "benchmarks 3: rank-b8, rank-b64, dlrm-b8",
        "baseline   old/",
        "candidate  new/",
        "3 launches of 40 pairs of requests of each, after 3 to warm up; "
        "limits: 3.0%, of p50 10.0%",
        "",
        "dlrm-b8: answers differ by 0.0005 at most (1 request, relative 0.0005)",
    ]
    for number, line in enumerate(lines[6:9], start=1):
        said = rf"session 1, launch {number} of 3: 3 asked in 0\.5 s, p10 [+-]0\.\d% to \+[\d.]+%"
        assert re.fullmatch(said, line)
    assert lines[9:11] == [
        "",
        "benchmark  baseline p10, ms  candidate p10, ms     p10   pairs     p50     p99",
    ]
    assert [line.split()[0] for line in lines[11:14]] == ["rank-b8", "rank-b64", "dlrm-b8"]
    assert lines[15] == (
        "a change may show in rank-b64: a second session, of fresh servers, has to show it as well"
    )
    told = lines[-7:]
    assert [line.split(":")[0] for line in told] == [
        "",
        "REGRESSED rank-b64",
        "hint",
        "PASS dlrm-b8",
        "PASS rank-b8",
        "verdicts",
        "requests took 2.2 s, of one decision 1.1 s at most",
    ]
    assert told[-2] == "verdicts: 1 REGRESSED, 2 PASS"
    assert max(len(line) for line in lines[:-6]) < 100
    assert sum(b.measure_s or 0.0 for b in compared.benchmarks) == pytest.approx(2.2, abs=0.1)


def test_a_benchmark_alone_is_called_by_its_model_and_each_is_asked_once() -> None:
    assert [b.name for b in benchmarks_of([("dlrm", 64)])] == ["dlrm"]
    assert [b.name for b in benchmarks_of([("dlrm", 7), ("dlrm", 64), ("dlrm", 7)])] == [
        "dlrm-b7",
        "dlrm-b64",
    ]
    with pytest.raises(ValueError, match="needs a benchmark"):
        benchmarks_of([])


def test_comparisons_that_an_older_hpsbench_stored_are_still_read(tmp_path: Path) -> None:
    one = duets()[0]
    path = comparisons.save(tmp_path, one)
    fields = json.loads(path.read_text())
    (benchmark,) = fields.pop("benchmarks")
    del benchmark["batch_size"], benchmark["measure_s"]
    fields["policy"]["limit_p10"] = fields["policy"].pop("limit")
    del benchmark["verdict"]["statistic"]
    for launch in benchmark["launches"]:
        del launch["ratio_pairs"]
    path.write_text(json.dumps({**fields, "benchmarks": [benchmark], "schema_version": 2}))
    second = comparisons.load(path)
    path.write_text(json.dumps({**fields, **benchmark, "schema_version": 1}))
    read = comparisons.load(path)
    assert read == second
    (compared,) = one.benchmarks
    launches = tuple(dataclasses.replace(ln, ratio_pairs=None) for ln in compared.launches)
    assert read.benchmarks == (
        dataclasses.replace(
            compared,
            batch_size=None,
            measure_s=None,
            launches=launches,
            verdict=dataclasses.replace(compared.verdict, statistic="p10"),
        ),
    )
    assert read.verdicts[0].outcome is Outcome.REGRESSED
    assert comparisons.newest(tmp_path, one.machine, 5) == [read]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema_version": 4}, "has schema version 4, and this hpsbench reads up to 3"),
        ({"schema_version": 1}, "benchmarks is no known field|model is missing"),
        ({"benchmarks": []}, "a comparison needs a benchmark"),
    ],
)
def test_comparisons_that_cannot_be_read_are_refused_by_name(
    change: dict[str, object], problem: str, tmp_path: Path
) -> None:
    path = comparisons.save(tmp_path, duets()[0])
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BaselineError, match=problem) as caught:
        comparisons.load(path)
    assert str(path) in caught.value.problem
