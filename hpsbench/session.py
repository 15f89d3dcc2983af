"""A session: fresh servers several times over, and on each of them every benchmark interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from hpsbench.config import LoadConfig, Suite
from hpsbench.errors import ConfigError, ServerDied
from hpsbench.load.interleaved import Interleaved, Participant, ParticipantRun
from hpsbench.load.traced import run_traced
from hpsbench.measurements import Measurement, Observation, assemble, observe
from hpsbench.models.kinds import kind_of
from hpsbench.servers.statistics import LookupCount
from hpsbench.telemetry import Telemetry, Watch, unwatched
from hpsbench.workload import row_of, split_row

#: The model as NumPy computes it in this process, which the reference variant is compared with.
NUMPY = "numpy"

#: Traced requests of a variant, batch size and launch: at least (where `load.min_requests` is not
#: less), and at most.
TRACED_REQUESTS = (10, 200)

#: Which benchmarks to measure: their ids, by row (`workload.row_of` a variant) and batch size.
Plan: TypeAlias = Mapping[tuple[str, int], str]


class Launch(Protocol):
    """Fresh servers, as long as their context lasts."""

    def participants(self, batch_size: int, keys: str = "") -> Sequence[Participant]:
        """Return who can be asked with `batch_size` samples a request; more than needed is fine.

        With `keys` they are asked with another key stream than the suite's, and called by row.
        The session calls `close` of each when the batch size is done.
        """

    def check_alive(self) -> None:
        """Raise ServerDied unless every server still runs."""


class VariantLaunch(Launch, Protocol):
    """Fresh servers with the variants of a suite, which count what they look up."""

    def lookups(self) -> Mapping[str, Mapping[str, LookupCount]]:
        """Return each variant's counters by tier, from the top, of those that tell."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a session is; `eta_s` is what is left in seconds, None while nothing is known yet.

    `batch_size` is None while the servers of launch number `launch` are being started, and `keys`
    is empty where they are the suite's own.
    """

    launch: int
    launches: int
    batch_size: int | None
    elapsed_s: float
    eta_s: float | None
    keys: str = ""


@dataclass(frozen=True, kw_only=True)
class SessionPart:
    """What one launch says of one batch size and key stream: an observation per planned row."""

    launch: int
    batch_size: int
    observations: tuple[Observation, ...]
    keys: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether nothing of it keeps a measurement from counting."""
        return all(o.problem is None for o in self.observations)


def reference_of(row: str, reference: str) -> str:
    """Return who a row is compared with: the variant `reference` with its keys, itself `numpy`."""
    name, keys = split_row(row)
    return NUMPY if name == reference else row_of(reference, keys)


def needed(plan: Plan, batch_size: int, keys: str = "", *, reference: str) -> tuple[str, ...]:
    """Return the participants that a batch size needs: its rows in order, then references."""
    rows = _rows(plan, batch_size, keys)
    return tuple(dict.fromkeys([*rows, *(reference_of(row, reference) for row in rows)]))


