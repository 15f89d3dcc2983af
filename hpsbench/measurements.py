"""From what was recorded to what is judged: one `Measurement` per variant and batch size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from hpsbench import stats
from hpsbench.load.interleaved import ParticipantRun, Step, StepCount
from hpsbench.ratios import Statistic, log_ratio
from hpsbench.stages import StageProfile, mean_profile, profile
from hpsbench.telemetry import Telemetry


@dataclass(frozen=True, kw_only=True)
class ServerTimes:
    """Mean nanoseconds per request inside Triton; an ensemble's steps added up."""

    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int

    @property
    def total_ns(self) -> int:
        """All four stages; what is left of a client's latency is transport and scheduling."""
        return (
            self.queue_ns + self.compute_input_ns + self.compute_infer_ns + self.compute_output_ns
        )


@dataclass(frozen=True, kw_only=True)
class LaunchMeasurement:
    """One variant at one batch size on one fresh server: *one* observation for the verdict.

    The ratios divide by the reference that ran interleaved on the same server; `ratio_pairs` is
    None where requests failed, and in what was measured before it was there. `server` is the mean
    over the launch, `server_rounds` over each round; None and empty for a participant in this
    process. `stages` is of a traced pass afterwards, None without one.
    """

    launch: int
    latencies_ns: tuple[int, ...]
    failed: int
    p10_ns: int
    p50_ns: int
    mean_ns: int
    reference_p10_ns: int
    reference_p50_ns: int
    server: ServerTimes | None
    ratio_pairs: float | None = None
    server_rounds: tuple[ServerTimes, ...] = ()
    hit_rates: Mapping[str, float] = field(default_factory=dict)
    """Hits over keys, warm-up included, of each tier that the variant's lookups asked."""
    telemetry: Telemetry | None = None
    """The machine while this variant and those beside it were asked; None where nobody watched."""
    stages: StageProfile | None = None

    @property
    def ratio_p10(self) -> float:
        return self.p10_ns / self.reference_p10_ns

    @property
    def ratio_p50(self) -> float:
        return self.p50_ns / self.reference_p50_ns


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything measured of one benchmark in one session; `invalid` says why it must not count.

    `interleaved_with` names all the others that were asked in turn with it: who else runs on a
    machine is part of what was measured. `engine` is what ran the variant, where its server tells;
    more than one where launches differed. A launch without one answered request is left out.
    """

    benchmark: str
    variant: str
    batch_size: int
    reference: str
    launches: tuple[LaunchMeasurement, ...]
    invalid: str | None = None
    interleaved_with: tuple[str, ...] = ()
    engine: str | None = None

    @property
    def under_test(self) -> dict[str, str]:
        """What this benchmark adds to the versions and settings of its session."""
        return {} if self.engine is None else {"engine": self.engine}

    @property
    def stages(self) -> StageProfile | None:
        """The mean of the launches' stages; None where none was traced."""
        return mean_profile([c.stages for c in self.launches if c.stages is not None])

    @property
    def hit_rates(self) -> dict[str, float]:
        """The mean over the launches, of each tier that was asked."""
        return mean_hit_rates([launch.hit_rates for launch in self.launches])


