"""Is the candidate slower than the baseline that ran beside it? Pure: latencies in, a verdict out.

A duet is a session of several launches; in each, a fresh pair of servers is asked in turn, one
request at a time. A percentile of all launches' requests together, candidate over baseline, is
one session's change. Beyond half its limit a second session is asked, of fresh servers again, and
the limit is held against both together, for twice the launches are what tells a change of the
limit's size from noise. Each must show half of it by itself, and so must half of the launches:
neither one freak session decides anything, nor a few launches on a machine that was busy meanwhile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hpsbench import stats
from hpsbench.attribution import attribute_side_by_side, in_words
from hpsbench.stages import StageProfile, mean_profile
from hpsbench.verdict import P50_NOISE_THRESHOLD, Outcome, Verdict

BASELINE = "baseline"
CANDIDATE = "candidate"

#: The least share of the limit that each session must show on its own.
ALONE_SHARE = 0.5
#: The least share of all launches that must show so much themselves, by percentile. A few launches
#: on a machine that was fast for them make up most of the fastest tenth; and requests beside a busy
#: neighbour are fast or slow, so that p50 falls on either side by chance.
AGREEING_SHARE = {10: 0.5, 50: 0.75}
#: Fewer requests than this leave p99 to a handful of outliers.
P99_MIN_REQUESTS = 3000

HINTS = {
    Outcome.REGRESSED: "find the cause in what differs between the two",
    Outcome.INVALID: "mend that and compare again; these figures count for nothing",
    Outcome.INCONCLUSIVE: "compare again on a quieter machine, or with more --launches",
}


@dataclass(frozen=True, kw_only=True)
class DuetPolicy:
    """How many fresh pairs of servers, and when a change counts; limits are fractions.

    `warm_up` and `pairs` are pairs of requests in each launch; those of the warm-up do not count.
    Raises ValueError for what measures nothing.
    """

    launches: int = 10
    pairs: int = 40
    warm_up: int = 10
    limit_p10: float = 0.03
    limit_p50: float = P50_NOISE_THRESHOLD

    def __post_init__(self) -> None:
        if self.launches < 1 or self.pairs < 1 or self.warm_up < 0:
            raise ValueError("a duet needs a launch and a pair of requests, and no negative number")
        if self.limit_p10 <= 0 or self.limit_p50 <= 0:
            raise ValueError("limits must be positive")

    @property
    def limits(self) -> dict[int, float]:
        """The judged percentiles, and the log ratio that each may reach."""
        return {10: math.log1p(self.limit_p10), 50: math.log1p(self.limit_p50)}


@dataclass(frozen=True, kw_only=True)
class DuetLaunch:
    """The nanoseconds of the answered requests of one fresh pair; raises ValueError for none.

    The stages are of a traced pass afterwards, None without one.
    """

    baseline_ns: tuple[int, ...]
    candidate_ns: tuple[int, ...]
    baseline_stages: StageProfile | None = None
    candidate_stages: StageProfile | None = None

    def __post_init__(self) -> None:
        if not self.baseline_ns or not self.candidate_ns:
            raise ValueError("a launch needs an answered request of each side")

    def ratio(self, q: float) -> float:
        """Return the candidate's `q`-th percentile over the baseline's."""
        return _ratio(self.baseline_ns, self.candidate_ns, q)

    def shift(self, q: float) -> float:
        """Return the log of that ratio."""
        return math.log(self.ratio(q))


@dataclass(frozen=True, kw_only=True)
class DuetSession:
    """The launches of one session; `invalid` says why they must not count."""

    launches: tuple[DuetLaunch, ...]
    invalid: str | None = None

    @cached_property
    def baseline_ns(self) -> tuple[int, ...]:
        """The baseline's latencies of all launches."""
        return tuple(itertools.chain.from_iterable(ln.baseline_ns for ln in self.launches))

    @cached_property
    def candidate_ns(self) -> tuple[int, ...]:
        """The candidate's latencies of all launches."""
        return tuple(itertools.chain.from_iterable(ln.candidate_ns for ln in self.launches))

    def shift(self, q: float) -> float:
        """Return the log ratio of the `q`-th percentiles of all launches together."""
        return math.log(_ratio(self.baseline_ns, self.candidate_ns, q))


def pooled(sessions: Sequence[DuetSession]) -> DuetSession:
    """Return one session of all launches; `invalid` if one of them is."""
    return DuetSession(
        launches=tuple(launch for session in sessions for launch in session.launches),
        invalid=next((s.invalid for s in sessions if s.invalid is not None), None),
    )


def needs_confirmation(first: DuetSession, policy: DuetPolicy) -> bool:
    """Return whether a first session leaves a change possible, slower or faster."""
    return first.invalid is None and any(
        abs(first.shift(q)) > _alone(limit) for q, limit in policy.limits.items()
    )


