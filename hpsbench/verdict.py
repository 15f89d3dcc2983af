"""Did a benchmark become slower? Pure: measurements and baselines in, a named outcome out.

What is judged is the ratio to the reference, of p10 or of the requests asked one behind the other
(`pairs`), whichever tells the smaller change here; and that of p50, which only may worsen it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hpsbench.attribution import attribute, hit_rates_in_words, in_words
from hpsbench.baselines import Baseline
from hpsbench.config import GateConfig
from hpsbench.measurements import Measurement, mean_hit_rates
from hpsbench.ratios import STEADY, LaunchLike, Statistic, ratios_of
from hpsbench.session import NUMPY
from hpsbench.session_change import SESSION_SPREAD, Change, compare
from hpsbench.stages import mean_profile
from hpsbench.workload import Workload, changes

#: A change of the median below this is noise, whatever `gate.noise_threshold` says.
P50_NOISE_THRESHOLD = 0.10

#: Where others use more of the CPUs, a change against NumPy says nothing: they take time from a
#: server's many threads, and hardly any from a reference of one thread.
NUMPY_CROWDED = 0.2

#: In a verdict's text, before what differs from when its baseline was measured; it stands last.
SINCE = "; changed since: "

STORE_HINT = "run `hpsbench baseline update` to store this run, and commit the files"


class Outcome(enum.Enum):
    """Every way a benchmark can end, the most urgent first."""

    REGRESSED = "REGRESSED"
    INVALID = "INVALID"
    VANISHED = "VANISHED"
    OTHER_MACHINE = "OTHER_MACHINE"
    NO_BASELINE = "NO_BASELINE"
    INCONCLUSIVE = "INCONCLUSIVE"
    IMPROVED = "IMPROVED"
    PASS = "PASS"

    @property
    def decided(self) -> bool:
        """Whether the question was answered; what is not decided fails a strict gate."""
        return self in (Outcome.REGRESSED, Outcome.IMPROVED, Outcome.PASS)


HINTS = {
    Outcome.REGRESSED: "find the cause; if it is intended, run `hpsbench baseline update`",
    Outcome.INCONCLUSIVE: "measure again; more runs make the baseline firmer: "
    "`hpsbench baseline update --append`",
    Outcome.IMPROVED: "to hold the gain, run `hpsbench baseline update`",
}
BLIND_HINT = (
    "too noisy for a verdict: see that nothing else runs on this machine, or raise load.launches"
)
CROWDED_HINT = "see that nothing else runs on this machine, and measure again"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An outcome, in words and figures; fractions (0.03 is 3% slower), None where not compared.

    `change` is of `statistic`, p10 or pairs, `low` to `high` its confidence interval, and `limit`
    what it must exceed to count. `text` says what was found and `hint` what to do.
    """

    outcome: Outcome
    benchmark: str
    text: str
    hint: str
    statistic: str = "p10"
    change: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    change_p50: float | None = None
    limit_p50: float | None = None


@dataclass(frozen=True, kw_only=True)
class JudgedLaunches:
    """What launches say against a baseline: of the `statistic` that is steadiest, and of p50."""

    statistic: Statistic
    steadiest: Change
    p50: Change

    @property
    def outcome(self) -> Outcome:
        """That of the steadiest, unless p50's is worse."""
        of_p50 = _outcome(self.p50)
        if of_p50 not in (Outcome.REGRESSED, Outcome.INCONCLUSIVE):
            return _outcome(self.steadiest)
        return min(_outcome(self.steadiest), of_p50, key=_urgency)


def enough_launches(launches: Sequence[LaunchLike], baseline: Baseline, policy: GateConfig) -> bool:
    """Return whether `judge_launches` can tell anything: the spread of launches must be known."""
    counts = len(launches), baseline.num_launches
    return min(counts) >= policy.min_launches and max(counts) >= 2


def judge_launches(
    launches: Sequence[LaunchLike], baseline: Baseline, policy: GateConfig
) -> JudgedLaunches:
    """Return what the launches of a session say against a baseline's, by their ratios alone.

    Raises ValueError unless some session has two launches (see `enough_launches`).
    """
    p50 = _change(launches, baseline, policy, Statistic.P50)
    found = {s: _change(launches, baseline, policy, s) for s in STEADY}
    known = {s: change for s, change in found.items() if change is not None}
    assert p50 is not None  # no launch is without
    steadiest = min(known, key=lambda s: known[s].margin)
    return JudgedLaunches(statistic=steadiest, steadiest=known[steadiest], p50=p50)


