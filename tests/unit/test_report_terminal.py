"""The table, the verdict lines and the command's output, against `tests/golden/terminal`.

After an intended change: `HPSBENCH_GOLDEN=write pytest tests/unit/test_report_terminal.py`, then
read the difference.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from hpsbench.errors import BenchError
from hpsbench.figures import figures
from hpsbench.report import stored
from hpsbench.report.terminal import (
    Line,
    ProgressLine,
    closing_lines,
    engine_lines,
    progress_text,
    table,
    verdict_lines,
)
from hpsbench.runs import Run, combined
from hpsbench.session import Progress
from hpsbench.verdict import Outcome, Verdict, vanished
from tests.scripted import baseline_of, measurement, run_of, verdict

GOLDEN = Path(__file__).parents[1] / "golden" / "terminal"
SIX_VARIANTS = (
    "native_tf", "native_tf_hybrid", "hps_tf", "hps_ensemble", "hps_onnx_fp32", "hps_onnx_fp16",
)  # fmt: skip


def compare(name: str, lines: Iterable[str]) -> None:
    text = "\n".join(lines) + "\n"
    golden = GOLDEN / name
    if os.environ.get("HPSBENCH_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()


def texts(lines: Sequence[Line], width: int) -> list[str]:
    for line in lines:
        assert len(line.text) <= width, line.text
    return [line.text for line in lines]


def full_run(variants: Sequence[str] = ("native_tf", "hps_tf", "hps_ensemble")) -> Run:
    """Return a run over four batch sizes, in which latency grows with them."""
    measured = [
        measurement(
            variant,
            size,
            slowdown=1 + 0.07 * place,
            reference_ns=900_000 + 9_137 * size,
            preset="laptop",
        )
        for size in (32, 256, 1024, 131072)
        for place, variant in enumerate(variants)
    ]
    return run_of(*measured)


def every_outcome() -> list[Verdict]:
    baseline = baseline_of(measurement())
    two = [baseline_of(measurement("native_tf")), baseline_of(measurement("hps_ensemble"))]
    return [
        verdict(measurement(), baseline),
        verdict(measurement(slowdown=0.8), baseline),
        verdict(measurement(slowdown=1.05), baseline),
        verdict(measurement("native_tf")),
        verdict(measurement("hps_ensemble")),
        verdict(measurement(batch_size=7), elsewhere=["gpu-nvidia-h100-80gb-hbm3"]),
        verdict(measurement(invalid="launch 2: hps_tf had 3 of 120 requests fail: 503"), baseline),
        *map(vanished, two),
        verdict(measurement(slowdown=1.2), baseline),
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width: int) -> None:
    lines = table(full_run(SIX_VARIANTS), concurrency=1, width=width)
    compare(f"table_six_variants_{width}.txt", texts(lines, width))


def test_the_table_of_three_variants_is_one_block_on_80_columns() -> None:
    compare("table_80.txt", texts(table(full_run(), concurrency=1, width=80), 80))


def test_what_was_not_measured_is_a_dash() -> None:
    unserved = measurement("hps_tf", 7)
    no_server = [dataclasses.replace(launch, server=None) for launch in unserved.launches]
    run = run_of(
        measurement("native_tf", 7),
        dataclasses.replace(unserved, launches=tuple(no_server)),
        measurement("native_tf", 64, launches=(), invalid="Triton died"),
    )
    compare("table_with_gaps.txt", texts(table(run, concurrency=1, width=80), 80))


def test_what_served_each_variant_stands_below_the_table() -> None:
    assert engine_lines(full_run(), width=80) == []
    engines = {"native_tf": "TensorFlow 2.21.0, CPU", "hps_tf": "TensorFlow 2.21.0, CPU"}
    run = full_run()
    results = [
        dataclasses.replace(r, measurement=dataclasses.replace(r.measurement, engine=engine))
        for r in run.results
        for engine in [engines.get(r.measurement.variant, "ONNX Runtime 1.32.0, CPU")]
    ]
    lines = engine_lines(dataclasses.replace(run, results=tuple(results)), width=80)
    assert texts(lines, 80) == [
        "served by  TensorFlow 2.21.0, CPU: native_tf, hps_tf",
        "           ONNX Runtime 1.32.0, CPU: hps_ensemble",
        "",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_verdicts_stand_worst_first_and_share_their_hints(width: int) -> None:
    lines = verdict_lines(every_outcome(), width=width)
    compare(f"verdicts_{width}.txt", texts(lines, width))


def test_what_changed_since_all_baselines_is_said_once() -> None:
    since = "; changed since: commit 1 -> 2"
    slow = [
        verdict(measurement(v, slowdown=1.2), baseline_of(measurement(v))) for v in SIX_VARIANTS
    ]
    told = [dataclasses.replace(v, text=v.text + since) for v in slow]
    said = " ".join(line.text.strip() for line in verdict_lines(told, width=120))
    assert said.count("commit 1 -> 2") == 1
    assert "changed since their baselines: commit 1 -> 2 verdicts: " in said
    told[0] = dataclasses.replace(slow[0], text=slow[0].text + "; changed since: keras 3 -> 4")
    said = " ".join(line.text.strip() for line in verdict_lines(told, width=120))
    assert said.count("commit 1 -> 2") == len(told) - 1


def test_every_outcome_stands_in_the_golden_verdicts() -> None:
    assert {v.outcome for v in every_outcome()} == set(Outcome)


def test_colours_follow_the_outcome() -> None:
    lines = verdict_lines(every_outcome(), width=120)
    colors = {line.text.split()[0]: line.color for line in lines if line.color}
    assert colors["REGRESSED"] == colors["INVALID"] == "red"
    assert colors["PASS"] == colors["IMPROVED"] == "green"
    assert colors["NO_BASELINE"] == colors["INCONCLUSIVE"] == "yellow"


@pytest.mark.parametrize("strict", [True, False])
def test_the_closing_lines_say_where_the_run_is_and_what_the_exit_status_means(
    strict: bool,
) -> None:
    run = run_of(measurement())
    closing = closing_lines(
        run,
        strict=strict,
        side_by_side="hpsbench compare --baseline a --candidate b",
        stored="runs/x.json",
        report="report.html",
    )
    meaning = (
        "exit status 10, unless a test failed" if strict else "exit status 10 with --strict-gate"
    )
    assert [line.text for line in closing] == [
        "Whether it is the code or the machine:",
        "  hpsbench compare --baseline a --candidate b",
        f"1 without a verdict: {meaning}",
        "run stored in runs/x.json; see `hpsbench baseline diff`",
        "report: report.html",
    ]


def test_throughput_counts_every_client_of_the_closed_loop() -> None:
    one, four = (figures(measurement(batch_size=100), concurrency=c) for c in (1, 4))
    assert one is not None
    assert four is not None
    assert one.samples_per_s == pytest.approx(100 / 1.1011e-3, rel=1e-4)
    assert four.samples_per_s == pytest.approx(4 * one.samples_per_s)


def test_the_difference_names_figures_versions_and_what_is_missing() -> None:
    before = [baseline_of(measurement(v)) for v in ("native_tf", "hps_tf", "hps_ensemble")]
    run = run_of(measurement("native_tf"), measurement(slowdown=1.2), measurement("hps_new"))
    run = dataclasses.replace(run, under_test={**run.under_test, "tensorflow": "2.22.0"})
    verdicts = {"smoke-hps_tf-b64": verdict(measurement(slowdown=1.2), before[1])}
    known = {b.benchmark: b for b in before}
    compare("difference.txt", stored.difference(known, combined([run]), verdicts))


def test_the_listing_and_the_details_of_baselines() -> None:
    baselines = [
        baseline_of(measurement("native_tf")),
        baseline_of(measurement(slowdown=0.9), measurement(slowdown=0.92)),
    ]
    compare("listing.txt", stored.listing(baselines))
    compare("details.txt", stored.details(baselines[1]))


def progress(launch: int, batch_size: int | None, eta_s: float | None) -> Progress:
    return Progress(launch=launch, launches=4, batch_size=batch_size, elapsed_s=1.0, eta_s=eta_s)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (progress(1, None, None), "launch 1/4, starting servers"),
        (progress(1, 32, None), "launch 1/4, batch 32"),
        (progress(2, 1024, 61.4), "launch 2/4, batch 1024, about 61 s left"),
        (progress(2, 1024, 170.0), "launch 2/4, batch 1024, about 3 min left"),
    ],
)
def test_progress_says_where_the_session_is(step: Progress, text: str) -> None:
    assert progress_text(step) == text


def test_progress_is_one_line_where_it_can_be_rewritten() -> None:
    rewritten: list[str] = []
    line = ProgressLine(pytest.fail, rewritten.append)
    for size in (32, 256):
        line(progress(1, size, None))
    assert rewritten == ["launch 1/4, batch 32", "launch 1/4, batch 256"]


def test_progress_is_sparse_where_it_cannot() -> None:
    written: list[str] = []
    now_s = [0.0]
    line = ProgressLine(written.append, None, interval_s=20, clock_s=lambda: now_s[0])
    for at_s, launch, size in ((0, 1, 32), (5, 1, 64), (25, 1, 128), (26, 2, 32), (30, 2, 64)):
        now_s[0] = at_s
        line(progress(launch, size, None))
    assert written == ["launch 1/4, batch 32", "launch 1/4, batch 128", "launch 2/4, batch 32"]


def test_an_error_ends_with_its_hint() -> None:
    assert str(BenchError("it broke", hint="mend it")) == "it broke\n  hint: mend it"
