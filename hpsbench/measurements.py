"""From what was recorded to what is judged: one `Measurement` per variant and batch size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hpsbench import stats
from hpsbench.load.interleaved import ParticipantRun, Step, StepCount


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

    `ratio_p10` and `ratio_p50` divide by the reference that ran interleaved on the same server.
    `server` is the mean over the launch, `server_rounds` over each round; None and empty for a
    participant in this process.
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
    server_rounds: tuple[ServerTimes, ...] = ()

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
    machine is part of what was measured. A launch without one answered request is left out.
    """

    benchmark: str
    variant: str
    batch_size: int
    reference: str
    launches: tuple[LaunchMeasurement, ...]
    invalid: str | None = None
    interleaved_with: tuple[str, ...] = ()


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

    `invalid` tells of the first launch in which the variant or its reference had fewer than
    `min_requests` answered requests or a failed one, or where the server counted other requests
    than ours. Raises KeyError where a run lacks the variant or the reference.
    """
    launches, problems = [], []
    for number, run in enumerate(runs, start=1):
        own, base = run[variant], run[reference]
        for participant in (own, base):
            problem = _problem(participant, min_requests)
            if problem is not None:
                problems.append(f"launch {number}: {participant.name} {problem}")
        launch = _launch(number, own, base)
        if launch is not None:
            launches.append(launch)
    others = {name: None for run in runs for name in run if name != variant}
    return Measurement(
        benchmark=benchmark,
        variant=variant,
        batch_size=batch_size,
        reference=reference,
        launches=tuple(launches),
        invalid=problems[0] if problems else None,
        interleaved_with=tuple(others),
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
        server_rounds=server_rounds,
    )


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
