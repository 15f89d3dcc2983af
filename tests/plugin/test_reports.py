"""What a session leaves for readers: its page, GitHub's summary, and properties in JUnit XML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hpsbench import runs
from hpsbench.report.files import HTML_NAME

pytest_plugins = ["pytester"]

Session = Callable[..., pytest.RunResult]

SLOWER = {"hps_tf-b64": {"slowdown": 1.2}}


@pytest.fixture
def page(pytester: pytest.Pytester) -> Path:
    return pytester.path / runs.FOLDER.parent / HTML_NAME


def test_a_session_writes_its_page_and_names_it_last(session: Session, page: Path) -> None:
    result = session()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["run stored in *", "report: .hpsbench/report.html"])
    assert "No verdict on any of 4 benchmarks" in page.read_text()


def test_the_page_is_of_the_newest_session_with_those_before_it(
    session: Session, page: Path
) -> None:
    for _ in range(2):
        session(script=SLOWER)
    text = page.read_text()
    ids = [path.stem for path in sorted((page.parent / "runs").glob("*.json"))]
    assert f"run {ids[-1]}" in text.split("<footer>")[1]
    assert 'id="history"' in text


def test_a_page_that_cannot_be_written_costs_no_verdict(session: Session, page: Path) -> None:
    page.mkdir(parents=True)
    result = session()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["run stored in *", "error: cannot write the report *"])
    result.stdout.no_fnmatch_line("report: *")


def test_a_publication_that_cannot_be_read_costs_no_verdict(
    session: Session, pytester: pytest.Pytester
) -> None:
    folder = pytester.mkdir("baselines") / "published"
    folder.mkdir()
    (folder / "x.json").write_text("{")
    result = session()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["error: *x.json is no JSON*", "*hint: restore the file from git"])


def test_the_job_summary_of_github_is_added_to(
    session: Session, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = pytester.path / "summary.md"
    summary.write_text("# Before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    session()
    lines = summary.read_text().splitlines()
    assert lines[0] == "# Before"
    assert "## hpsbench: No verdict on any of 4 benchmarks" in lines


def test_junit_xml_carries_the_verdict_of_each_test(
    session: Session, pytester: pytest.Pytester
) -> None:
    session()
    session("--junitxml=tests.xml", script=SLOWER)
    cases = ElementTree.parse(pytester.path / "tests.xml").getroot().iter("testcase")
    found = {
        case.attrib["name"]: {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        for case in cases
    }
    assert len(found) == 4
    assert found["test_latency[hps_tf-64]"] == {
        "benchmark": "smoke-hps_tf-b64",
        "outcome": "NO_BASELINE",
    }
