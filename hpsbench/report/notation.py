"""How figures are written and verdicts are ordered, alike in the reports for browsers and CI."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence

from hpsbench.published import COMPUTE_INFER
from hpsbench.verdict import SINCE, Outcome, Verdict

DASH = "\N{EN DASH}"
ARROW = "\N{RIGHTWARDS ARROW}"
MINUS = "\N{MINUS SIGN}"

#: A change beyond this is of no known size.
_WIDEST = 10.0

_ORDER = list(Outcome)
_MEANINGS = {
    Outcome.REGRESSED: "slower than its baseline",
    Outcome.INVALID: "not measured properly",
    Outcome.VANISHED: "has a baseline, and was not measured",
    Outcome.OTHER_MACHINE: "has a baseline of another class of machine",
    Outcome.NO_BASELINE: "nothing to compare with",
    Outcome.INCONCLUSIVE: "measured, without a sure answer",
    Outcome.IMPROVED: "faster than its baseline",
    Outcome.PASS: "no change beyond its limit",
}


def meaning(outcome: Outcome) -> str:
    """Return what an outcome says of a benchmark, in a few words."""
    return _MEANINGS[outcome]


def by_outcome(verdicts: Iterable[Verdict]) -> dict[Outcome, list[Verdict]]:
    """Return the verdicts, worst outcome first; each outcome's by name, b32 before b256."""
    ordered = sorted(verdicts, key=lambda v: (_ORDER.index(v.outcome), _natural(v.benchmark)))
    groups: dict[Outcome, list[Verdict]] = {}
    for verdict in ordered:
        groups.setdefault(verdict.outcome, []).append(verdict)
    return groups


def headline(verdicts: Sequence[Verdict]) -> str:
    """Return the session's result in one sentence."""
    counts = {outcome: len(group) for outcome, group in by_outcome(verdicts).items()}
    total = len(verdicts)
    if not total:
        return "Nothing was measured"
    regressed = counts.get(Outcome.REGRESSED, 0)
    undecided = sum(n for outcome, n in counts.items() if not outcome.decided)
    if regressed:
        return f"{regressed} of {_benchmarks(total)} regressed"
    if undecided == total:
        return f"No verdict on {'any of ' if total > 1 else ''}{_benchmarks(total)}"
    if undecided:
        have = "has" if undecided == 1 else "have"
        return f"Nothing regressed; {undecided} of {_benchmarks(total)} {have} no verdict"
    improved = counts.get(Outcome.IMPROVED, 0)
    if improved:
        return f"Nothing regressed; {improved} of {_benchmarks(total)} improved"
    return f"All {_benchmarks(total)} passed" if total > 1 else "The benchmark passed"


def accepted(verdicts: Sequence[Verdict], names: Collection[str]) -> str:
    """Return how many benchmarks the run became the baseline of since; "" where of none."""
    count = sum(verdict.benchmark in names for verdict in verdicts)
    if not count:
        return ""
    of_all = f"all {len(verdicts)}" if len(verdicts) > 1 else "the one"
    share = of_all if count == len(verdicts) else f"{count} of the {len(verdicts)}"
    return f"accepted since, with `hpsbench baseline update`: {share}"


def said(verdict: Verdict) -> str:
    """Return a verdict's sentence without its benchmark, and without what a table of them shows."""
    _, _, text = verdict.text.partition(": ")
    return text if verdict.change is None else text.partition("; ")[2]


def by_sentence(verdicts: Iterable[Verdict]) -> dict[str, list[str]]:
    """Return what is said of benchmarks, and the names of those that share it, in their order."""
    sentences: dict[str, list[str]] = {}
    for verdict in verdicts:
        sentences.setdefault(said(verdict), []).append(verdict.benchmark)
    return sentences


def _natural(name: str) -> list[tuple[str, int]]:
    """Return a key that sorts b32 before b256."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D+)(\d*)", name)]


def significant(value: float, digits: int = 4) -> str:
    """Return so many significant digits, and never an exponent: `0.1234`, `12.34`, `12345`."""
    if value >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:#.{digits}g}"


def milliseconds(nanoseconds: float | None) -> str:
    """Return nanoseconds as milliseconds with four digits, or a dash."""
    return DASH if nanoseconds is None else significant(nanoseconds / 1e6)


def published(quantity: str, value: float | None) -> str:
    """Return milliseconds to the microsecond as published, thousand samples/s, or a dash."""
    if value is None:
        return DASH
    return f"{value / 1e6:.3f}" if quantity == COMPUTE_INFER else significant(value / 1e3)


def ratio(value: float | None) -> str:
    """Return a ratio with two to three decimals, or a dash."""
    if value is None:
        return DASH
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def change(fraction: float | None) -> str:
    """Return `+5.1%`, or a dash; `+213%` beyond double, and `>+1000%` where more says no more."""
    if fraction is None:
        return DASH
    if abs(fraction) < 0.0005:
        return "0.0%"
    sign = "+" if fraction > 0 else MINUS
    return f"{_beyond(fraction)}{sign}{_percent(fraction)}"


def limit(fraction: float | None) -> str:
    """Return `±3.0%`, or a dash."""
    return DASH if fraction is None else f"{_beyond(fraction)}±{_percent(fraction)}"


def interval(low: float | None, high: float | None) -> str:
    """Return `+1.2% to +4.5%`, or a dash."""
    return DASH if low is None or high is None else f"{change(low)} to {change(high)}"


def _percent(fraction: float) -> str:
    size = min(abs(fraction), _WIDEST)
    return f"{size:.1%}" if size < 1 else f"{size:.0%}"


def _beyond(fraction: float) -> str:
    return ">" if abs(fraction) > _WIDEST else ""


def _benchmarks(count: int) -> str:
    return f"{count} benchmark{'s' if count != 1 else ''}"


def changed_since(verdicts: Sequence[Verdict]) -> tuple[list[Verdict], str]:
    """Return what changed since the baselines of several verdicts, if it is one, and them without.

    Where it differs between them, or only one tells of it, they stay as they are, and it is "".
    """
    told = [verdict.text.partition(SINCE)[2] for verdict in verdicts if SINCE in verdict.text]
    if len(told) < 2 or len(set(told)) > 1:
        return list(verdicts), ""
    shorter = (v.text.partition(SINCE)[0] for v in verdicts)
    pairs = zip(verdicts, shorter, strict=True)
    return [dataclasses.replace(v, text=text) for v, text in pairs], told[0]
