"""The summary for GitHub and the JUnit XML, against `tests/golden`.

After an intended change: `HPSBENCH_GOLDEN=write pytest tests/unit/test_report_markdown.py`, then
read the difference.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hpsbench.baselines import Baseline
from hpsbench.report import html, junit, markdown, notation
from hpsbench.report.contents import Contents
from hpsbench.runs import Result, Run
from hpsbench.verdict import Outcome, Verdict, vanished
from tests.scripted import baseline_of, measurement, run_of, verdict
from tests.scripted_report import duets

GOLDEN = Path(__file__).parents[1] / "golden"


def contents() -> Contents:
    """Return a run with every outcome, at one batch size each."""
    run = run_of()
    cases: list[tuple[str, dict[str, object], bool]] = [
        ("native_tf", {}, True),
        ("hps_tf", {"slowdown": 1.2}, True),
        ("hps_ensemble", {"slowdown": 0.8}, True),
        ("hps_onnx_fp32", {"slowdown": 1.05}, True),
        ("hps_onnx_fp16", {"invalid": "launch 2: 3 of 120 requests failed: <503> | a|b"}, True),
        ("native_tf_hybrid", {}, False),
    ]
    results = []
    for variant, changes, stored in cases:
        baseline = baseline_of(measurement(variant)) if stored else None
        results.append(_result(measurement(variant, **changes), baseline))  # type: ignore[arg-type]
    other = measurement("hps_tf", 7)
    judged = verdict(other, elsewhere=["gpu-nvidia-h100-80gb-hbm3"])
    results.append(Result(test="t.py::test[o]", measurement=other, verdict=judged))
    gone = vanished(baseline_of(measurement("hps_old")))
    whole = Run(**{**vars(run), "results": tuple(results), "vanished": (gone,)})
    return Contents(run=whole, baselines={}, publications=(), earlier=())


def _result(measured: object, baseline: Baseline | None) -> Result:
    judged = verdict(measured, baseline)  # type: ignore[arg-type]
    return Result(test="t.py::test", measurement=measured, verdict=judged)  # type: ignore[arg-type]


def compare(name: str, text: str) -> None:
    golden = GOLDEN / name
    if os.environ.get("HPSBENCH_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()


def test_the_golden_run_has_every_outcome() -> None:
    assert {v.outcome for v in contents().run.verdicts} == set(Outcome)


def test_the_summary_puts_verdicts_first_and_folds_the_rest() -> None:
    compare("markdown/summary.md", markdown.summary(contents()))


def test_a_summary_of_passes_alone_is_folded() -> None:
    run = run_of()
    result = _result(measurement(), baseline_of(measurement()))
    whole = Run(**{**vars(run), "results": (result,)})
    text = markdown.summary(Contents(run=whole, baselines={}, publications=(), earlier=()))
    compare("markdown/passed.md", text)


def test_a_comparison_shows_every_benchmark_worst_first_and_folds_the_launches() -> None:
    compare("markdown/comparison.md", markdown.comparison_summary(duets()[-1]))


def test_the_xml_of_a_comparison_has_a_case_per_benchmark() -> None:
    compare("junit/comparison.xml", junit.comparison_xml(duets()[-1]))


def test_the_xml_has_a_case_per_benchmark() -> None:
    compare("junit/verdicts.xml", junit.suite_xml(contents()))


def test_the_xml_counts_what_it_holds() -> None:
    suite = ElementTree.fromstring(junit.suite_xml(contents()))[0]
    cases = suite.findall("testcase")
    assert int(suite.attrib["tests"]) == len(cases) == 8
    for kind, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(suite.attrib[count]) == len(suite.findall(f"testcase/{kind}")) > 0


@pytest.mark.parametrize(
    ("outcomes", "text"),
    [
        ([], "Nothing was measured"),
        (["PASS"], "The benchmark passed"),
        (["PASS"] * 3, "All 3 benchmarks passed"),
        (["PASS", "IMPROVED"], "Nothing regressed; 1 of 2 benchmarks improved"),
        (["PASS", "VANISHED"], "Nothing regressed; 1 of 2 benchmarks has no verdict"),
        (["NO_BASELINE"] * 2, "No verdict on any of 2 benchmarks"),
        (["NO_BASELINE"], "No verdict on 1 benchmark"),
        (["REGRESSED", "INVALID", "PASS"], "1 of 3 benchmarks regressed"),
    ],
)
def test_the_headline_is_the_result_in_a_sentence(outcomes: list[str], text: str) -> None:
    verdicts = [Verdict(outcome=Outcome(o), benchmark="b", text="", hint="") for o in outcomes]
    assert notation.headline(verdicts) == text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (notation.significant(0.12345), "0.1235"),
        (notation.significant(131072.4), "131072"),
        (notation.milliseconds(1_234_500), "1.234"),
        (notation.milliseconds(None), "–"),  # noqa: RUF001
        (notation.ratio(0.94555), "0.946"),
        (notation.ratio(39.74), "39.7"),
        (notation.change(-0.0512), "−5.1%"),  # noqa: RUF001
        (notation.change(-0.0001), "0.0%"),
        (notation.change(2.127), "+213%"),
        (notation.change(21.2), ">+1000%"),
        (notation.limit(21.2), ">±1000%"),
        (notation.limit(0.03), "±3.0%"),
        (notation.interval(0.012, None), "–"),  # noqa: RUF001
    ],
)
def test_figures_are_written_alike(written: str, expected: str) -> None:
    assert written == expected


def test_what_changed_since_all_baselines_is_said_once_in_page_and_summary() -> None:
    whole = contents()
    results = [
        dataclasses.replace(r, verdict=dataclasses.replace(r.verdict, text=f"{r.verdict.text}{s}"))
        for r in whole.run.results
        for s in ["; changed since: commit 1 -> 2" if r.verdict.change is not None else ""]
    ]
    told = dataclasses.replace(whole, run=dataclasses.replace(whole.run, results=tuple(results)))
    assert markdown.summary(told).count("commit 1 -\\> 2") == 1
    page = html.page(told)
    assert page.count("commit 1") == 1
    assert "Changed since their baselines: commit 1 \N{RIGHTWARDS ARROW} 2." in page
