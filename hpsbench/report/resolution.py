"""A self-test as text: a line per decision as it falls, and what the host can tell apart."""

from __future__ import annotations

from statistics import fmean

from hpsbench.duets.decision import DuetPolicy
from hpsbench.duets.resolution import Decision, Rate, Resolution, SelfTest


def introduction(
    policy: DuetPolicy, *, machine: str, request_ns: int, decisions: int, neighbours: int = 0
) -> list[str]:
    """Return what will be measured."""
    return [
        f"machine    {machine}",
        *([f"neighbours {neighbours}, in bursts"] if neighbours else []),
        f"request    {request_ns / 1e6:.2f} ms",
        f"decisions  {decisions}, each of {policy.launches} launches of {policy.pairs} pairs, and "
        "as many again where a change may show",
        "",
    ]


def decision_line(number: int, decisions: int, decision: Decision) -> str:
    """Return the line of one decision."""
    changes = (
        (decision.statistic, decision.change),
        ("p50", decision.change_p50),
        ("mean", decision.mean_change),
    )
    told = "".join(f"  {name} {change:+.1%}" for name, change in changes if change is not None)
    return (
        f"{number:>4}/{decisions}  {share_name(decision.injected):>5}  "
        f"{decision.outcome.value:<12}{told}  {decision.total_s:.1f} s"
    )


def summary(selftest: SelfTest) -> list[str]:
    """Return the table of rates, and what a decision costs."""
    return [
        "",
        f"found slower, with the {selftest.confidence:.0%} interval of the rate:",
        f"{'injected':>8}  {'seen':>8}  {'duet':<24}  {'mean:5% (pytest-benchmark)':<26}  "
        "others of the duet",
        *(_row(row, _seen(row, selftest)) for row in selftest.resolutions),
        "",
        f"a decision took {selftest.total_s:.1f} s, of which {selftest.measure_s:.1f} s were "
        f"requests (medians; {selftest.longest_measure_s:.1f} s at most)",
    ]


def quotation(selftest: SelfTest) -> str:
    """Return in one line what the machine was found to tell apart."""
    found = ", ".join(
        f"{share_name(row.injected)} {row.regressed.found} of {row.regressed.of}"
        for row in selftest.resolutions
    )
    noisy = ", with noisy neighbours" if selftest.neighbours else ""
    return f"found slower by this machine's selftest of {selftest.recorded_at[:10]}{noisy}: {found}"


def _seen(row: Resolution, selftest: SelfTest) -> str:
    changes = [
        d.change for d in selftest.decisions if d.injected == row.injected and d.change is not None
    ]
    return f"{fmean(changes):+.1%}" if changes else "-"


def _row(row: Resolution, seen: str) -> str:
    counts = {
        "INCONCLUSIVE": row.inconclusive,
        "IMPROVED": row.improved,
        "INVALID": row.invalid,
    }
    others = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n)
    cells = f"{_rate(row.regressed):<24}  {_rate(row.mean_rule):<26}"
    return f"{share_name(row.injected):>8}  {seen:>8}  {cells}  {others or '-'}"


def _rate(rate: Rate) -> str:
    if not rate.of:
        return "-"
    return f"{rate.found} of {rate.of} ({rate.low:.0%} to {rate.high:.0%})"


def share_name(share: float) -> str:
    """Return `A/A`, or `+5%`, as `--share` takes it."""
    return f"{share:+.0%}" if share else "A/A"
