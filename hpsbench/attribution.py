"""Which stage or tier made the difference. Pure: what was so before and after, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpsbench.servers.traces import STAGES
from hpsbench.stages import StageProfile

#: Stages that moved by less than this share of the whole change are not worth a name.
NAMED_SHARE = 0.1
#: The traced requests show a change if theirs is at least this share of the judged one.
SHOWN_SHARE = 0.3

#: Hit rates that moved by less than this are not worth a word; 0.01 is a percentage point.
NAMED_HIT_RATE = 0.01

_WORDS = {
    "queue": "queue",
    "compute_input": "compute input",
    "compute_infer": "infer",
    "compute_output": "compute output",
    "overhead": "outside the models",
}


@dataclass(frozen=True, kw_only=True)
class Movement:
    """By how many nanoseconds one stage moved, and by which fraction; None where it was 0."""

    stage: str
    moved_ns: float
    change: float | None


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What the typical traced request gained or lost, and where, the largest part first.

    Parts add up to `whole_ns`; `before_ns` is what it took before, on the machine of now.
    """

    before_ns: float
    whole_ns: float
    movements: tuple[Movement, ...]

    @property
    def named(self) -> tuple[Movement, ...]:
        """The stages that moved with the whole, and those that moved as much against it."""
        return tuple(
            m
            for number, m in enumerate(self.movements)
            if number == 0 or abs(m.moved_ns) >= NAMED_SHARE * abs(self.whole_ns)
        )


def attribute(before: StageProfile, after: StageProfile) -> Attribution:
    """Return how each stage moved from `before` to `after`.

    Milliseconds drift between sessions and ratios to the reference do not, so `before` is first
    brought to the speed that the machine had `after`: as much slower as the reference is.
    """
    speed = after.reference_ns / before.reference_ns
    old = {stage: before.stages[stage].typical_ns * speed for stage in STAGES}
    new = {stage: after.stages[stage].typical_ns for stage in STAGES}
    return _attribution(old, new)


def attribute_side_by_side(before: StageProfile, after: StageProfile) -> Attribution:
    """Return how each stage differs between two servers that were asked in turn."""
    return _attribution(
        {stage: before.stages[stage].typical_ns for stage in STAGES},
        {stage: after.stages[stage].typical_ns for stage in STAGES},
    )


def in_words(found: Attribution, judged_change: float) -> str:
    """Return `of +0.42 ms, infer +0.40 ms (+22%), queue +0.05 ms (+50%)`.

    Or, where the traced requests do not show the `judged_change` (0.03 is 3% slower), that they do
    not.
    """
    change = found.whole_ns / found.before_ns
    if change * judged_change <= 0 or abs(change) < SHOWN_SHARE * abs(judged_change):
        return f"no stage tells: the traced requests took {change:+.1%}"
    parts = [f"{_WORDS[m.stage]} {_signed_ms(m.moved_ns)}{_percent(m)}" for m in found.named]
    return f"of {_signed_ms(found.whole_ns)}, {', '.join(parts)}"


def hit_rates_in_words(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Return `hit rate of GPU 0 cache 98.0% -> 71.5%`, of each tier that moved; empty of none.

    Rates are hits over keys by tier. One that only one side asked is told by itself, for what it
    was asked for moved elsewhere.
    """
    parts = []
    for tier in dict.fromkeys([*before, *after]):
        old, new = before.get(tier), after.get(tier)
        if old is None or new is None:
            parts.append(f"{tier} {'no longer' if new is None else 'now'} asked")
        elif abs(new - old) >= NAMED_HIT_RATE:
            parts.append(f"hit rate of {tier} {old:.1%} -> {new:.1%}")
    return ", ".join(parts)


def _attribution(old: Mapping[str, float], new: Mapping[str, float]) -> Attribution:
    movements = [
        Movement(
            stage=stage,
            moved_ns=new[stage] - old[stage],
            change=new[stage] / old[stage] - 1 if old[stage] > 0 else None,
        )
        for stage in STAGES
    ]
    whole = sum(m.moved_ns for m in movements)
    direction = 1 if whole >= 0 else -1
    return Attribution(
        before_ns=sum(old.values()),
        whole_ns=whole,
        movements=tuple(sorted(movements, key=lambda m: -direction * m.moved_ns)),
    )


def _signed_ms(ns: float) -> str:
    decimals = 2 if abs(ns) >= 10_000 else 4
    return f"{ns / 1e6:+.{decimals}f} ms"


def _percent(movement: Movement) -> str:
    return "" if movement.change is None else f" ({movement.change:+.0%})"