def run_session(
    suite: Suite,
    plan: Plan,
    launch: Callable[[], AbstractContextManager[VariantLaunch]],
    progress: Callable[[Progress], None] = lambda _: None,
    *,
    watch: Watch = unwatched,
    kept: Sequence[SessionPart] = (),
    on_part: Callable[[SessionPart], None] = lambda _: None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[tuple[str, int], Measurement]:
    """Measure every benchmark of `plan` on `suite.load.launches` fresh launches.

    `watch` tells what the machine did meanwhile. `on_part` is given what each launch says of a
    batch size as soon as it is measured; what is already in `kept` is not measured again, and a
    launch of which everything is kept is not started. A server that is found dead ends the session:
    what was not measured by then is invalid. Returns the measurements by the plan's keys, in its
    order. Raises ConfigError for an empty plan or where a launch lacks a participant that `needed`
    names, and whatever starting a server raises.
    """
    load, reference = suite.load, kind_of(suite).reference
    _check(load, plan)
    phases = phases_of(plan)
    parts = {(part.launch, (part.batch_size, part.keys)): part for part in kept}
    missing = {
        number: [phase for phase in phases if (number, phase) not in parts]
        for number in range(1, load.launches + 1)
    }
    estimate = _Estimate(missing, clock_ns)

    def measure_launch(number: int) -> str | None:
        """Measure what is missing of a launch; return how its server died, None if it lives."""
        progress(estimate.starts(number, None))
        with launch() as launched:
            try:
                for phase in missing[number]:
                    progress(estimate.starts(number, phase))
                    part = measure_phase(number, phase, launched)
                    parts[number, phase] = part
                    on_part(part)
            except ServerDied as dead:
                return f"launch {number}: {dead.problem}"
        return None

    def measure_phase(number: int, phase: tuple[int, str], launched: VariantLaunch) -> SessionPart:
        size, keys = phase
        loop = Interleaved(
            rounds=load.rounds,
            in_a_row=load.in_a_row,
            warmup_requests=load.warmup_requests,
            min_requests=load.min_requests,
            measure_s=load.measure_s,
            seed=load.seed + number * len(phases) + phases.index(phase),
            clock_ns=clock_ns,
            sleep=sleep,
        )
        before = launched.lookups()
        with watch() as watched:
            names = needed(plan, size, keys, reference=reference)
            traced = _traced(loop, load)
            run = run_batch_size(loop, launched, names, size, keys, traced=traced)
        rates = hit_rates(before, launched.lookups())
        return _part(load, plan, reference, number, phase, run, watched.telemetry, rates)

    for number, left in missing.items():
        death = measure_launch(number) if left else None
        if death is not None:
            parts = _lost(plan, missing, death) | parts
            break
    return {
        (variant, size): assemble(
            [
                observation
                for number in missing
                for observation in parts[number, (size, split_row(variant)[1])].observations
                if observation.variant == variant
            ],
            benchmark=benchmark,
            variant=variant,
            batch_size=size,
            reference=reference_of(variant, reference),
        )
        for (variant, size), benchmark in plan.items()
    }


def phases_of(plan: Plan) -> list[tuple[int, str]]:
    """Return what each launch is asked one after the other: batch sizes, each with its keys."""
    return list(dict.fromkeys((size, split_row(row)[1]) for row, size in plan))


def _rows(plan: Plan, batch_size: int, keys: str) -> list[str]:
    return [row for row, size in plan if (size, split_row(row)[1]) == (batch_size, keys)]


def _part(
    load: LoadConfig,
    plan: Plan,
    reference: str,
    number: int,
    phase: tuple[int, str],
    run: Mapping[str, ParticipantRun],
    telemetry: Telemetry | None,
    rates: Mapping[str, Mapping[str, float]],
) -> SessionPart:
    batch_size, keys = phase
    return SessionPart(
        launch=number,
        batch_size=batch_size,
        keys=keys,
        observations=tuple(
            observe(
                number,
                run,
                variant=variant,
                reference=reference_of(variant, reference),
                min_requests=load.min_requests,
                telemetry=telemetry,
                hit_rates=rates.get(split_row(variant)[0], {}),
            )
            for variant in _rows(plan, batch_size, keys)
        ),
    )


def _lost(
    plan: Plan, missing: Mapping[int, Sequence[tuple[int, str]]], death: str
) -> dict[tuple[int, tuple[int, str]], SessionPart]:
    """Return what is said of all that was missing, where a server's death ended the session."""
    return {
        (number, (size, keys)): SessionPart(
            launch=number,
            batch_size=size,
            keys=keys,
            observations=tuple(
                Observation(
                    variant=row, number=number, launch=None, problem=death, interleaved_with=()
                )
                for row in _rows(plan, size, keys)
            ),
        )
        for number, left in missing.items()
        for size, keys in left
    }


def hit_rates(
    before: Mapping[str, Mapping[str, LookupCount]], after: Mapping[str, Mapping[str, LookupCount]]
) -> dict[str, dict[str, float]]:
    """Return the hit rate of each variant and tier between two readings, where keys were asked."""
    rates: dict[str, dict[str, float]] = {}
    for variant, tiers in after.items():
        for tier, count in tiers.items():
            counted = count - before.get(variant, {}).get(tier, LookupCount())
            if counted.keys > 0:
                rates.setdefault(variant, {})[tier] = round(counted.hits / counted.keys, 6)
    return rates


def _check(load: LoadConfig, plan: Plan) -> None:
    if not plan:
        raise ConfigError("no benchmark was chosen", hint="choose a variant and a batch size")
    if load.concurrency != 1:
        raise ConfigError(
            f"load.concurrency is {load.concurrency}: interleaved requests go out one at a time",
            hint="set load.concurrency=1",
        )


def _traced(loop: Interleaved, load: LoadConfig) -> Interleaved | None:
    if not load.traced_s:
        return None
    return replace(
        loop,
        rounds=1,
        warmup_requests=1,
        min_requests=min(load.min_requests, TRACED_REQUESTS[0]),
        max_requests=TRACED_REQUESTS[1],
        measure_s=load.traced_s,
    )


def run_batch_size(
    loop: Interleaved,
    launched: Launch,
    names: Sequence[str],
    batch_size: int,
    keys: str = "",
    *,
    traced: Interleaved | None = None,
) -> dict[str, ParticipantRun]:
    """Ask the participants called `names` on one launch, close all, and return their runs by name.

    Afterwards they are asked as `traced` says, if it does, with the traces of their servers on.
    Raises ConfigError where the launch lacks one of them, and ServerDied once a server is dead.
    """
    offered = {p.name: p for p in launched.participants(batch_size, keys)}
    try:
        missing = [name for name in names if name not in offered]
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} cannot be asked at batch size {batch_size}: "
                f"only {', '.join(offered) or 'nothing'} was launched",
                hint="launch every variant of the plan, and what each is compared with",
            )
        asked = [offered[name] for name in names]
        return run_participants(loop, asked, launched.check_alive, traced=traced)
    finally:
        for participant in offered.values():
            participant.close()


