"""What stands beside a run in its report: load curves and self-tests that are stored here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hpsbench import cli, load_results, runs
from hpsbench.commands import report as report_command
from hpsbench.duets import comparisons, selftests
from hpsbench.errors import BaselineError
from hpsbench.report.contents import gather
from tests.scripted import MACHINE, measurement, run_of
from tests.scripted_load import load_curve
from tests.scripted_report import duets, selftest_of_the_host


def test_the_newest_of_this_class_of_machine_are_shown(tmp_path: Path) -> None:
    beside = tmp_path / ".hpsbench"
    curve = load_curve()
    load_results.save(beside / "load" / "1.json", curve)
    load_results.save(beside / "load" / "2.json", dataclasses.replace(curve, model="newer"))
    load_results.save(beside / "load" / "3.json", dataclasses.replace(curve, machine="another"))
    (beside / "load" / "4.json").write_text("{")
    for duet in duets():
        comparisons.save(beside / "comparisons", duet)
    selftests.store(beside / "selftest.json", selftest_of_the_host())
    noisy = dataclasses.replace(selftest_of_the_host(neighbours=1), machine="another")
    selftests.store(beside / "selftest-noisy.json", noisy)
    run = run_of(measurement())
    contents = gather(run, baselines_folder=tmp_path, earlier=[], beside=beside)
    assert [result.model for result in contents.loads] == ["newer", "hps_tf"]
    assert contents.loads[1] == curve
    assert sorted(c.title for c in contents.comparisons) == sorted(d.title for d in duets())
    assert [found.neighbours for found in contents.selftests] == [0]
    bare = gather(run, baselines_folder=tmp_path, earlier=[])
    assert (bare.loads, bare.comparisons, bare.selftests) == ((), (), ())


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BaselineError, match=r"cannot write .*1\.json"):
        load_results.save(tmp_path / "file" / "1.json", load_curve())
    with pytest.raises(BaselineError, match="cannot store the comparison"):
        comparisons.save(tmp_path / "file", duets()[0])


def test_without_a_session_what_commands_stored_is_a_report_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report_command, "this_machine", lambda: MACHINE)
    assert cli.main(["report"]) == 4
    assert "no runs in .hpsbench/runs" in capsys.readouterr().err
    load_results.save(load_results.FOLDER / "1.json", load_curve())
    assert cli.main(["report"]) == 0
    assert capsys.readouterr().err == (
        "wrote .hpsbench/report.html: no session is stored, so of what commands measured\n"
    )
    text = Path(".hpsbench/report.html").read_text("utf-8")
    assert f'<h1>Load</h1><p class="meta">on <b>{MACHINE.cls}</b>' in text
    assert "Figures of <b>hps_tf, batch 64</b>" in text
    assert 'id="comparisons"' not in text
    for duet in duets():
        comparisons.save(comparisons.FOLDER, duet)
    assert cli.main(["report", "--html", "here.html"]) == 0
    assert "<h1>Load and comparisons</h1>" in Path("here.html").read_text("utf-8")
    # A summary is of verdicts, and those are a session's.
    assert cli.main(["report", "--markdown", "summary.md"]) == 4
    runs.save(runs.FOLDER, run_of(measurement()))
    assert cli.main(["report"]) == 0
    assert "no session is stored" not in Path(".hpsbench/report.html").read_text("utf-8")
