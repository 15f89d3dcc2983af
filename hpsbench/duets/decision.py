"""Is the candidate slower than the baseline that ran beside it? Pure: latencies in, a verdict out.

A duet is a session of several launches; in each, a fresh pair of servers is asked in turn, one
request at a time. What is judged is a statistic of all its launches together, candidate over
baseline: p10 or that of pairs, whichever the launches show to be steadier here. Beyond half its
limit a second session is asked, of fresh servers again, and the limit is held against both
together, for twice the launches are what tells a change of the limit's size from noise. Each must
show half of it by itself, and so must half of the launches: neither one freak session decides
anything, nor a few launches on a machine that was busy meanwhile. p50 is judged as well, with a
wider limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpsbench.attribution import attribute_side_by_side, in_words
from hpsbench.duets.launches import DuetSession, pooled
from hpsbench.ratios import Statistic
from hpsbench.stages import mean_profile
from hpsbench.verdict import P50_NOISE_THRESHOLD, Outcome, Verdict

BASELINE = "baseline"
CANDIDATE = "candidate"

#: The least share of the limit that each session must show on its own.
ALONE_SHARE = 0.5
#: The least share of all launches that must show so much themselves. A few launches on a machine
#: that was fast for them make up most of the fastest tenth; and requests beside a busy neighbour
#: are fast or slow, so that p50 falls on either side by chance.
AGREEING_SHARE = {Statistic.P10: 0.5, Statistic.PAIRS: 0.6, Statistic.P50: 0.75}
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

    `limit` is that of the steadiest statistic, p10 or pairs. `warm_up` and `pairs` are pairs of
    requests in each launch; those of the warm-up do not count. Raises ValueError for what measures
    nothing.
    """

    launches: int = 10
    pairs: int = 40
    warm_up: int = 10
    limit: float = 0.03
    limit_p50: float = P50_NOISE_THRESHOLD

    def __post_init__(self) -> None:
        if self.launches < 1 or self.pairs < 1 or self.warm_up < 0:
            raise ValueError("a duet needs a launch and a pair of requests, and no negative number")
        if self.limit <= 0 or self.limit_p50 <= 0:
            raise ValueError("limits must be positive")

    def limits(self, session: DuetSession) -> dict[Statistic, float]:
        """Return what is judged of a session, and the log ratio that each may reach."""
        return {
            session.steadiest: math.log1p(self.limit),
            Statistic.P50: math.log1p(self.limit_p50),
        }


def needs_confirmation(first: DuetSession, policy: DuetPolicy) -> bool:
    """Return whether a first session leaves a change possible, slower or faster."""
    return first.invalid is None and any(
        abs(first.shift(judged)) > _alone(limit) for judged, limit in policy.limits(first).items()
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
    limits = policy.limits(both)
    outcomes = {judged: _outcome(sessions, both, judged, limits[judged]) for judged in limits}
    outcome = min(outcomes.values(), key=list(Outcome).index)
    return Verdict(
        outcome=outcome,
        benchmark=name,
        text=_text(name, sessions, both, policy, outcomes) + _moved(both, outcome),
        hint=HINTS.get(outcome, ""),
        statistic=both.steadiest.value,
        change=math.expm1(both.shift(both.steadiest)),
        limit=policy.limit,
        change_p50=math.expm1(both.shift(Statistic.P50)),
        limit_p50=policy.limit_p50,
    )


def _outcome(
    sessions: Sequence[DuetSession], both: DuetSession, judged: Statistic, limit: float
) -> Outcome:
    for sign, outcome in ((1, Outcome.REGRESSED), (-1, Outcome.IMPROVED)):
        if _shown(sessions, both, judged, limit, sign) and _agreed(both, judged, limit, sign):
            return outcome
    # What may be faster need not be known; what may be slower must.
    slowest = max(sessions[0].shift(judged), both.shift(judged))
    return Outcome.INCONCLUSIVE if slowest > limit else Outcome.PASS


def _shown(
    sessions: Sequence[DuetSession], both: DuetSession, judged: Statistic, limit: float, sign: int
) -> bool:
    """Return whether each session shows a change, which one alone does not, and both `limit`."""
    return sign * both.shift(judged) > limit and all(
        sign * session.shift(judged) > _alone(limit) for session in sessions
    )


def _agreed(both: DuetSession, judged: Statistic, limit: float, sign: int) -> bool:
    """Return whether enough launches show a change."""
    agreeing = sum(sign * launch.shift(judged) > _alone(limit) for launch in both.launches)
    return agreeing >= AGREEING_SHARE[judged] * len(both.launches)


def _alone(limit: float) -> float:
    return math.log1p(ALONE_SHARE * math.expm1(limit))


def _text(
    name: str,
    sessions: Sequence[DuetSession],
    both: DuetSession,
    policy: DuetPolicy,
    outcomes: Mapping[Statistic, Outcome],
) -> str:
    # What decided stands first.
    order = sorted(outcomes, key=lambda judged: list(Outcome).index(outcomes[judged]))
    parts = []
    for judged in order:
        limit = policy.limit_p50 if judged is Statistic.P50 else policy.limit
        found = f"{judged.value} {_in_words(math.expm1(both.shift(judged)))}"
        if len(sessions) > 1:
            each = ", then ".join(f"{math.expm1(s.shift(judged)):+.1%}" for s in sessions)
            found += f" ({each}; limit {limit:.1%})"
        else:
            found += f" (limit {limit:.1%})"
        parts.append(found)
    requests = len(both.candidate_ns)
    few = f", of only {requests} requests" if requests < P99_MIN_REQUESTS else ""
    p99 = math.expm1(both.shift(Statistic.P99))
    parts.append(f"p99 {p99:+.1%} (not judged{few})")
    plural = "" if len(both.launches) == 1 else "es"
    counted = f"{len(both.launches)} launch{plural} of {policy.pairs} pairs"
    return f"{name}: {', '.join(parts)}; {counted}{_doubt(sessions, both, policy, outcomes)}"


def _doubt(
    sessions: Sequence[DuetSession],
    both: DuetSession,
    policy: DuetPolicy,
    outcomes: Mapping[Statistic, Outcome],
) -> str:
    """Return why a change beyond a limit does not count; empty where one counts, or none is."""
    if len(sessions) < 2 or {Outcome.REGRESSED, Outcome.IMPROVED}.intersection(outcomes.values()):
        return ""
    limits = policy.limits(both)
    for judged, limit in limits.items():
        if any(_shown(sessions, both, judged, limit, sign) for sign in (1, -1)):
            return f"; too few launches agree on {judged.value}"
    beyond = any(abs(sessions[0].shift(judged)) > limit for judged, limit in limits.items())
    return "; the second session did not confirm the first" if beyond else ""


def _moved(both: DuetSession, outcome: Outcome) -> str:
    if outcome not in (Outcome.REGRESSED, Outcome.IMPROVED):
        return ""
    traced = [(ln.baseline_stages, ln.candidate_stages) for ln in both.launches]
    before = mean_profile([b for b, c in traced if b is not None and c is not None])
    after = mean_profile([c for b, c in traced if b is not None and c is not None])
    if before is None or after is None:
        return ""
    change = math.expm1(both.shift(both.steadiest))
    return f"; {in_words(attribute_side_by_side(before, after), change)}"


def _in_words(change: float) -> str:
    if abs(change) < 0.0005:
        return "the same"
    return f"{abs(change):.1%} {'slower' if change > 0 else 'faster'}"
