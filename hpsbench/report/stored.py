"""Stored baselines and what a run would change in them, as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from hpsbench.baseline_check import SHARES, Check
from hpsbench.baselines import Baseline, BaselineLaunch
from hpsbench.figures import typical_ratio
from hpsbench.ratios import Statistic, ratios_of
from hpsbench.report.notation import DASH
from hpsbench.verdict import Verdict
from hpsbench.workload import changes


def listing(baselines: Iterable[Baseline]) -> list[str]:
    """Return a line per baseline below a heading."""
    rows = [("benchmark", "reference", "p10 ratio", "p10 ms", "launches", "runs", "recorded")]
    for baseline in baselines:
        launches = [launch for run in baseline.runs for launch in run.launches]
        rows.append(
            (
                baseline.benchmark,
                baseline.reference,
                f"{_ratio(baseline):.3f}",
                f"{median(launch.p10_ns for launch in launches) / 1e6:.3f}",
                str(len(launches)),
                str(len(baseline.runs)),
                baseline.recorded_at[:10],
            )
        )
    return _aligned(rows, left=2)


def checks(found: Sequence[Check]) -> list[str]:
    """Return a line per checked baseline, what they say together, and what would tell more."""
    rows = [("benchmark", "runs", "occasions", "limit", *map(_made_slower, SHARES))]
    for check in found:
        judged = [f"{check.regressed[share]} of {check.judged}" for share in SHARES]
        rows.append(
            (
                check.benchmark,
                str(check.runs),
                str(check.occasions),
                DASH if check.limit is None else f"{check.limit:.1%}",
                *(judged if check.judged else [DASH] * len(SHARES)),
            )
        )
    total = sum(check.judged for check in found)
    together = [f"{sum(check.regressed[share] for check in found)} of {total}" for share in SHARES]
    rows.append(("together", "", "", "", *together))
    lines = [
        *_aligned(rows, left=1),
        "limit: what a change must exceed; the columns beside it: how many runs are REGRESSED",
    ]
    alone = sum(check.occasions < 2 for check in found)
    if alone:
        lines.append(
            f"{alone} of {len(found)} are of one occasion: measure again an hour later or more, "
            "and run `hpsbench baseline update --append`"
        )
    return lines


def _made_slower(share: float) -> str:
    return f"{share:+.0%}" if share else "as it was"


def details(baseline: Baseline) -> list[str]:
    """Return everything stored of one baseline, every launch by itself."""
    lines = [
        f"{baseline.benchmark} on {baseline.machine}, as a ratio to {baseline.reference}",
        f"  measured by {baseline.test}",
        f"  workload {baseline.workload.digest}: {_settings(baseline.workload.settings)}",
    ]
    for run in baseline.runs:
        lines += [
            f"  run {run.run_id} of {run.recorded_at}",
            "    p10 ratios " + ", ".join(f"{launch.ratio_p10:.3f}" for launch in run.launches),
            *_pair_ratios(run.launches),
            "    p50 ratios " + ", ".join(f"{launch.ratio_p50:.3f}" for launch in run.launches),
            f"    under test: {_settings(run.under_test)}",
            f"    machine: {_settings(run.fingerprint)}",
        ]
    return lines


def difference(
    stored: Mapping[str, Baseline], new: Sequence[Baseline], verdicts: Mapping[str, Verdict]
) -> list[str]:
    """Return what storing `new` in place of `stored` would change, and what changed under test.

    `verdicts` are those of the session, by benchmark.
    """
    rows = [("benchmark", "stored", "run", "change", "launches", "verdict")]
    under_test: dict[str, None] = {}
    for after in new:
        verdict = verdicts.get(after.benchmark)
        outcome = verdict.outcome.value if verdict else "-"
        before = stored.get(after.benchmark)
        if before is None:
            launches = f"- -> {after.num_launches}"
            rows.append((after.benchmark, "-", f"{_ratio(after):.3f}", "new", launches, outcome))
            continue
        under_test |= dict.fromkeys(changes(before.runs[-1].under_test, after.runs[-1].under_test))
        under_test |= dict.fromkeys(changes(before.workload.settings, after.workload.settings))
        rows.append(
            (
                after.benchmark,
                f"{_ratio(before):.3f}",
                f"{_ratio(after):.3f}",
                f"{math.expm1(math.log(_ratio(after) / _ratio(before))):+.1%}",
                f"{before.num_launches} -> {after.num_launches}",
                outcome,
            )
        )
    lines = [*_aligned(rows, left=1), "figures: p10 as a ratio to the reference"]
    if under_test:
        lines += ["changed since the baseline:", *(f"  {change}" for change in under_test)]
    missing = sorted(stored.keys() - {b.benchmark for b in new})
    if missing:
        lines.append(f"stored, and not in this run: {', '.join(missing)}")
    return lines


def _pair_ratios(launches: Sequence[BaselineLaunch]) -> list[str]:
    ratios = ratios_of(launches, Statistic.PAIRS)
    return [] if ratios is None else ["    pair ratios " + ", ".join(f"{r:.3f}" for r in ratios)]


def _ratio(baseline: Baseline) -> float:
    return typical_ratio([[launch.ratio_p10 for launch in run.launches] for run in baseline.runs])


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Return the rows with the first `left` columns and the last to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(widths[i]) if i < left or i == last else cell.rjust(widths[i])
            for i, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]
