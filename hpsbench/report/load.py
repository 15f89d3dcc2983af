"""Open-loop load as text: a line per rate, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence

from hpsbench.load_curve import KNEE_FACTOR, LoadCurve, LoadPoint
from hpsbench.stats import Percentile

_SHOWN = (50.0, 90.0, 99.0, 99.9)
_WIDTH = 9


def header(slo_ns: int | None) -> str:
    """Return the heads of the table's columns."""
    names = "".join(f"p{q:g}".rjust(_WIDTH) for q in _SHOWN)
    good = "" if slo_ns is None else f"  in {slo_ns / 1e6:g} ms"
    return f"offered/s  answered/s{names}  p99 95% interval{good}  late  failed   (times in ms)"


def point_line(point: LoadPoint, slo_ns: int | None) -> str:
    """Return the line of one rate."""
    times = "".join(_ms(point.percentile(q).value_ns).rjust(_WIDTH) for q in _SHOWN)
    share = point.goodput_share
    good = "" if share is None else f"{share:.1%}".rjust(len(f"  in {(slo_ns or 0) / 1e6:g} ms"))
    late = point.delayed_by_server + point.delayed_by_client
    failed = point.failed + point.unsent
    mark = f"  {standing(point)}" if standing(point) else ""
    return (
        f"{point.offered_hz:>9.1f}  {point.achieved_hz:>10.1f}{times}"
        f"{_interval(point.percentile(99.0)):>18}{good}{late:>6}{failed:>8}{mark}"
    )


def closing_lines(curve: LoadCurve) -> list[str]:
    """Return what must be known beside the table: the knee, few requests, invalid points."""
    return [*(f"{name:<11}{text}" for name, text in summary(curve)), *remarks(curve, _SHOWN)]


def summary(curve: LoadCurve) -> list[tuple[str, str]]:
    """Return what a curve comes to, by name: the latency alone, the capacity, the knee."""
    facts = [("unloaded", f"{curve.unloaded_ns / 1e6:.3f} ms (median of one client alone)")]
    if curve.capacity_hz is not None:
        facts.append(("capacity", f"{curve.capacity_hz:.1f} answers/s of closed-loop clients"))
    if curve.knee is not None:
        facts.append(("knee", _knee(curve)))
    return facts


def remarks(curve: LoadCurve, shown: Sequence[float]) -> list[str]:
    """Return which of the percentiles `shown` have no bounds, and why rates must not count."""
    found = [text for q in shown if (text := _few_requests(curve.points, q)) is not None]
    found += [f"at {p.asked_hz:.1f}/s: {p.invalid}" for p in curve.points if p.invalid is not None]
    return found


def standing(point: LoadPoint) -> str:
    """Return `saturated`, `INVALID`, or nothing for a rate like any other."""
    return "saturated" if point.saturated else "INVALID" if point.invalid else ""


def _few_requests(points: Sequence[LoadPoint], q: float) -> str | None:
    """Return at which rates a percentile has no bounds, and how many requests would give some."""
    found = [(p, p.percentile(q)) for p in points]
    unbounded = [(p, x) for p, x in found if x.value_ns is not None and x.high_ns is None]
    if not unbounded:
        return None
    rates = ", ".join(f"{p.asked_hz:.1f}" for p, _ in unbounded)
    most = max(x.min_requests for _, x in unbounded)
    return f"p{q:g} needs at least {most} requests for its 95% interval: too few at {rates}/s"


def _knee(curve: LoadCurve) -> str:
    knee = curve.knee
    assert knee is not None
    limit = f"{knee.limit_ns / 1e6:.3g} ms"
    what = f"the SLO, {limit}" if knee.is_slo else f"{KNEE_FACTOR:g} x unloaded, {limit}"
    if knee.rate_hz is None:
        return f"below {knee.next_hz:.1f}/s: p99 is beyond its limit ({what}) at every rate"
    if knee.next_hz is None:
        return f"beyond {knee.rate_hz:.1f}/s: p99 is within its limit ({what}) at every rate"
    return f"{knee.rate_hz:.1f}/s: up to there p99 is within {what}; at {knee.next_hz:.1f}/s not"


def _interval(percentile: Percentile) -> str:
    low, high = (_ms(ns, unknown="?") for ns in (percentile.low_ns, percentile.high_ns))
    return f"{low} - {high}"


def _ms(ns: int | None, unknown: str = "failed") -> str:
    return unknown if ns is None else f"{ns / 1e6:.3f}" if ns < 1e9 else f"{ns / 1e6:.0f}"