def run_participants(
    loop: Interleaved,
    asked: Sequence[Participant],
    check_alive: Callable[[], None],
    *,
    traced: Interleaved | None = None,
) -> dict[str, ParticipantRun]:
    """Ask the participants, then once more as `traced` says with traces on; return their runs.

    Once one was given up nobody is traced. Raises ServerDied once a server is dead.
    """
    runs = loop.run(asked, check_alive)
    if traced is None or any(run.gave_up is not None for run in runs.values()):
        return runs
    where = run_traced(traced, asked, check_alive)
    return {name: replace(run, traced=where.get(name)) for name, run in runs.items()}


class _Estimate:
    """How long the rest will take, from how long its likes took."""

    def __init__(
        self, missing: Mapping[int, Sequence[tuple[int, str]]], clock_ns: Callable[[], int]
    ) -> None:
        # The phases in order: of each launch starting its servers (None), then its batch sizes.
        self._left = [phase for left in missing.values() if left for phase in (None, *left)]
        self._launches, self._clock_ns = len(missing), clock_ns
        self._took_ns: dict[tuple[int, str] | None, list[int]] = {}
        self._begun_ns = clock_ns()
        self._phase: tuple[int, str] | None = None
        self._phase_begun_ns: int | None = None

    def starts(self, launch: int, phase: tuple[int, str] | None) -> Progress:
        """Close the phase before, open this one, and say where the session is."""
        now_ns = self._clock_ns()
        if self._phase_begun_ns is not None:
            self._took_ns.setdefault(self._phase, []).append(now_ns - self._phase_begun_ns)
            del self._left[0]
        self._phase, self._phase_begun_ns = phase, now_ns
        batch_size, keys = phase or (None, "")
        return Progress(
            launch=launch,
            launches=self._launches,
            batch_size=batch_size,
            keys=keys,
            elapsed_s=(now_ns - self._begun_ns) / 1e9,
            eta_s=self._left_s(),
        )

    def _left_s(self) -> float | None:
        measured = [ns for phase, took in self._took_ns.items() for ns in took if phase is not None]
        if not measured:
            return None
        # A phase not yet seen is taken to last as long as the longest batch size that was.
        cost_ns = {phase: sum(took) / len(took) for phase, took in self._took_ns.items()}
        return sum(cost_ns.get(phase, max(measured)) for phase in self._left) / 1e9
