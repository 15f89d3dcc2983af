"""The sides and options of `hpsbench compare`: folders, git revisions, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from hpsbench import cli, revisions
from hpsbench.commands import compare as module
from hpsbench.commands import compared_sides
from hpsbench.commands.comparison import compare
from hpsbench.duets import comparisons
from hpsbench.duets.benchmarks import benchmarks_of
from hpsbench.duets.decision import BASELINE, CANDIDATE
from hpsbench.duets.pairs import Contender
from hpsbench.duets.requests import WrittenRequests
from hpsbench.revisions import BuiltModels, Revision
from tests.scripted_pairs import FakePairs

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
    ("option", "value", "problem"),
    [
        ("--launches", "0", "--launches 0 measures nothing"),
        ("--pairs", "0", "--pairs 0 measures nothing"),
        ("--warm-up", "-1", "--warm-up -1 is negative"),
        ("--batch-size", "-1", "--batch-size -1 measures nothing"),
        ("--model", " ,", "--model ' ,' names no model"),
        ("--batch-size", "7,many", "--batch-size '7,many' is no number of samples"),
        ("--batch-size", "7,0", "--batch-size 0 measures nothing"),
        ("--model", "dlrm,absent", "the model repository . has no model 'absent'"),
    ],
)
def test_options_that_name_or_measure_nothing_are_refused(
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
