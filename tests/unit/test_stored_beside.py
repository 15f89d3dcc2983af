"""What stands beside a run in its report: load curves and self-tests that are stored here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hpsbench import load_results
from hpsbench.duets import comparisons, selftests
from hpsbench.errors import BaselineError
from hpsbench.report.contents import gather
from tests.scripted import measurement, run_of
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
