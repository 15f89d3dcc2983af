"""What a host's duets can tell apart: decisions on known changes in, rates out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from scipy.special import betaincinv

from hpsbench.duets.decision import DuetPolicy
from hpsbench.duets.launches import DuetSession
from hpsbench.verdict import Outcome

#: The changes that are injected: none, and these shares of a request's time.
INJECTED = (0.0, 0.05, 0.10, 0.20)
#: pytest-benchmark's `--benchmark-compare-fail=mean:5%`, the rule beside ours.
MEAN_LIMIT = 0.05
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One duet on a known change; fractions of a request's time, and seconds.

    `change` is that of `statistic`, p10 or pairs, and `mean_change` that of the mean over the first
    session's requests; None where invalid. `ratios_*` are those of each launch, in order.
    `measure_s` is the time that requests took, `total_s` with the starts of all servers.
    """

    injected: float
    outcome: Outcome
    statistic: str
    change: float | None
    change_p50: float | None
    mean_change: float | None
    ratios_p10: tuple[float, ...]
    ratios_pairs: tuple[float, ...]
    ratios_p50: tuple[float, ...]
    sessions: int
    measure_s: float
    total_s: float
    request_ns: int = 0
    """What the baseline's request was calibrated to take; 0 where that was not stored."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """`found` of `of`, and the exact (Clopper-Pearson) interval of its probability."""

    found: int
    of: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """All decisions on one injected change; of none, the rates are of false alarms."""

    injected: float
    regressed: Rate
    mean_rule: Rate
    inconclusive: int
    improved: int
    invalid: int


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What `hpsbench selftest` stores; `request_ns` is what a request was made to take.

    `neighbours` is the number of synthetic noisy neighbours that ran beside the servers.
    """

    recorded_at: str
    machine: str
    policy: DuetPolicy
    request_ns: int
    confidence: float
    resolutions: tuple[Resolution, ...]
    decisions: tuple[Decision, ...]
    neighbours: int = 0

    @property
    def total_s(self) -> float:
        """The median seconds of a decision, the servers' starts included."""
        return median(d.total_s for d in self.decisions)

    @property
    def measure_s(self) -> float:
        """The median seconds that a decision's requests took."""
        return median(d.measure_s for d in self.decisions)

    @property
    def longest_measure_s(self) -> float:
        """The seconds that the requests of the most expensive decision took."""
        return max(d.measure_s for d in self.decisions)


def with_decisions(selftest: SelfTest, decisions: Sequence[Decision]) -> SelfTest:
    """Return a self-test that holds `decisions`, at least one, and their rates."""
    known_ns = [d.request_ns for d in decisions if d.request_ns] or [selftest.request_ns]
    return replace(
        selftest,
        request_ns=round(median(known_ns)),
        resolutions=resolutions(decisions),
        decisions=tuple(decisions),
    )


def differences(one: SelfTest, other: SelfTest) -> list[str]:
    """Return what keeps two self-tests from being counted together; empty where nothing does."""
    pairs = {
        "machine": (one.machine, other.machine),
        "noisy neighbours": (one.neighbours, other.neighbours),
        "policy": (one.policy, other.policy),
    }
    return [f"{name} {a} and {b}" for name, (a, b) in pairs.items() if a != b]


def merged(selftests: Sequence[SelfTest]) -> SelfTest:
    """Return the decisions of all, in order; raises ValueError naming what differs, or for none."""
    if not selftests:
        raise ValueError("nothing to merge")
    newest = max(selftests, key=lambda s: s.recorded_at)
    for other in selftests:
        if found := differences(newest, other):
            raise ValueError("; ".join(found))
    return with_decisions(newest, [d for s in selftests for d in s.decisions])


def rate(found: int, of: int, confidence: float = CONFIDENCE) -> Rate:
    """Return `found` of `of` with its interval; raises ValueError unless 0 <= found <= of."""
    if not 0 <= found <= of:
        raise ValueError(f"{found} of {of} is no rate")
    tail = (1 - confidence) / 2
    low = float(betaincinv(found, of - found + 1, tail)) if found else 0.0
    high = float(betaincinv(found + 1, of - found, 1 - tail)) if found < of else 1.0
    return Rate(found=found, of=of, low=low, high=high)


def mean_change(session: DuetSession) -> float:
    """Return by what fraction the candidate's mean latency exceeds the baseline's."""
    return fmean(session.candidate_ns) / fmean(session.baseline_ns) - 1


def resolutions(decisions: Sequence[Decision]) -> tuple[Resolution, ...]:
    """Return a resolution per injected change, increasing; what is invalid counts in no rate."""
    return tuple(
        _resolution(injected, [d for d in decisions if d.injected == injected])
        for injected in sorted({d.injected for d in decisions})
    )


def _resolution(injected: float, decisions: Sequence[Decision]) -> Resolution:
    valid = [d for d in decisions if d.outcome is not Outcome.INVALID]
    outcomes = [d.outcome for d in decisions]
    slower_mean = sum(d.mean_change is not None and d.mean_change > MEAN_LIMIT for d in valid)
    return Resolution(
        injected=injected,
        regressed=rate(outcomes.count(Outcome.REGRESSED), len(valid)),
        mean_rule=rate(slower_mean, len(valid)),
        inconclusive=outcomes.count(Outcome.INCONCLUSIVE),
        improved=outcomes.count(Outcome.IMPROVED),
        invalid=outcomes.count(Outcome.INVALID),
    )
