"""Duets in the report: every launch's ratios on the band of the limit, and what was found."""

from __future__ import annotations

from collections.abc import Sequence

from hpsbench.duets.comparisons import ComparedLaunch, StoredComparison
from hpsbench.duets.resolution import Rate, SelfTest
from hpsbench.report import notation
from hpsbench.report.elements import Element, element
from hpsbench.report.panels import (
    ROW,
    bar,
    change_span,
    line,
    linear_scale,
    marker,
    percent_ticks,
    row_name,
    rows_frame,
    x_axis,
)
from hpsbench.report.resolution import share_name
from hpsbench.report.tables import plain_table

LEAD = (
    "Duets of `hpsbench compare` on this class of machine, newest first: the candidate's p10 "
    "(filled) and p50 (hollow) of each launch, as changes from the baseline that ran in turn with "
    "it; more is slower. The band is the limit of p10. A second session has to confirm a change."
)


def comparison_panels(comparisons: Sequence[StoredComparison]) -> list[Element]:
    """Return a panel per duet, with its verdict in words below the chart."""
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
    sessions = sorted({launch.session for launch in compared.launches})
    limit = compared.policy.limit_p10
    outcome = compared.verdict.outcome.value
    caption = element(
        "figcaption",
        element("span", outcome, class_=f"badge {outcome.lower()}"),
        f" {compared.model}",
    )
    drawn = None
    if sessions:
        changes = [r - 1 for ln in compared.launches for r in (ln.ratio_p10, ln.ratio_p50)]
        widest = change_span(abs(change) for change in (*changes, limit))
        frame, marks = rows_frame(len(sessions))
        x = linear_scale(-widest, widest, frame.left, frame.right)
        marks += x_axis(frame, x, percent_ticks(widest), "change of the candidate, a dot a launch")
        for number, session in enumerate(sessions):
            middle = frame.top + (number + 0.5) * ROW
            reach = min(limit, widest)
            tip = f"limit {notation.limit(limit)}"
            marks.append(bar(x(-reach), middle - 12, x(reach), middle + 12, class_="band", tip=tip))
            marks.append(row_name("confirming" if session > 1 else "session", middle, session - 1))
            marks.append(line(x(0), middle - 12, x(0), middle + 12, class_="zero"))
            of_session = [ln for ln in compared.launches if ln.session == session]
            for launch, ratios in enumerate(of_session, start=1):
                marks += [
                    marker(
                        session - 1,
                        x(max(-widest, min(widest, change))),
                        at,
                        3.6,
                        class_=f"{kind} v1",
                        tip=f"launch {launch}, {name} {notation.change(change)}",
                    )
                    for kind, name, change, at in _marks(ratios, middle)
                ]
        drawn = element(
            "svg",
            element("title", f"changes of the launches of {compared.model}"),
            marks,
            view_box=f"0 0 420 {frame.bottom + 42:g}",
            role="img",
        )
    _, _, said = compared.verdict.text.partition(": ")
    return element(
        "figure",
        caption,
        drawn,
        element("p", f"{compared.baseline} \N{RIGHTWARDS ARROW} {compared.candidate}, "
                     f"{compared.recorded_at[:16].replace('T', ' ')}", class_="said"),
        element("p", said, class_="said"),
        None if compared.answers is None else element("p", compared.answers, class_="said"),
        class_="panel",
    )  # fmt: skip


def _marks(launch: ComparedLaunch, middle: float) -> tuple[tuple[str, str, float, float], ...]:
    return (
        ("stored", "p50", launch.ratio_p50 - 1, middle + 5),
        ("dot", "p10", launch.ratio_p10 - 1, middle - 5),
    )


def _rate(rate: Rate) -> str:
    if not rate.of:
        return notation.DASH
    return f"{rate.found} of {rate.of} ({rate.low:.0%} to {rate.high:.0%})"