def judge_duet(sessions: Sequence[DuetSession], policy: DuetPolicy, *, name: str) -> Verdict:
    """Return the verdict on `name` from one session, or from two where the first needed it.

    A change is followed by the stage that made it, where both sides were traced. Raises ValueError
    unless there are one or two, as `needs_confirmation` says.
    """
    both = pooled(sessions)
    if both.invalid is not None or not both.launches:
        return Verdict(
            outcome=Outcome.INVALID,
            benchmark=name,
            text=f"{name}: {both.invalid or 'nothing was measured'}",
            hint=HINTS[Outcome.INVALID],
        )
    if len(sessions) != 1 + needs_confirmation(sessions[0], policy):
        raise ValueError(f"{len(sessions)} sessions are not what the first asked for")
    outcomes = {q: _outcome(sessions, both, q, limit) for q, limit in policy.limits.items()}
    outcome = min(outcomes.values(), key=list(Outcome).index)
    return Verdict(
        outcome=outcome,
        benchmark=name,
        text=_text(name, sessions, both, policy, outcomes) + _moved(both, outcome),
        hint=HINTS.get(outcome, ""),
        change=math.expm1(both.shift(10)),
        limit=policy.limit_p10,
        change_p50=math.expm1(both.shift(50)),
        limit_p50=policy.limit_p50,
    )


def _outcome(sessions: Sequence[DuetSession], both: DuetSession, q: int, limit: float) -> Outcome:
    for sign, outcome in ((1, Outcome.REGRESSED), (-1, Outcome.IMPROVED)):
        if _shown(sessions, both, q, limit, sign) and _launches_agree(both, q, limit, sign):
            return outcome
    # What may be faster need not be known; what may be slower must.
    slowest = max(sessions[0].shift(q), both.shift(q))
    return Outcome.INCONCLUSIVE if slowest > limit else Outcome.PASS


def _shown(
    sessions: Sequence[DuetSession], both: DuetSession, q: int, limit: float, sign: int
) -> bool:
    """Return whether each session shows a change, which one alone does not, and both `limit`."""
    return sign * both.shift(q) > limit and all(
        sign * session.shift(q) > _alone(limit) for session in sessions
    )


def _launches_agree(both: DuetSession, q: int, limit: float, sign: int) -> bool:
    agreeing = sum(sign * launch.shift(q) > _alone(limit) for launch in both.launches)
    return agreeing >= AGREEING_SHARE[q] * len(both.launches)


def _alone(limit: float) -> float:
    return math.log1p(ALONE_SHARE * math.expm1(limit))


def _text(
    name: str,
    sessions: Sequence[DuetSession],
    both: DuetSession,
    policy: DuetPolicy,
    outcomes: dict[int, Outcome],
) -> str:
    limits = {10: policy.limit_p10, 50: policy.limit_p50}
    # What decided stands first.
    order = sorted(outcomes, key=lambda q: (list(Outcome).index(outcomes[q]), q))
    parts = []
    for q in order:
        change = math.expm1(both.shift(q))
        found = f"p{q} {_in_words(change)}"
        if len(sessions) > 1:
            each = ", then ".join(f"{math.expm1(s.shift(q)):+.1%}" for s in sessions)
            found += f" ({each}; limit {limits[q]:.1%})"
        else:
            found += f" (limit {limits[q]:.1%})"
        parts.append(found)
    requests = len(both.candidate_ns)
    few = f", of only {requests} requests" if requests < P99_MIN_REQUESTS else ""
    parts.append(f"p99 {math.expm1(both.shift(99)):+.1%} (not judged{few})")
    plural = "" if len(both.launches) == 1 else "es"
    counted = f"{len(both.launches)} launch{plural} of {policy.pairs} pairs"
    return f"{name}: {', '.join(parts)}; {counted}{_doubt(sessions, both, policy, outcomes)}"


def _doubt(
    sessions: Sequence[DuetSession],
    both: DuetSession,
    policy: DuetPolicy,
    outcomes: dict[int, Outcome],
) -> str:
    """Return why a change beyond a limit does not count; empty where one counts, or none is."""
    if len(sessions) < 2 or {Outcome.REGRESSED, Outcome.IMPROVED}.intersection(outcomes.values()):
        return ""
    for q, limit in policy.limits.items():
        if any(_shown(sessions, both, q, limit, sign) for sign in (1, -1)):
            return f"; too few launches agree on p{q}"
    beyond = any(abs(sessions[0].shift(q)) > limit for q, limit in policy.limits.items())
    return "; the second session did not confirm the first" if beyond else ""


def _moved(both: DuetSession, outcome: Outcome) -> str:
    if outcome not in (Outcome.REGRESSED, Outcome.IMPROVED):
        return ""
    traced = [(ln.baseline_stages, ln.candidate_stages) for ln in both.launches]
    before = mean_profile([b for b, c in traced if b is not None and c is not None])
    after = mean_profile([c for b, c in traced if b is not None and c is not None])
    if before is None or after is None:
        return ""
    return f"; {in_words(attribute_side_by_side(before, after), math.expm1(both.shift(10)))}"


def _in_words(change: float) -> str:
    if abs(change) < 0.0005:
        return "the same"
    return f"{abs(change):.1%} {'slower' if change > 0 else 'faster'}"


def _ratio(baseline_ns: Sequence[int], candidate_ns: Sequence[int], q: float) -> float:
    (candidate,) = stats.percentiles_ns(candidate_ns, [q])
    (baseline,) = stats.percentiles_ns(baseline_ns, [q])
    return candidate / baseline
