"""The commands that a run leads to: measure it again, or ask its commit beside its baseline's."""

from __future__ import annotations

import dataclasses

import pytest

from hpsbench.baselines import Baseline
from hpsbench.measurements import Measurement
from hpsbench.report.contents import Contents
from hpsbench.report.html import page
from hpsbench.report.markdown import summary
from hpsbench.reproduction import reproduction, side_by_side
from hpsbench.runs import Run
from hpsbench.verdict import Outcome
from hpsbench.workload import Workload
from tests.scripted import baseline_of, measurement, run_of, verdict
from tests.scripted_report import sample_run

SLOWER = measurement("hps_tf", slowdown=1.5)


def test_the_command_of_a_run_measures_it_again() -> None:
    run = sample_run()
    run = dataclasses.replace(
        run,
        preset="laptop",
        under_test={
            **run.under_test,
            "hps.gpucache": "False",
            "servers.tensor_float_32": "True",
            "servers.xla": "True",
        },
        workload=Workload(settings={**run.workload.settings, "tables.num_embeddings": 1_000_000}),
    )
    batch_sizes_as_in_the_preset = "load.batch_sizes" not in reproduction(run)
    assert batch_sizes_as_in_the_preset
    assert reproduction(run) == (
        "pytest tests/test_it.py --preset laptop --variants native_tf,native_tf_hybrid,hps_tf,"
        "hps_ensemble,hps_onnx_fp32,hps_onnx_fp16 --set hps.gpucache=false "
        "--set 'load.also_keys=['\"'\"'zipf'\"'\"']' --set servers.xla=true"
    )


def test_the_command_quotes_lists_and_counts_launches() -> None:
    run = run_of(measurement("native_tf", 32, launches=(1.0, 1.0, 1.0)))
    assert reproduction(run) == (
        "pytest tests/test_it.py --preset smoke --variants native_tf "
        "--set 'load.batch_sizes=[32]' --set load.launches=3"
    )


def test_a_preset_of_the_users_own_is_named_as_a_file() -> None:
    run = dataclasses.replace(run_of(measurement("native_tf")), preset="mine")
    assert "--preset mine.toml" in reproduction(run)


def stored_at(commit: str | None, *measured: Measurement) -> dict[str, Baseline]:
    """Return the baselines of benchmarks that were measured at a commit, all equally fast."""
    stored = {}
    for m in measured:
        baseline = baseline_of(measurement(m.variant, m.batch_size))
        (run,) = baseline.runs
        under_test = {**run.under_test, **({} if commit is None else {"commit": commit})}
        run = dataclasses.replace(run, under_test=under_test)
        stored[m.benchmark] = dataclasses.replace(baseline, runs=(run,))
    return stored


def judged_at(commit: str | None, baselines: dict[str, Baseline], *measured: Measurement) -> Run:
    """Return a run of these benchmarks at a commit, with the verdicts on them."""
    run = run_of(*measured)
    return dataclasses.replace(
        run,
        under_test={**run.under_test, **({} if commit is None else {"commit": commit})},
        results=tuple(
            dataclasses.replace(
                result,
                verdict=verdict(result.measurement, baselines.get(result.measurement.benchmark)),
            )
            for result in run.results
        ),
    )


def test_what_is_slower_can_be_asked_beside_its_baselines_commit() -> None:
    measured = [
        SLOWER,
        measurement("hps_tf", 7, slowdown=1.05),  # undecided
        measurement("hps_ensemble", 7),
        measurement("native_tf", 7, slowdown=0.5),
    ]
    stored = stored_at("0123456789ab", *measured)
    assert side_by_side(judged_at("ba9876543210", stored, *measured), stored) == (
        "hpsbench compare --baseline 0123456789ab --candidate ba9876543210 --preset smoke "
        "--model hps_tf --batch-size 64,7"
    )


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        pytest.param("0123456789ab", "ba9876543210", measurement("hps_tf"), id="nothing-slower"),
        pytest.param(None, "ba9876543210", SLOWER, id="stored-without-commit"),
        pytest.param("0123456789ab", None, SLOWER, id="measured-without-commit"),
        pytest.param("0123456789ab-dirty", "ba9876543210", SLOWER, id="stored-of-changed-files"),
        pytest.param("0123456789ab", "ba9876543210-dirty", SLOWER, id="files-changed"),
        pytest.param("0123456789ab", "0123456789ab", SLOWER, id="the-same-code"),
        pytest.param(
            "0123456789ab",
            "ba9876543210",
            measurement("hps_tf-zipf", slowdown=1.5),
            id="keys-of-its-own",
        ),
    ],
)
def test_two_commits_that_git_can_give_are_needed(
    before: str | None, after: str | None, found: Measurement
) -> None:
    stored = stored_at(before, found)
    assert side_by_side(judged_at(after, stored, found), stored) is None


def test_what_is_faster_on_a_machine_too_noisy_to_tell_is_not_asked() -> None:
    noisy = measurement("hps_tf", slowdown=0.9, launches=(0.8, 1.25, 0.75, 1.3))
    stored = stored_at("0123456789ab", noisy)
    run = judged_at("ba9876543210", stored, noisy)
    assert run.results[0].verdict.outcome is Outcome.INCONCLUSIVE
    assert side_by_side(run, stored) is None


def test_the_page_and_the_summary_give_the_command() -> None:
    stored = stored_at("0123456789ab", SLOWER)
    run = judged_at("ba9876543210", stored, SLOWER)
    contents = Contents(run=run, baselines=stored, publications=[], earlier=[])
    command = side_by_side(run, stored)
    assert command is not None
    assert f"<code>{command}</code>" in page(contents)
    assert f"code or the machine: `{command}`" in summary(contents)
    same = dataclasses.replace(contents, run=judged_at("0123456789ab", stored, SLOWER))
    assert "hpsbench compare" not in page(same) + summary(same)


def test_of_several_commits_that_of_most_is_asked() -> None:
    sizes = [measurement("hps_tf", size, slowdown=1.5) for size in (7, 8, 64)]
    stored = stored_at("aaaaaaaaaaaa", sizes[0]) | stored_at("bbbbbbbbbbbb", *sizes[1:])
    command = side_by_side(judged_at("cccccccccccc", stored, *sizes), stored)
    assert command is not None
    assert "--baseline bbbbbbbbbbbb" in command
    assert command.endswith("--batch-size 8,64")


def test_a_benchmark_without_a_baseline_has_nothing_beside_it() -> None:
    assert side_by_side(judged_at("ba9876543210", {}, SLOWER), {}) is None
