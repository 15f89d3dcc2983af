"""The report as GitHub's Markdown, for the summary of a CI job: verdicts first, figures folded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hpsbench import figures
from hpsbench.duets.comparisons import ComparedBenchmark, StoredComparison
from hpsbench.report import notation
from hpsbench.report.contents import Contents
from hpsbench.reproduction import CODE_OR_MACHINE, side_by_side
from hpsbench.runs import Run
from hpsbench.verdict import Outcome, Verdict

_VERDICT_NAMES = ("outcome", "benchmark", "judged", "change", "interval", "limit")
_DUET_NAMES = ("outcome", "benchmark", "judged", "change", "limit", "p50 change", "limit")
_FIGURE_NAMES = ("batch", "variant", "p50, ms", "p10, ms", "infer, ms", "k samples/s")


def summary(contents: Contents) -> str:
    """Return the report of a run; what passed, and its figures, are folded."""
    run = contents.run
    verdicts, since = notation.changed_since(contents.verdicts)
    groups = notation.by_outcome(verdicts)
    passed = groups.pop(Outcome.PASS, [])
    lines = [
        f"## hpsbench: {notation.headline(run.verdicts)}",
        "",
        f"Preset `{run.preset}` on `{run.machine.cls}`, {run.recorded_at}, run `{run.run_id}`.",
        "",
    ]
    compared = [v for group in groups.values() for v in group if v.change is not None]
    if compared:
        lines += [*_verdict_table(compared), ""]
    for outcome, group in groups.items():
        for hint in dict.fromkeys(verdict.hint for verdict in group):
            lines.append(f"- **{outcome.value}**, {notation.meaning(outcome)}: {hint}")
            alike = [verdict for verdict in group if verdict.hint == hint]
            for text, names in notation.by_sentence(alike).items():
                lines.append(f"  - {', '.join(f'`{name}`' for name in names)}: {_escaped(text)}")
    if since:
        lines.append(f"- Changed since their baselines: {_escaped(since)}")
    command = side_by_side(run, contents.baselines)
    if command is not None:
        lines.append(f"- {CODE_OR_MACHINE}: `{command}`")
    if groups or since:
        lines.append("")
    if passed:
        lines += _folded(f"{len(passed)} {Outcome.PASS.value}", _verdict_table(passed))
    rows = list(_figure_rows(run))
    if rows:
        columns = (*_FIGURE_NAMES, f"p10 : {figures.reference_of_run(run)}")
        lines += _folded("Figures", _table(columns, rows, left=2))
    return "\n".join(lines).rstrip("\n") + "\n"


def comparison_summary(compared: StoredComparison) -> str:
    """Return a comparison: its verdicts, worst first, what to do, and every launch, folded."""
    alone = len(compared.benchmarks) == 1
    headline = notation.headline(compared.verdicts)
    if alone:
        headline = f"{compared.verdicts[0].outcome.value} {_escaped(compared.title)}"
    lines = [
        f"## hpsbench compare: {headline}",
        "",
        f"Baseline `{compared.baseline}`, candidate `{compared.candidate}`, on "
        f"`{compared.machine}`, {compared.recorded_at}.",
        "",
    ]
    if not alone:
        lines += [*_table(_DUET_NAMES, map(_duet_row, compared.benchmarks), left=3), ""]
    told = [b for b in compared.benchmarks if alone or b.verdict.outcome is not Outcome.PASS]
    for benchmark in told:
        lines += [_escaped(benchmark.verdict.text), ""]
    for hint in dict.fromkeys(b.verdict.hint for b in told if b.verdict.hint):
        lines += [f"What to do: {hint}", ""]
    found = dict.fromkeys(b.answers for b in compared.benchmarks if b.answers and alone)
    for answers in found:
        lines += [_escaped(answers), ""]
    names = ("session", "launch", "baseline p10, ms", "candidate p10, ms", "p10", "pairs", "p50")
    rows = [row for benchmark in compared.benchmarks for row in _launch_rows(benchmark)]
    if rows and alone:
        lines += _folded("Launches", _table(names, [row[1:] for row in rows], left=0))
    elif rows:
        lines += _folded("Launches", _table(("benchmark", *names), rows, left=1))
    return "\n".join(lines).rstrip("\n") + "\n"


def _duet_row(compared: ComparedBenchmark) -> tuple[str, ...]:
    verdict = compared.verdict
    return (
        f"**{verdict.outcome.value}**"
        if verdict.outcome is Outcome.REGRESSED
        else verdict.outcome.value,
        f"`{compared.name}`",
        verdict.statistic if verdict.change is not None else notation.DASH,
        notation.change(verdict.change),
        notation.limit(verdict.limit),
        notation.change(verdict.change_p50),
        notation.limit(verdict.limit_p50),
    )


def _launch_rows(compared: ComparedBenchmark) -> list[tuple[str, ...]]:
    return [
        (
            f"`{compared.name}`",
            str(launch.session),
            str(number),
            notation.milliseconds(launch.baseline_p10_ns),
            notation.milliseconds(launch.candidate_p10_ns),
            notation.change(launch.ratio_p10 - 1),
            notation.change(None if launch.ratio_pairs is None else launch.ratio_pairs - 1),
            notation.change(launch.ratio_p50 - 1),
        )
        for number, launch in enumerate(compared.launches, start=1)
    ]


def _verdict_table(verdicts: Sequence[Verdict]) -> list[str]:
    rows = [
        (
            f"**{v.outcome.value}**" if v.outcome is Outcome.REGRESSED else v.outcome.value,
            f"`{v.benchmark}`",
            v.statistic,
            notation.change(v.change),
            notation.interval(v.low, v.high),
            notation.limit(v.limit),
        )
        for v in verdicts
    ]
    return _table(_VERDICT_NAMES, rows, left=3)


def _figure_rows(run: Run) -> Iterable[tuple[str, ...]]:
    cells = figures.figures_of(run)
    for size in figures.batch_sizes_of(run):
        for variant in figures.variants_of(run):
            cell = cells.get((variant, size))
            if cell is not None:
                yield (
                    str(size),
                    variant,
                    notation.milliseconds(cell.p50_ns),
                    notation.milliseconds(cell.p10_ns),
                    notation.milliseconds(cell.compute_infer_ns),
                    notation.significant(cell.samples_per_s / 1e3),
                    notation.ratio(cell.ratio),
                )


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> list[str]:
    rule = ["---" if number < left else "---:" for number in range(len(names))]
    return [_row(names), _row(rule), *(_row([_escaped(cell) for cell in row]) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{title}</summary>", "", *lines, "", "</details>", ""]


def _escaped(text: str) -> str:
    for character in "|<>":
        text = text.replace(character, f"\\{character}")
    return text
