"""The session's one table, its verdict lines and its progress, as text for a terminal or a pipe."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from hpsbench.figures import Figures, figures, in_order, reference_of_run
from hpsbench.report import load, notation
from hpsbench.reproduction import CODE_OR_MACHINE
from hpsbench.runs import Run
from hpsbench.session import Progress
from hpsbench.verdict import Outcome, Verdict
from hpsbench.workload import split_row

_BATCH_WIDTH = 8
_LABEL_WIDTH = 18
_MIN_COLUMN = 12


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line without its end; `color` is red, green or yellow, or None."""

    text: str = ""
    color: str | None = None
    bold: bool = False

    @property
    def markup(self) -> dict[str, bool]:
        """What pytest's `TerminalReporter.write_line` takes."""
        return {"bold": self.bold} | ({self.color: True} if self.color else {})


#: What stands in a row of the table, and how a figure is written.
_ROWS: tuple[tuple[str, Callable[[Figures], float | None], Callable[[float], str]], ...] = (
    ("client p50, ms", lambda f: f.p50_ns / 1e6, notation.significant),
    ("client p10, ms", lambda f: f.p10_ns / 1e6, notation.significant),
    (
        "infer mean, ms",
        lambda f: None if f.compute_infer_ns is None else f.compute_infer_ns / 1e6,
        notation.significant,
    ),
    ("k samples/s", lambda f: f.samples_per_s / 1e3, notation.significant),
    ("p10 : {reference}", lambda f: f.ratio, lambda v: f"{v:.3f}"),
)