def judge(
    candidate: Measurement,
    baseline: Baseline | None,
    policy: GateConfig,
    *,
    workload: Workload,
    under_test: Mapping[str, str],
    machine: str,
    elsewhere: Sequence[str] = (),
) -> Verdict:
    """Return the verdict on one measurement.

    `machine` is the class measured on, and `elsewhere` the classes that have a baseline if it
    has none. The p50 can only worsen the outcome, and beyond its own, wider limit.
    """
    name = candidate.benchmark
    unjudged = _unjudged(candidate, baseline, workload, machine, elsewhere)
    if unjudged is not None:
        return unjudged
    assert baseline is not None
    if not enough_launches(candidate.launches, baseline, policy):
        return Verdict(
            outcome=Outcome.INCONCLUSIVE,
            benchmark=name,
            text=f"{name}: {len(candidate.launches)} launches against {baseline.num_launches} in "
            f"the baseline are too few; {max(2, policy.min_launches)} each are needed",
            hint="raise load.launches, and run `hpsbench baseline update` if the baseline is short",
        )
    judged = judge_launches(candidate.launches, baseline, policy)
    first, p50, outcome = judged.steadiest, judged.p50, judged.outcome
    # Without it, the noisier a machine the easier to pass.
    blind = outcome is Outcome.PASS and first.margin > math.log1p(policy.widest_limit)
    crowd = _crowd(candidate) if outcome in (Outcome.REGRESSED, Outcome.IMPROVED) else ""
    if blind or crowd:
        outcome = Outcome.INCONCLUSIVE
    return Verdict(
        outcome=outcome,
        benchmark=name,
        text=_text(candidate, baseline, policy, judged)
        + crowd
        + _moved(candidate, baseline, outcome, first)
        + _since(candidate, baseline, under_test),
        hint=CROWDED_HINT if crowd else BLIND_HINT if blind else HINTS.get(outcome, ""),
        statistic=judged.statistic.value,
        change=math.expm1(first.value),
        low=math.expm1(first.low),
        high=math.expm1(first.high),
        limit=math.expm1(first.limit),
        change_p50=math.expm1(p50.value),
        limit_p50=math.expm1(p50.limit),
    )


def _outcome(change: Change) -> Outcome:
    """Beyond the limit REGRESSED or IMPROVED; INCONCLUSIVE if slower by enough to doubt."""
    if change.value > change.limit:
        return Outcome.REGRESSED
    if change.value < -change.limit:
        return Outcome.IMPROVED
    return Outcome.INCONCLUSIVE if change.value > change.doubtful else Outcome.PASS


def _change(
    launches: Sequence[LaunchLike], baseline: Baseline, policy: GateConfig, statistic: Statistic
) -> Change | None:
    """Return the change of a statistic; None where a launch of either side does not have it."""
    ratios = ratios_of(launches, statistic)
    sessions = [
        ratios_of((launch for run in occasion for launch in run.launches), statistic)
        for occasion in baseline.occasions
    ]
    stored = [session for session in sessions if session is not None]
    if ratios is None or len(stored) < len(sessions):
        return None
    least_noise = P50_NOISE_THRESHOLD if statistic is Statistic.P50 else 0
    return compare(
        ratios,
        stored,
        confidence=policy.confidence,
        noise_threshold=max(policy.noise_threshold, least_noise),
        session_spread=SESSION_SPREAD[statistic],
    )


def vanished(baseline: Baseline) -> Verdict:
    """Return the verdict on a baseline whose benchmark was not there to be measured."""
    return Verdict(
        outcome=Outcome.VANISHED,
        benchmark=baseline.benchmark,
        text=f"{baseline.benchmark}: has a baseline of {baseline.recorded_at[:10]}, and no test "
        f"measured it (it was {baseline.test})",
        hint="bring the benchmark back; if it was renamed or removed on purpose, delete its file "
        f"from the folder {baseline.machine} of the baselines",
    )


