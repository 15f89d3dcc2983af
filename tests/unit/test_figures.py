"""What tables and charts show, from measurements whose answer is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hpsbench import baselines, figures, published, runs
from hpsbench.errors import ReportError
from hpsbench.figures import PERCENTILES, Figures
from hpsbench.measurements import ServerTimes
from hpsbench.published import COMPUTE_INFER, THROUGHPUT
from hpsbench.ratios import Statistic
from hpsbench.report import files
from hpsbench.report.contents import MOST_EARLIER, earlier_runs, gather
from hpsbench.runs import Run, combined
from hpsbench.workload import Workload
from tests.scripted import EVEN, LUCK, baseline_of, measurement, run_of, verdict
from tests.scripted_report import BASELINES_FOLDER


def run_at(number: int, *measurements: object, **changes: object) -> Run:
    run = run_of(*measurements, run_id=f"20260102T0304{number:02}Z-aaaaaa")  # type: ignore[arg-type]
    when = f"2026-01-02T03:04:{number:02}Z"
    return dataclasses.replace(run, recorded_at=when, **changes)  # type: ignore[arg-type]


def cell(infer_ns: float | None) -> Figures:
    return Figures(p10_ns=1, p50_ns=1, compute_infer_ns=infer_ns, samples_per_s=1, ratio=1)


def test_stages_add_up_to_what_the_client_waited() -> None:
    m = measurement(launches=(1.0, 1.0))
    found = figures.stages(m)
    assert found is not None
    assert found.total_ns == m.launches[0].mean_ns
    assert found.compute_infer_ns == 800_000
    assert found.client_ns == 1_100_000 - 860_000


def test_the_client_has_no_part_where_stages_overlap() -> None:
    m = measurement(launches=(1.0,))
    times = ServerTimes(
        queue_ns=0, compute_input_ns=0, compute_infer_ns=2_000_000, compute_output_ns=0
    )
    found = figures.stages(
        dataclasses.replace(m, launches=(dataclasses.replace(m.launches[0], server=times),))
    )
    assert found is not None
    assert (found.client_ns, found.total_ns) == (0, 2_000_000)


def test_what_no_server_counted_has_no_stages() -> None:
    m = measurement(launches=(1.0,))
    unserved = dataclasses.replace(m.launches[0], server=None)
    assert figures.stages(dataclasses.replace(m, launches=(unserved,))) is None
    assert figures.stages(measurement(launches=())) is None


def test_a_distribution_rises_over_all_launches() -> None:
    m = measurement(launches=(1.0, 2.0))
    curve = figures.distribution(m)
    assert len(curve) == len(PERCENTILES)
    assert list(curve) == sorted(curve)
    assert (curve[0], curve[-1]) == (1_000_000, 2_200_000)
    assert figures.distribution(measurement(launches=())) == ()


def test_launches_are_changes_from_the_baselines_typical_ratio() -> None:
    stored = baseline_of(measurement(launches=(1.0, 4.0)))
    run = run_of(measurement(launches=(2.0, 2.2)))
    found = figures.launch_ratios(run.results[0], stored)
    assert found is not None
    assert found.center == pytest.approx(2)
    assert found.own == pytest.approx((0, 0.1))
    assert found.stored == pytest.approx((-0.5, 1))


def test_launches_without_a_baseline_are_changes_from_their_own_ratio() -> None:
    result = run_of(measurement(launches=(1.0, 4.0))).results[0]
    found = figures.launch_ratios(result, None)
    assert found is not None
    assert found.own == pytest.approx((-0.5, 1))
    assert (found.stored, found.limit) == ((), None)


def test_the_limit_of_launches_is_the_verdicts() -> None:
    stored = baseline_of(measurement())
    judged = verdict(measurement(slowdown=1.2), stored)
    result = dataclasses.replace(run_of(measurement(slowdown=1.2)).results[0], verdict=judged)
    found = figures.launch_ratios(result, stored)
    assert found is not None
    assert found.limit == judged.limit is not None


def test_a_published_ratio_divides_by_the_publications_own_native() -> None:
    hybrid = next(p for p in published.load(BASELINES_FOLDER) if p.name == "A100-SXM4-80GB")
    table = hybrid.table(COMPUTE_INFER)
    assert table is not None
    cells = {("native_tf_hybrid", 32): cell(4e6), ("hps_tf", 32): cell(3e6)}
    found = figures.compared(table, cells, "hps_tf", 32)
    assert found.published == 612_000
    assert found.published_ratio == pytest.approx(612 / 551)
    assert found.own_ratio == pytest.approx(0.75)


def test_throughput_is_compared_as_time_is() -> None:
    gathered = next(p for p in published.load(BASELINES_FOLDER) if p.name == "DGX A100")
    table = gathered.table(THROUGHPUT)
    assert table is not None
    cells = {
        (variant, 32): dataclasses.replace(cell(None), samples_per_s=samples_per_s)
        for variant, samples_per_s in (("native_tf", 2.0), ("hps_tf", 1.5))
    }
    found = figures.compared(table, cells, "hps_tf", 32)
    assert found.published == pytest.approx(52_287)
    assert found.published_ratio == pytest.approx(52.287 / 50.314)
    assert found.own_ratio == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("variant", "batch_size"), [("native_tf", 32), ("hps_tf", 7), ("hps_ensemble", 32)]
)
def test_what_was_not_published_is_not_compared(variant: str, batch_size: int) -> None:
    hybrid = next(p for p in published.load(BASELINES_FOLDER) if p.name == "A100-SXM4-80GB")
    table = hybrid.table(COMPUTE_INFER)
    assert table is not None
    cells = {("native_tf_hybrid", batch_size): cell(1e6), (variant, batch_size): cell(1e6)}
    found = figures.compared(table, cells, variant, batch_size)
    assert (found.published, found.published_ratio, found.own_ratio) == (None, None, None)


def test_what_was_not_measured_here_is_published_alone() -> None:
    hybrid = next(p for p in published.load(BASELINES_FOLDER) if p.name == "A100-SXM4-80GB")
    table = hybrid.table(COMPUTE_INFER)
    assert table is not None
    for cells in ({}, {("hps_tf", 32): cell(1e6)}, {("hps_tf", 32): cell(None)}):
        found = figures.compared(table, cells, "hps_tf", 32)
        assert found.published_ratio is not None
        assert found.own_ratio is None


def test_a_history_joins_baselines_and_runs_once_each_in_time() -> None:
    first, second, third = (
        run_at(n, measurement(launches=(ratio, ratio)))
        for n, ratio in ((1, 1.0), (2, 2.0), (3, 4.0))
    )
    (stored,) = combined([first])
    found = figures.history(third, [second, first], {stored.benchmark: stored})
    (line,) = found.values()
    assert [p.run_id for p in line] == [first.run_id, second.run_id, third.run_id]
    assert [p.stored for p in line] == [True, False, False]
    assert [p.change for p in line] == pytest.approx([-0.5, 0, 1], abs=1e-3)


def test_what_was_judged_is_what_charts_show() -> None:
    stored = baseline_of(measurement(launches=LUCK, pairs=EVEN))
    measured = measurement(launches=LUCK, pairs=[1.02 * ratio for ratio in EVEN])
    run = run_at(9, measured)
    judged = dataclasses.replace(run.results[0], verdict=verdict(measured, stored))
    ratios = figures.launch_ratios(judged, stored)
    assert ratios is not None
    assert ratios.statistic is Statistic.PAIRS
    assert ratios.own == pytest.approx([1.02 * ratio - 1 for ratio in EVEN], abs=1e-5)
    run = dataclasses.replace(run, results=(judged,))
    (line,) = figures.history(run, [], {stored.benchmark: stored}).values()
    assert [(point.statistic, round(point.ratio, 3)) for point in line] == [
        (Statistic.PAIRS, 1.0),
        (Statistic.PAIRS, 1.02),
    ]


def test_a_history_that_reaches_back_before_pairs_is_of_p10() -> None:
    measured = measurement(launches=LUCK, pairs=EVEN)
    stored = baseline_of(measured)
    run = run_at(9, measured)
    judged = dataclasses.replace(run.results[0], verdict=verdict(measured, stored))
    before = run_at(1, measurement(launches=LUCK))
    run = dataclasses.replace(run, results=(judged,))
    (line,) = figures.history(run, [before], {stored.benchmark: stored}).values()
    assert {point.statistic for point in line} == {Statistic.P10}


def test_ratios_to_another_reference_are_no_history() -> None:
    other = dataclasses.replace(measurement(), reference="hps_ensemble")
    (line,) = figures.history(run_at(2, measurement()), [run_at(1, other)], {}).values()
    assert len(line) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": Workload(settings={"load.concurrency": 9})},
        {"machine": dataclasses.replace(run_of().machine, cls="cpu-other")},
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_workloads_and_machines_are_no_history(changes: dict[str, object]) -> None:
    other = run_at(1, measurement(), **changes)
    (line,) = figures.history(run_at(2, measurement()), [other], {}).values()
    assert len(line) == 1


def test_the_contents_hold_the_baselines_of_the_same_workload(tmp_path: Path) -> None:
    old, run = (run_at(n, measurement(), measurement("native_tf")) for n in (1, 2))
    stored = combined([old, run])
    other = Workload(settings={"load.concurrency": 9})
    stored[1] = dataclasses.replace(stored[1], workload=other)
    baselines.update(tmp_path, stored)
    contents = gather(run, baselines_folder=tmp_path, earlier=[old])
    assert list(contents.baselines) == ["smoke-hps_tf-b64"]
    # The run itself, stored since, is not what it was judged against.
    assert [r.run_id for r in contents.baselines["smoke-hps_tf-b64"].runs] == [old.run_id]
    assert contents.publications == ()


def test_earlier_runs_are_the_newest_that_can_be_read(tmp_path: Path) -> None:
    saved = [run_at(n) for n in range(MOST_EARLIER + 3)]
    for run in saved:
        runs.save(tmp_path, run)
    (tmp_path / f"{saved[-3].run_id}.json").write_text("{")
    found = [run.run_id for run in earlier_runs(tmp_path, saved[-1])]
    assert found == [run.run_id for run in (*saved[2:-3], saved[-2])]


def test_a_report_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    files.write(tmp_path / "new" / "x.html", "first")
    files.write(tmp_path / "new" / "x.html", "second")
    files.append(tmp_path / "new" / "x.html", " third")
    assert (tmp_path / "new" / "x.html").read_text() == "second third"


def test_a_report_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot write the report"):
        files.write(tmp_path / "file" / "x.html", "text")
    with pytest.raises(ReportError, match="cannot write the report"):
        files.append(tmp_path / "file" / "x.html", "text")