def table(run: Run, *, concurrency: int, width: int) -> list[Line]:
    """Return the table of a run: a row of figures per batch size, a column per variant.

    Variants that do not fit into `width` columns of text follow below.
    """
    cells = {
        (m.variant, m.batch_size): figures(m, concurrency=concurrency)
        for m in (r.measurement for r in run.results)
    }
    # Tests may run in any order; the variant that the others are divided by stands first.
    reference = reference_of_run(run)
    variants = in_order(dict.fromkeys(v for v, _ in cells), reference)
    batch_sizes = sorted({size for _, size in cells})
    column = max([_MIN_COLUMN, *(len(v) for v in variants)]) + 2
    per_table = max(1, (width - _BATCH_WIDTH - _LABEL_WIDTH) // column)
    lines = []
    streams = dict.fromkeys(split_row(v)[1] for v in variants)
    alike = [[v for v in variants if split_row(v)[1] == keys] for keys in streams]
    for shown in (
        of_keys[start : start + per_table]
        for of_keys in alike
        for start in range(0, len(of_keys), per_table)
    ):
        rule = "-" * (_BATCH_WIDTH + _LABEL_WIDTH + column * len(shown))
        head = "".join(v.rjust(column) for v in shown)
        lines.append(Line(text=_labelled("batch", "", head), bold=True))
        for size in batch_sizes:
            lines.append(Line(text=rule))
            lines += _rows(size, [cells.get((v, size)) for v in shown], reference, column)
        lines += [Line(text=rule), Line()]
    return lines


def engine_lines(run: Run, *, width: int) -> list[Line]:
    """Return what ran the variants, a line for each engine; none where no server told."""
    variants: dict[str, dict[str, None]] = {}
    for measured in (result.measurement for result in run.results):
        if measured.engine is not None:
            variants.setdefault(measured.engine, {})[measured.variant] = None
    if not variants:
        return []
    texts = [f"{engine}: {', '.join(names)}" for engine, names in variants.items()]
    lines = [
        _wrapped(text, first="served by  " if not i else " " * 11, width=width)
        for i, text in enumerate(texts)
    ]
    return [*(line for wrapped in lines for line in wrapped), Line()]


def verdict_lines(verdicts: Sequence[Verdict], *, width: int) -> list[Line]:
    """Return the verdicts, worst first; what several share is said once, and so is a hint."""
    distinct, since = notation.changed_since(verdicts)
    ordered = [v for group in notation.by_outcome(distinct).values() for v in group]
    lines: list[Line] = []
    for (outcome, hint), group in groupby(ordered, key=lambda v: (v.outcome, v.hint)):
        for text, benchmarks in _shared(group):
            first = f"{outcome.value:<14}"
            line = f"{', '.join(benchmarks)}: {text}"
            lines += _wrapped(line, first=first, width=width, color=_color(outcome))
        if hint:
            lines += _wrapped(hint, first=f"{'':14}-> ", width=width)
    if since:
        lines += _wrapped(since, first="changed since their baselines: ", width=width)
    counts = ", ".join(
        f"{sum(v.outcome is outcome for v in verdicts)}\u00a0{outcome.value}"
        for outcome in Outcome
        if any(v.outcome is outcome for v in verdicts)
    )
    return lines + _wrapped(counts, first="verdicts: ", width=width, bold=True)


def load_lines(run: Run) -> list[Line]:
    """Return a table per variant and batch size that was measured under open-loop load."""
    lines = []
    for loaded in run.loads:
        curve = loaded.curve
        texts = [
            load.header(curve.slo_ns),
            *(load.point_line(point, curve.slo_ns) for point in curve.points),
            *load.closing_lines(curve),
            "",
        ]
        title = f"{loaded.benchmark}, open loop, {curve.arrivals} arrivals"
        lines += [Line(text=title, bold=True), *(Line(text=text) for text in texts)]
    return lines


def closing_lines(
    run: Run, *, strict: bool, side_by_side: str | None, stored: str | None, report: str | None
) -> list[Line]:
    """Return what the verdicts mean for the exit status, what to run next, and what is stored."""
    lines = []
    if side_by_side is not None:
        lines += [Line(text=f"{CODE_OR_MACHINE}:"), Line(text=f"  {side_by_side}")]
    undecided = sum(not v.outcome.decided for v in run.verdicts)
    if undecided and strict:
        text = f"{undecided} without a verdict: exit status 10, unless a test failed"
        lines.append(Line(text=text, color="yellow"))
    elif undecided:
        lines.append(Line(text=f"{undecided} without a verdict: exit status 10 with --strict-gate"))
    if stored is not None:
        lines.append(Line(text=f"run stored in {stored}; see `hpsbench baseline diff`"))
    if report is not None:
        lines.append(Line(text=f"report: {report}"))
    return lines


def progress_text(progress: Progress) -> str:
    """Return `launch 2/4, batch 1024, about 1 min left`."""
    stage = "starting servers" if progress.batch_size is None else f"batch {progress.batch_size}"
    stage += f", {progress.keys} keys" if progress.keys else ""
    left = "" if progress.eta_s is None else f", about {_duration(progress.eta_s)} left"
    return f"launch {progress.launch}/{progress.launches}, {stage}{left}"


class ProgressLine:
    """Shows a session's progress: one line that is rewritten, or where it cannot be, few lines.

    `rewrite` puts a text in place of the last one, None where the output is no terminal; then
    `write_line` gets a new launch at once and anything else at most every `interval_s` seconds.
    """

    def __init__(
        self,
        write_line: Callable[[str], None],
        rewrite: Callable[[str], None] | None,
        *,
        interval_s: float = 20,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write_line, self._rewrite = write_line, rewrite
        self._interval_s, self._clock_s = interval_s, clock_s
        self._launch: int | None = None
        self._shown_s = 0.0

    def __call__(self, progress: Progress) -> None:
        text = progress_text(progress)
        if self._rewrite is not None:
            self._rewrite(text)
            return
        now_s = self._clock_s()
        if progress.launch != self._launch or now_s - self._shown_s >= self._interval_s:
            self._launch, self._shown_s = progress.launch, now_s
            self._write_line(text)


def _rows(
    batch_size: int, cells: Sequence[Figures | None], reference: str, column: int
) -> list[Line]:
    lines = []
    for number, (label, figure_of, written) in enumerate(_ROWS):
        batch = str(batch_size) if number == 0 else ""
        texts = []
        for cell in cells:
            value = None if cell is None else figure_of(cell)
            texts.append(("-" if value is None else written(value)).rjust(column))
        label = label.format(reference=reference)
        lines.append(Line(text=_labelled(batch, label, "".join(texts))))
    return lines


def _labelled(batch: str, label: str, rest: str) -> str:
    return batch.rjust(_BATCH_WIDTH - 2) + "  " + label.ljust(_LABEL_WIDTH) + rest


def _shared(verdicts: Iterable[Verdict]) -> Iterable[tuple[str, list[str]]]:
    """Return what was said and of which benchmarks; one with figures stands alone."""
    said: dict[tuple[str, str | None], list[str]] = {}
    for verdict in verdicts:
        alone = None if verdict.change is None else verdict.benchmark
        said.setdefault((_said(verdict), alone), []).append(verdict.benchmark)
    return [(text, benchmarks) for (text, _), benchmarks in said.items()]


def _said(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.PASS and verdict.change is not None:
        return f"{verdict.statistic} {verdict.change:+.1%} (limit {verdict.limit:.1%})"
    return verdict.text.removeprefix(f"{verdict.benchmark}: ")


def _wrapped(
    text: str, *, first: str, width: int, color: str | None = None, bold: bool = False
) -> list[Line]:
    wrapped = textwrap.wrap(
        text,
        width=max(width, 40) - 1,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [Line(text=line.replace("\u00a0", " "), color=color, bold=bold) for line in wrapped]


def _color(outcome: Outcome) -> str:
    if outcome in (Outcome.REGRESSED, Outcome.INVALID):
        return "red"
    return "green" if outcome.decided else "yellow"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