def _unjudged(
    candidate: Measurement,
    baseline: Baseline | None,
    workload: Workload,
    machine: str,
    elsewhere: Sequence[str],
) -> Verdict | None:
    name = candidate.benchmark
    if candidate.invalid is not None or not candidate.launches:
        return Verdict(
            outcome=Outcome.INVALID,
            benchmark=name,
            text=f"{name}: {candidate.invalid or 'nothing was measured'}",
            hint="mend that and measure again; these figures count for nothing",
        )
    if baseline is None and elsewhere:
        return Verdict(
            outcome=Outcome.OTHER_MACHINE,
            benchmark=name,
            text=f"{name}: this machine is {machine}; its baseline is of {', '.join(elsewhere)}",
            hint=STORE_HINT,
        )
    if baseline is None:
        return Verdict(
            outcome=Outcome.NO_BASELINE,
            benchmark=name,
            text=f"{name}: no baseline for {machine}",
            hint=STORE_HINT,
        )
    differences = changes(baseline.workload.settings, workload.settings)
    if baseline.reference != candidate.reference:
        differences.append(f"reference {baseline.reference} -> {candidate.reference}")
    if differences:
        return Verdict(
            outcome=Outcome.NO_BASELINE,
            benchmark=name,
            text=f"{name}: the baseline is of another workload: {'; '.join(differences)}",
            hint="measure the stored workload, or run `hpsbench baseline update` to store this one",
        )
    return None


def _text(
    candidate: Measurement, baseline: Baseline, policy: GateConfig, judged: JudgedLaunches
) -> str:
    named = [(judged.statistic, judged.steadiest), (Statistic.P50, judged.p50)]
    # What decided stands first, and alone is given with its interval.
    steadiest, p50 = (_urgency(_outcome(change)) for _, change in named)
    if p50 < min(steadiest, _urgency(Outcome.IMPROVED)):
        named.reverse()
    (statistic, first), (other_statistic, other) = named
    runs = len(baseline.runs)
    return (
        f"{candidate.benchmark}: {statistic.value} {abs(math.expm1(first.value)):.1%} "
        f"{'slower' if first.value > 0 else 'faster'} than its baseline (limit "
        f"{math.expm1(first.limit):.1%}, {policy.confidence:.0%} interval {_percent(first.low)} to "
        f"{_percent(first.high)}), {other_statistic.value} {_percent(other.value)} (limit "
        f"{math.expm1(other.limit):.1%}), as ratios to {candidate.reference}; "
        f"{len(candidate.launches)} launches against {baseline.num_launches} in "
        f"{runs} run{'s' if runs > 1 else ''} of {baseline.recorded_at[:10]}"
    )


def _crowd(candidate: Measurement) -> str:
    """Return what others took from a measurement against NumPy, in words, if that was too much."""
    watched = [launch.telemetry for launch in candidate.launches if launch.telemetry is not None]
    if candidate.reference != NUMPY or not watched:
        return ""
    share = median(telemetry.host.others + telemetry.host.steal for telemetry in watched)
    if share <= NUMPY_CROWDED:
        return ""
    return (
        f"; other programs took {share:.0%} of the CPUs, and little of it from one-threaded NumPy"
    )


def _moved(candidate: Measurement, baseline: Baseline, outcome: Outcome, change: Change) -> str:
    """Return the stage that moved, and the tiers whose hit rates did, where both sides tell."""
    if outcome not in (Outcome.REGRESSED, Outcome.IMPROVED):
        return ""
    told = []
    before = mean_profile([run.stages for run in baseline.runs if run.stages is not None])
    after = candidate.stages
    if before is not None and after is not None:
        told.append(in_words(attribute(before, after), math.expm1(change.value)))
    stored = mean_hit_rates([run.hit_rates for run in baseline.runs])
    if stored and candidate.hit_rates:
        told.append(hit_rates_in_words(stored, candidate.hit_rates))
    return "".join(f"; {text}" for text in told if text)


def _urgency(outcome: Outcome) -> int:
    return list(Outcome).index(outcome)


def _since(candidate: Measurement, baseline: Baseline, under_test: Mapping[str, str]) -> str:
    newest = max(baseline.runs, key=lambda run: run.recorded_at)
    before, now = dict(newest.under_test), dict(under_test)
    if "engine" not in before:  # not recorded then, so nobody knows whether it changed
        now.pop("engine", None)
    differences = changes(before, now)
    beside, beside_now = newest.interleaved_with, candidate.interleaved_with
    for which, names in (
        ("also", sorted(set(beside_now) - set(beside))),
        ("no longer", sorted(set(beside) - set(beside_now))),
    ):
        if names:
            differences.append(f"{which} asked in turn: {', '.join(names)}")
    return f"{SINCE}{', '.join(differences)}" if differences else ""


def _percent(log_change: float) -> str:
    return f"{math.expm1(log_change):+.1%}"
