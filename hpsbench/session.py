"""A session: fresh servers several times over, and on each of them every benchmark interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from hpsbench.config import LoadConfig, Suite
from hpsbench.errors import ConfigError
from hpsbench.load.interleaved import Interleaved, Participant, ParticipantRun
from hpsbench.measurements import Measurement, measure

#: What every other variant is compared with.
NATIVE_TF = "native_tf"
#: The DLRM that runs inside this process, which `NATIVE_TF` itself is compared with.
NUMPY = "numpy"

#: Which benchmarks to measure: their ids, by variant and batch size.
Plan: TypeAlias = Mapping[tuple[str, int], str]


class Launch(Protocol):
    """Fresh servers, as long as their context lasts."""

    def participants(self, batch_size: int) -> Sequence[Participant]:
        """Return who can be asked with `batch_size` samples a request; more than needed is fine.

        The session calls `close` of each when the batch size is done.
        """

    def check_alive(self) -> None:
        """Raise ServerDied unless every server still runs."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a session is; `eta_s` is what is left in seconds, None while nothing is known yet.

    `batch_size` is None while the servers of launch number `launch` are being started.
    """

    launch: int
    launches: int
    batch_size: int | None
    elapsed_s: float
    eta_s: float | None


def reference_of(variant: str) -> str:
    """Return who a variant is compared with: `native_tf`, and that one with `numpy`."""
    return NUMPY if variant == NATIVE_TF else NATIVE_TF


def needed(plan: Plan, batch_size: int) -> tuple[str, ...]:
    """Return the participants that a batch size needs: its variants in order, then references."""
    variants = [variant for variant, size in plan if size == batch_size]
    return tuple(dict.fromkeys([*variants, *map(reference_of, variants)]))


def run_session(
    suite: Suite,
    plan: Plan,
    launch: Callable[[], AbstractContextManager[Launch]],
    progress: Callable[[Progress], None] = lambda _: None,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[tuple[str, int], Measurement]:
    """Measure every benchmark of `plan` on `suite.load.launches` fresh launches.

    Returns the measurements by the plan's keys, in its order. Raises ConfigError for an empty plan
    or where a launch lacks a participant that `needed` names; ServerDied as soon as a server is
    found dead, and whatever starting one raises.
    """
    load = suite.load
    _check(load, plan)
    batch_sizes = list(dict.fromkeys(size for _, size in plan))
    runs: dict[int, list[dict[str, ParticipantRun]]] = {size: [] for size in batch_sizes}
    estimate = _Estimate(load.launches, batch_sizes, clock_ns)
    for number in range(1, load.launches + 1):
        progress(estimate.starts(number, None))
        with launch() as launched:
            for position, size in enumerate(batch_sizes):
                progress(estimate.starts(number, size))
                loop = Interleaved(
                    rounds=load.rounds,
                    warmup_requests=load.warmup_requests,
                    min_requests=load.min_requests,
                    measure_s=load.measure_s,
                    seed=load.seed + number * len(batch_sizes) + position,
                    clock_ns=clock_ns,
                    sleep=sleep,
                )
                runs[size].append(run_batch_size(loop, launched, needed(plan, size), size))
    return {
        (variant, size): measure(
            runs[size],
            benchmark=benchmark,
            variant=variant,
            batch_size=size,
            reference=reference_of(variant),
            min_requests=load.min_requests,
        )
        for (variant, size), benchmark in plan.items()
    }


def _check(load: LoadConfig, plan: Plan) -> None:
    if not plan:
        raise ConfigError("no benchmark was chosen", hint="choose a variant and a batch size")
    if load.concurrency != 1:
        raise ConfigError(
            f"load.concurrency is {load.concurrency}: interleaved requests go out one at a time",
            hint="set load.concurrency=1",
        )


def run_batch_size(
    loop: Interleaved, launched: Launch, names: Sequence[str], batch_size: int
) -> dict[str, ParticipantRun]:
    """Ask the participants called `names` on one launch, close all, and return their runs by name.

    Raises ConfigError where the launch lacks one of them, and ServerDied once a server is dead.
    """
    offered = {p.name: p for p in launched.participants(batch_size)}
    try:
        missing = [name for name in names if name not in offered]
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} cannot be asked at batch size {batch_size}: "
                f"only {', '.join(offered) or 'nothing'} was launched",
                hint="launch every variant of the plan, and what each is compared with",
            )
        return loop.run([offered[name] for name in names], launched.check_alive)
    finally:
        for participant in offered.values():
            participant.close()


class _Estimate:
    """How long the rest will take, from how long its likes took."""

    def __init__(
        self, launches: int, batch_sizes: Sequence[int], clock_ns: Callable[[], int]
    ) -> None:
        self._launches, self._clock_ns = launches, clock_ns
        # The stages of one launch in order: starting its servers (None), then each batch size.
        self._stages: list[int | None] = [None, *batch_sizes]
        self._took_ns: dict[int | None, list[int]] = {stage: [] for stage in self._stages}
        self._begun_ns = clock_ns()
        self._stage: int | None = None
        self._stage_begun_ns: int | None = None

    def starts(self, launch: int, batch_size: int | None) -> Progress:
        """Close the stage before, open this one, and say where the session is."""
        now_ns = self._clock_ns()
        if self._stage_begun_ns is not None:
            self._took_ns[self._stage].append(now_ns - self._stage_begun_ns)
        self._stage, self._stage_begun_ns = batch_size, now_ns
        return Progress(
            launch=launch,
            launches=self._launches,
            batch_size=batch_size,
            elapsed_s=(now_ns - self._begun_ns) / 1e9,
            eta_s=self._left_s(launch),
        )

    def _left_s(self, launch: int) -> float | None:
        measured = [ns for stage in self._stages[1:] for ns in self._took_ns[stage]]
        if not measured:
            return None
        # A batch size not yet seen is taken to last as long as the longest one that was.
        cost_ns = {s: sum(t) / len(t) if t else max(measured) for s, t in self._took_ns.items()}
        ahead = self._stages[self._stages.index(self._stage) :]
        later = (self._launches - launch) * sum(cost_ns.values())
        return (sum(cost_ns[stage] for stage in ahead) + later) / 1e9
