"""Reports of the many-table model: ratios are to `unfused`, and what is published of it beside."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from hpsbench.presets import load_suite
from hpsbench.published import load
from hpsbench.report import markdown, terminal
from hpsbench.report.contents import Contents
from hpsbench.report.html import page
from hpsbench.report.results import results_files
from hpsbench.runs import Run, baselines_of
from hpsbench.workload import workload_of
from tests.scripted import measurement, run_of
from tests.scripted_report import sample_run

PUBLICATIONS = load(Path(__file__).parents[2] / "baselines")


def fusion_run() -> Run:
    """Return a run in which `fused` takes seven tenths of the time; measured before `unfused`."""
    run = run_of(
        *(
            measurement(variant, size, preset="fusion-8", slowdown=slowdown)
            for size in (32, 256)
            for variant, slowdown in (("fused", 0.7), ("unfused", 1.0))
        )
    )
    return dataclasses.replace(run, preset="fusion-8", workload=workload_of(load_suite("fusion-8")))


def contents(run: Run) -> Contents:
    return Contents(run=run, baselines={}, publications=PUBLICATIONS, earlier=())


def section(text: str, anchor: str) -> str:
    return text.split(f'<section id="{anchor}">')[1].split("</section>")[0]


def test_the_terminal_s_table_divides_by_unfused() -> None:
    lines = [line.text for line in terminal.table(fusion_run(), concurrency=1, width=100)]
    assert lines[0].split() == ["batch", "unfused", "fused"]
    ratios = [line.split() for line in lines if "p10 :" in line]
    assert ratios == [["p10", ":", "unfused", "1.000", "0.701"]] * 2


def test_the_summary_divides_by_unfused() -> None:
    text = markdown.summary(contents(fusion_run()))
    assert "| k samples/s | p10 : unfused |" in text
    assert "native_tf" not in text


def test_the_published_call_stands_beside_its_batch_size() -> None:
    text = page(contents(fusion_run()))
    table = text.split('aria-label="Figures by batch size and variant"')[1].split("</table>")[0]
    rows = [re.findall(r">([^<>]+)<", row) for row in table.split("</tr>")]
    assert "V100 table fusion, infer, ms" in rows[0]
    (published,) = (row for row in rows if "9.443" in row)
    assert published[0] == "fused"
    # What stands in no table above is not spoken of there.
    assert "DGX A100" not in section(text, "figures")
    # One figure is no line to draw.
    assert "Compute infer, beside" not in text


def test_a_report_of_dlrm_says_nothing_of_fusion_but_what_is_published() -> None:
    before, _ = page(contents(sample_run())).split('<section id="published-figures">')
    assert "dashed: published" in before
    assert not re.search(r"\b(un)?fused\b", before.partition("</style>")[2])


def test_a_results_page_tells_the_tables_and_divides_by_unfused() -> None:
    files = results_files(baselines_of(fusion_run()), PUBLICATIONS)
    (text,) = (text for name, text in files.items() if name.endswith(".md"))
    assert "8 tables of 10,000 rows x 128" in text
    assert "(p10 as a ratio to `unfused`, with the same keys)" in text
    assert "| batch | `unfused` | `fused` |" in text