def mean_hit_rates(rates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each tier's mean hit rate over those that asked it, in the order of the tiers."""
    tiers = dict.fromkeys(tier for of_one in rates for tier in of_one)
    return {tier: fmean(of_one[tier] for of_one in rates if tier in of_one) for tier in tiers}


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one launch says of one variant; `problem` tells why it must not count.

    `launch` is None where the variant or its reference answered nothing.
    """

    variant: str
    number: int
    launch: LaunchMeasurement | None
    problem: str | None
    interleaved_with: tuple[str, ...]
    engine: str | None = None


def observe(
    number: int,
    run: Mapping[str, ParticipantRun],
    *,
    variant: str,
    reference: str,
    min_requests: int,
    telemetry: Telemetry | None = None,
    hit_rates: Mapping[str, float] | None = None,
) -> Observation:
    """Return what launch `number` says of `variant`, out of its interleaved run.

    A problem is that the variant or its reference had fewer than `min_requests` answered requests
    or a failed one, that the server counted other requests than ours, or what the `telemetry`
    tells. Raises KeyError where the run lacks the variant or the reference.
    """
    own, base = run[variant], run[reference]
    problems = [(p.name, _problem(p, min_requests)) for p in (own, base)]
    told = [f"{name} {problem}" for name, problem in problems if problem is not None]
    if telemetry is not None and telemetry.problem is not None:
        told.append(telemetry.problem)
    launch = _launch(number, own, base)
    if launch is not None:
        launch = replace(launch, telemetry=telemetry, hit_rates=hit_rates or {})
    return Observation(
        variant=variant,
        number=number,
        launch=launch,
        problem=f"launch {number}: {told[0]}" if told else None,
        interleaved_with=tuple(name for name in run if name != variant),
        engine=own.engine,
    )


def assemble(
    observations: Sequence[Observation],
    *,
    benchmark: str,
    variant: str,
    batch_size: int,
    reference: str,
) -> Measurement:
    """Return the measurement of one benchmark from its launches; the first problem is told."""
    others = dict.fromkeys(name for o in observations for name in o.interleaved_with)
    engines = dict.fromkeys(o.engine for o in observations if o.engine is not None)
    return Measurement(
        benchmark=benchmark,
        variant=variant,
        batch_size=batch_size,
        reference=reference,
        launches=tuple(o.launch for o in observations if o.launch is not None),
        invalid=next((o.problem for o in observations if o.problem is not None), None),
        interleaved_with=tuple(others),
        engine=" or ".join(engines) or None,
    )


def measure(
    runs: Sequence[Mapping[str, ParticipantRun]],
    *,
    benchmark: str,
    variant: str,
    batch_size: int,
    reference: str,
    min_requests: int,
) -> Measurement:
    """Return the measurement of `variant` from the interleaved run of each launch, in order.

    `invalid` tells of the first launch with a problem (see `observe`). Raises KeyError where a
    run lacks the variant or the reference.
    """
    return assemble(
        [
            observe(number, run, variant=variant, reference=reference, min_requests=min_requests)
            for number, run in enumerate(runs, start=1)
        ],
        benchmark=benchmark,
        variant=variant,
        batch_size=batch_size,
        reference=reference,
    )


def server_times(run: ParticipantRun) -> tuple[ServerTimes | None, tuple[ServerTimes, ...]]:
    """Return a run's mean times per request over all rounds, and of each round.

    A step that several participants share gives the mean over their requests. None and empty
    where nothing was counted.
    """
    if not run.steps:
        return None, ()
    rounds = [_mean_times(run.step_multiplicity, [counts]) for counts in run.steps]
    whole = _mean_times(run.step_multiplicity, run.steps)
    return whole, tuple(r for r in rounds if r is not None)


def _launch(number: int, own: ParticipantRun, base: ParticipantRun) -> LaunchMeasurement | None:
    records = own.records
    latencies_ns, reference_ns = records.latencies_ns, base.records.latencies_ns
    if not len(latencies_ns) or not len(reference_ns):
        return None
    summary, reference = stats.summarize(latencies_ns), stats.summarize(reference_ns)
    server, server_rounds = server_times(own)
    return LaunchMeasurement(
        launch=number,
        latencies_ns=tuple(latencies_ns.tolist()),
        failed=records.failed,
        p10_ns=summary.p10_ns,
        p50_ns=summary.p50_ns,
        mean_ns=summary.mean_ns,
        reference_p10_ns=reference.p10_ns,
        reference_p50_ns=reference.p50_ns,
        server=server,
        ratio_pairs=_ratio_of_pairs(own, base),
        server_rounds=server_rounds,
        stages=None
        if own.traced is None or base.traced is None
        else profile(own.traced, base.traced),
    )


def _ratio_of_pairs(own: ParticipantRun, base: ParticipantRun) -> float | None:
    latencies_ns = own.records.latencies_ns, base.records.latencies_ns
    if own.records.failed or base.records.failed or len({*map(len, latencies_ns)}) > 1:
        return None  # which of the requests were asked one behind the other is not known then
    return round(math.exp(log_ratio(*latencies_ns, Statistic.PAIRS)), 6)


def _problem(run: ParticipantRun, min_requests: int) -> str | None:
    """Return why a run must not count, None where it may."""
    records = run.records
    if run.gave_up is not None:
        return f"was given up after {run.gave_up}"
    if records.failed:
        return f"had {records.failed} of {len(records)} requests fail: {records.messages[0]}"
    answered = len(records) - records.failed
    if answered < min_requests:
        return f"answered {answered} requests: needs at least {min_requests - answered} more"
    for number, counts in enumerate(run.steps, start=1):
        for (address, model), count in counts.items():
            counted = count.statistics.success_count
            if counted != count.expected:
                return (
                    f"round {number}: {model} at {address} counted {counted} requests where "
                    f"{count.expected} were sent: something else used the server"
                    if counted > count.expected
                    else f"round {number}: {model} at {address} counted only {counted} of the "
                    f"{count.expected} requests that were answered"
                )
    return None


def _mean_times(
    multiplicity: Mapping[Step, int], rounds: Iterable[Mapping[Step, StepCount]]
) -> ServerTimes | None:
    queue = inputs = infer = outputs = 0.0
    rounds = list(rounds)
    for step, times in multiplicity.items():
        counted = [counts[step].statistics for counts in rounds]
        requests = sum(c.success_count for c in counted)
        if requests == 0:
            return None
        queue += times * sum(c.queue_ns for c in counted) / requests
        inputs += times * sum(c.compute_input_ns for c in counted) / requests
        infer += times * sum(c.compute_infer_ns for c in counted) / requests
        outputs += times * sum(c.compute_output_ns for c in counted) / requests
    return ServerTimes(
        queue_ns=round(queue),
        compute_input_ns=round(inputs),
        compute_infer_ns=round(infer),
        compute_output_ns=round(outputs),
    )
