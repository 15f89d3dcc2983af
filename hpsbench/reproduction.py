"""A run -> the commands that measure it again, and that tell its code from its machine."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hpsbench.baselines import Baseline
from hpsbench.config import Suite
from hpsbench.presets import load_suite, preset_names
from hpsbench.runs import DIRTY, Result, Run
from hpsbench.verdict import Outcome
from hpsbench.workload import split_row, subject_settings, workload_of

#: What the command of `side_by_side` tells.
CODE_OR_MACHINE = "Whether it is the code or the machine"


def side_by_side(run: Run, baselines: Mapping[str, Baseline]) -> str | None:
    """Return the command that asks a run's commit beside that of its baselines, where it is slower.

    Whatever the machine does meets both, so it tells the code from the machine. None where nothing
    is slower, or where git cannot give both commits, or they are the same. Of baselines of several
    commits it takes what most were measured at. Rows with keys of their own are left out.
    """
    own = _commit_of(run.under_test)
    slower = {
        r.measurement.benchmark: before
        for r in run.results
        if _is_slower(r) and not split_row(r.measurement.variant)[1]
        if (before := _stored_commit(baselines.get(r.measurement.benchmark))) is not None
        and before != own
    }
    if own is None or not slower:
        return None
    ((commit, _),) = Counter(slower.values()).most_common(1)
    asked = [r.measurement for r in run.results if slower.get(r.measurement.benchmark) == commit]
    words = ["hpsbench", "compare", "--baseline", commit, "--candidate", own]
    words += ["--preset", _preset(run)]
    words += ["--model", ",".join(dict.fromkeys(m.variant for m in asked))]
    words += ["--batch-size", ",".join(dict.fromkeys(str(m.batch_size) for m in asked))]
    return shlex.join(words)


def _is_slower(result: Result) -> bool:
    """Return whether a benchmark is, or may be: one that is faster on a blind machine may not."""
    verdict = result.verdict
    if verdict.outcome is not Outcome.INCONCLUSIVE:
        return verdict.outcome is Outcome.REGRESSED
    return max(verdict.change or 0.0, verdict.change_p50 or 0.0) > 0


def _stored_commit(baseline: Baseline | None) -> str | None:
    if baseline is None:
        return None
    return _commit_of(max(baseline.runs, key=lambda run: run.recorded_at).under_test)


def _commit_of(under_test: Mapping[str, str]) -> str | None:
    commit = under_test.get("commit")
    return None if commit is None or commit.endswith(DIRTY) else commit


def _preset(run: Run) -> str:
    return run.preset if run.preset in preset_names() else f"{run.preset}.toml"


def reproduction(run: Run) -> str:
    """Return the command that measures the same again, on as many launches.

    A preset of the user's own is named as a file; its settings cannot be told from its fields.
    """
    tests = dict.fromkeys(result.test.partition("::")[0] for result in run.results)
    measured = [result.measurement for result in run.results]
    known = run.preset in preset_names()
    words = ["pytest", *tests, "--preset", _preset(run)]
    rows = [split_row(m.variant) for m in measured]
    words += ["--variants", ",".join(dict.fromkeys(variant for variant, _ in rows))]
    settings = {**run.workload.settings, **run.under_test}
    for workload in (r.workload for r in run.results if r.workload is not None):
        settings = {**workload.settings, **settings}
    settings["load.also_keys"] = list(dict.fromkeys(keys for _, keys in rows if keys))
    settings["load.batch_sizes"] = list(dict.fromkeys(m.batch_size for m in measured))
    settings["load.launches"] = max((len(m.launches) for m in measured), default=0)
    if known:
        of_preset = _settings_of(load_suite(run.preset))
        # Some are named only where they are not the default.
        servers = [name for name in run.under_test if name.startswith("servers.")]
        for name in dict.fromkeys([*of_preset, *servers]):
            if name in settings and str(settings[name]) != str(of_preset.get(name)):
                text = str(settings[name])
                text = text.lower() if text in ("True", "False") else text
                words += ["--set", f"{name}={text}"]
    return shlex.join(words)


def _settings_of(suite: Suite) -> dict[str, Any]:
    load = {
        "load.batch_sizes": list(suite.load.batch_sizes),
        "load.launches": suite.load.launches,
        "load.also_keys": list(suite.load.also_keys),
    }
    return {**workload_of(suite).settings, **subject_settings(suite), **load}
