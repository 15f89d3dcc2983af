"""Duets in the report: every launch's ratios on the band of the limit, and what was found."""

from __future__ import annotations

from collections.abc import Sequence

from hpsbench.duets.comparisons import ComparedBenchmark, ComparedLaunch, StoredComparison
from hpsbench.duets.resolution import Rate, SelfTest
from hpsbench.report import notation
from hpsbench.report.elements import Content, Element, element
from hpsbench.report.panels import (
    ROW,
    WIDTH,
    bar,
    change_span,
    line,
    linear_scale,
    marker,
    percent_ticks,
    row_name,
    rows_frame,
    text_width,
    x_axis,
)
from hpsbench.report.resolution import share_name
from hpsbench.report.tables import plain_table
from hpsbench.verdict import Outcome

#: How the changes of a launch are drawn, and how far below the middle of its row.
_MARKS = (("dot", -5.0), ("stored", 5.0))
#: The least and most room for the names of rows.
_NAMES = (138.0, 230.0)

LEAD = (
    "Duets of `hpsbench compare` on this class of machine, newest first: what is judged of each "
    "launch (filled: p10, or the pairs of requests, whichever is steadier) and p50 (hollow), as "
    "changes of the candidate from the baseline that ran in turn with it; more is slower. The band "
    "is the limit of the first. A second session has to confirm a change."
)


def comparison_panels(comparisons: Sequence[StoredComparison]) -> list[Element]:
    """Return a panel per comparison, with its verdicts in words below the chart."""
    return [_panel(compared) for compared in comparisons]


def selftest_table(selftests: Sequence[SelfTest]) -> Element:
    """Return how often the self-tests of this machine found each injected change."""
    rows = [
        (
            f"{selftest.neighbours} in bursts" if selftest.neighbours else "nobody",
            share_name(row.injected),
            _rate(row.regressed),
            _rate(row.mean_rule),
            str(row.inconclusive),
            str(row.invalid),
        )
        for selftest in selftests
        for row in selftest.resolutions
    ]
    names = ("beside", "injected", "found slower", "by mean:5%", "inconclusive", "invalid")
    return plain_table("What comparisons tell apart here", names, rows, left=2)


def _panel(compared: StoredComparison) -> Element:
    alone = len(compared.benchmarks) == 1
    title = compared.title if alone else notation.headline(compared.verdicts)
    told = [b for b in compared.benchmarks if alone or b.verdict.outcome is not Outcome.PASS]
    return element(
        "figure",
        element("figcaption", _badge(compared.benchmarks[0]), f" {title}"),
        _chart(compared, alone=alone),
        element("p", f"{compared.baseline} \N{RIGHTWARDS ARROW} {compared.candidate}, "
                     f"{compared.recorded_at[:16].replace('T', ' ')}", class_="said"),
        [said for benchmark in told for said in _said(benchmark, alone=alone)],
        class_="panel",
    )  # fmt: skip


def _badge(compared: ComparedBenchmark) -> Element:
    outcome = compared.verdict.outcome.value
    return element("span", outcome, class_=f"badge {outcome.lower()}")


def _said(compared: ComparedBenchmark, *, alone: bool) -> list[Element]:
    _, _, text = compared.verdict.text.partition(": ")
    first: list[Content] = [text] if alone else [_badge(compared), f" {compared.name}: {text}"]
    lines = [element("p", *first, class_="said")]
    if compared.answers is not None and alone:
        lines.append(element("p", compared.answers, class_="said"))
    return lines


def _chart(compared: StoredComparison, *, alone: bool) -> Element | None:
    """Return a row for each session of each benchmark, with its launches; None without any."""
    rows = [
        (
            "confirming" if session > 1 else "session" if alone else benchmark.name,
            session,
            [_changes(ln, benchmark) for ln in benchmark.launches if ln.session == session],
        )
        for benchmark in compared.benchmarks
        for session in sorted({launch.session for launch in benchmark.launches})
    ]
    if not rows:
        return None
    limit = compared.policy.limit
    changes = [change for _, _, of in rows for launch in of for _, change in launch]
    widest = change_span(abs(change) for change in (*changes, limit))
    longest = max(text_width(name) for name, _, _ in rows)
    frame, marks = rows_frame(len(rows), left=max(_NAMES[0], min(_NAMES[1], 28 + longest)))
    x = linear_scale(-widest, widest, frame.left, frame.right)
    marks += x_axis(frame, x, percent_ticks(widest), "change, a dot a launch")
    for number, (name, session, launches) in enumerate(rows):
        middle = frame.top + (number + 0.5) * ROW
        reach = min(limit, widest)
        tip = f"limit {notation.limit(limit)}"
        marks.append(bar(x(-reach), middle - 12, x(reach), middle + 12, class_="band", tip=tip))
        marks.append(row_name(_shortened(name, frame.left - 24), middle, session - 1))
        marks.append(line(x(0), middle - 12, x(0), middle + 12, class_="zero"))
        for launch, of_launch in enumerate(launches, start=1):
            marks += [
                marker(
                    session - 1,
                    x(max(-widest, min(widest, change))),
                    middle + place,
                    3.6,
                    class_=f"{kind} v1",
                    tip=f"launch {launch}, {statistic} {notation.change(change)}",
                )
                for (kind, place), (statistic, change) in zip(_MARKS, of_launch, strict=True)
            ]
    return element(
        "svg",
        element("title", f"changes of the launches of {compared.title}"),
        marks,
        view_box=f"0 0 {WIDTH:g} {frame.bottom + 42:g}",
        role="img",
    )


def _shortened(name: str, width: float) -> str:
    """Return a name without its middle, where it is too long: it ends in the batch size."""
    cut = len(name)
    shown = name
    while text_width(shown) > width:
        cut -= 1
        half = cut // 2
        shown = f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[half - cut :]}"
    return shown


def _changes(launch: ComparedLaunch, compared: ComparedBenchmark) -> tuple[tuple[str, float], ...]:
    """Return the launch's changes of what was judged, and of p50, with their names."""
    judged, ratio = "p10", launch.ratio_p10
    if compared.verdict.statistic == "pairs" and launch.ratio_pairs is not None:
        judged, ratio = "pairs", launch.ratio_pairs
    return (judged, ratio - 1), ("p50", launch.ratio_p50 - 1)


def _rate(rate: Rate) -> str:
    if not rate.of:
        return notation.DASH
    return f"{rate.found} of {rate.of} ({rate.low:.0%} to {rate.high:.0%})"
