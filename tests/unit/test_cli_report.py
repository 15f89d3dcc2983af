"""`hpsbench report`: which run it takes, what it writes, and where."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hpsbench import baselines, cli, runs
from hpsbench.runs import Run, combined
from tests.scripted import baseline_of, measurement, run_of, verdict


def stored_run(number: int, **changes: object) -> Run:
    m = measurement(**changes)  # type: ignore[arg-type]
    run = run_of(m, run_id=f"2026010{number}T030405Z-aaaaaa")
    judged = verdict(m, baseline_of(measurement()))
    result = runs.Result(test="tests/t.py::test", measurement=m, verdict=judged)
    recorded = f"2026-01-0{number}T03:04:05Z"
    whole = Run(**{**vars(run), "results": (result,), "recorded_at": recorded})
    runs.save(runs.FOLDER, whole)
    return whole


@pytest.fixture(autouse=True)
def three_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    monkeypatch.chdir(tmp_path)
    return [stored_run(1), stored_run(2, slowdown=1.02), stored_run(3, slowdown=1.2)]


def history_of(page: str) -> set[str]:
    found = page.split('<section id="history">')
    return {f"2026-01-0{n}" for n in range(1, 4) if len(found) > 1 and f"2026-01-0{n}T" in found[1]}


def test_the_newest_run_is_reported_beside_the_runs() -> None:
    assert cli.main(["report"]) == 0
    text = Path(".hpsbench/report.html").read_text()
    assert "1 of 1 benchmark regressed" in text
    assert "20260103T030405Z-aaaaaa" in text
    assert history_of(text) == {"2026-01-01", "2026-01-02", "2026-01-03"}


def test_a_run_is_named_by_how_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "20260102", "--html", "out/old.html"]) == 0
    assert capsys.readouterr() == ("", "wrote out/old.html\n")
    text = Path("out/old.html").read_text()
    assert "The benchmark passed" in text
    assert history_of(text) == {"2026-01-01", "2026-01-02"}
    assert not Path(".hpsbench/report.html").exists()


def test_of_several_runs_the_newest_is_reported_and_the_others_are_its_history() -> None:
    assert cli.main(["report", "20260103", "20260101", "--html", "x.html"]) == 0
    text = Path("x.html").read_text()
    assert "1 of 1 benchmark regressed" in text
    assert history_of(text) == {"2026-01-01", "2026-01-03"}


def test_the_baselines_launches_are_shown(three_runs: list[Run]) -> None:
    baselines.update(Path("far"), combined(three_runs[:1]))
    assert cli.main(["report", "--baselines", "far", "--html", "x.html"]) == 0
    assert "hps_tf, baseline, launch 4: " in Path("x.html").read_text()


def test_every_form_is_written_that_is_asked_for() -> None:
    assert cli.main(["report", "--junit", "v.xml", "--markdown", "s.md"]) == 0
    assert ElementTree.parse("v.xml").getroot()[0].attrib["failures"] == "1"
    assert Path("s.md").read_text().startswith("## hpsbench: 1 of 1 benchmark regressed\n")
    assert not Path(".hpsbench/report.html").exists()


def test_what_was_accepted_keeps_its_verdict_and_is_shown_as_accepted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = [measurement("native_tf"), measurement("hps_tf", slowdown=1.2)]
    judged = [verdict(measured[0]), verdict(measured[1], baseline_of(measurement()))]
    assert [v.outcome.value for v in judged] == ["NO_BASELINE", "REGRESSED"]
    results = tuple(
        runs.Result(test="tests/t.py::test", measurement=m, verdict=v)
        for m, v in zip(measured, judged, strict=True)
    )
    run = dataclasses.replace(run_of(run_id="20260109T030405Z-aaaaaa"), results=results)
    runs.save(runs.FOLDER, run)
    assert cli.main(["report"]) == 0
    page = Path(".hpsbench/report.html")
    before = page.read_text()
    assert "Accepted since" not in before
    capsys.readouterr()

    assert cli.main(["baseline", "update", "--only", "smoke-native_tf-b64"]) == 0
    said = capsys.readouterr().out
    assert "wrote .hpsbench/report.html, where these are shown as accepted\n" in said
    text = page.read_text()
    assert "1 of 2 benchmarks regressed</h1>" in text
    assert "<code>hpsbench baseline update</code>: 1 of the 2</p>" in text
    accepted = re.search(r'<details class="outcome no_baseline".*?</details>', text)
    assert accepted is not None
    assert "Accepted since: <code>hpsbench baseline update</code> stored this run" in accepted[0]
    assert "to store this run, and commit" not in accepted[0]
    regressed = re.search(r'<details class="outcome regressed".*?</details>', text)
    assert regressed is not None
    assert "Find the cause" in regressed[0]

    assert cli.main(["baseline", "update"]) == 0
    assert cli.main(["report", "--junit", "v.xml", "--markdown", "s.md"]) == 0
    assert page.read_text().count("Accepted since: <code>") == 2
    summary = Path("s.md").read_text()
    assert "**REGRESSED**, slower than its baseline: accepted since: `hpsbench" in summary
    cases = ElementTree.parse("v.xml").getroot().iter("testcase")
    marks = [
        "accepted_as_baseline" in {p.attrib["name"] for p in c.iter("property")} for c in cases
    ]
    assert marks == [True, True]


def test_a_page_of_another_run_is_left_as_it_is() -> None:
    assert cli.main(["report"]) == 0
    page = Path(".hpsbench/report.html")
    before = page.read_text()
    assert cli.main(["baseline", "update", "20260102"]) == 0
    assert page.read_text() == before


@pytest.mark.parametrize("target", ["file", "pipe"])
def test_what_is_no_plain_file_is_written_to_in_place(target: str) -> None:
    """As /dev/stdout is, which must stay what it is."""
    read_fd, write_fd = os.pipe()
    Path("target").write_text("old")
    link = Path("link")
    link.symlink_to("target" if target == "file" else f"/proc/self/fd/{write_fd}")
    try:
        assert cli.main(["report", "--markdown", "link"]) == 0
        assert link.is_symlink()
        written = Path("target").read_text() if target == "file" else os.read(read_fd, 99).decode()
        assert written.startswith("## hpsbench: ")
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_a_damaged_earlier_run_costs_its_place_in_the_history_alone() -> None:
    (runs.FOLDER / "20260102T030405Z-aaaaaa.json").write_text("{")
    assert cli.main(["report", "--html", "x.html"]) == 0
    assert history_of(Path("x.html").read_text()) == {"2026-01-01", "2026-01-03"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nothing"], "error: no run nothing in .hpsbench/runs\n"),
        (["--runs", "none"], "error: no runs in none\n"),
        (["--html", "file/x.html"], "error: cannot write the report file/x.html: "),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("")
    assert cli.main(["report", *arguments]) == 4
    said = capsys.readouterr().err
    assert said.startswith(problem)
    assert "\nhint: " in said
