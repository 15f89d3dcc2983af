"""Measure a duet: fresh pairs of servers, each asked in turn, and again where a change shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from hpsbench.duets.decision import (
    BASELINE,
    CANDIDATE,
    DuetLaunch,
    DuetPolicy,
    DuetSession,
    needs_confirmation,
)
from hpsbench.errors import ServerDied
from hpsbench.load.interleaved import Interleaved, ParticipantRun
from hpsbench.measurements import measure
from hpsbench.session import Launch, run_batch_size
from hpsbench.stages import profile
from hpsbench.telemetry import Watch, unwatched

#: A fresh pair of servers, of the launch with this number (from 1), as long as the context lasts.
Pair = Callable[[int], AbstractContextManager[Launch]]

#: Traced pairs of requests in each launch of a confirming session.
TRACED = 50

# A duet counts requests, so the time that the loop would fill beyond them is none.
_NO_TIME_S = 1e-9


@dataclass(frozen=True, kw_only=True)
class LaunchDone:
    """A launch that was measured; `measure_s` is the seconds that asking took, starting not."""

    session: int
    launch: int
    measured: DuetLaunch
    measure_s: float


def run_duet(
    pair: Pair,
    policy: DuetPolicy,
    *,
    batch_size: int = 1,
    seed: int = 0,
    on_launch: Callable[[LaunchDone], None] = lambda _: None,
    on_confirm: Callable[[DuetSession], None] = lambda _: None,
    watch: Watch = unwatched,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> list[DuetSession]:
    """Return the session measured on `policy.launches` fresh pairs, and the confirming one if any.

    Each pair must offer participants named BASELINE and CANDIDATE. A failed request, a server that
    died, or a machine that `watch` finds unfit ends the session, which is then `invalid`. Raises
    whatever else starting one raises.
    """
    sessions = []
    for number in (1, 2):
        session = _run_session(
            pair, policy, number, batch_size, seed + number, on_launch, watch, clock_ns, sleep
        )
        sessions.append(session)
        if number == 2 or not needs_confirmation(session, policy):
            break
        on_confirm(session)
    return sessions


def _run_session(
    pair: Pair,
    policy: DuetPolicy,
    session: int,
    batch_size: int,
    seed: int,
    on_launch: Callable[[LaunchDone], None],
    watch: Watch,
    clock_ns: Callable[[], int],
    sleep: Callable[[float], None],
) -> DuetSession:
    runs: list[Mapping[str, ParticipantRun]] = []
    launches: list[DuetLaunch] = []
    for number in range(1, policy.launches + 1):
        loop = Interleaved(
            rounds=1,
            warmup_requests=policy.warm_up,
            min_requests=policy.pairs,
            max_requests=policy.pairs,
            measure_s=_NO_TIME_S,
            # Sessions have seeds that are neighbours.
            seed=seed * 1000 + number,
            clock_ns=clock_ns,
            sleep=sleep,
        )
        try:
            with pair((session - 1) * policy.launches + number) as launched, watch() as watched:
                begun_ns = clock_ns()
                # Where the time goes is asked only once there is a change to explain.
                traced = replace(loop, min_requests=TRACED, max_requests=TRACED)
                runs.append(
                    run_batch_size(
                        loop,
                        launched,
                        (BASELINE, CANDIDATE),
                        batch_size,
                        traced=traced if session > 1 else None,
                    )
                )
                took_s = (clock_ns() - begun_ns) / 1e9
        except ServerDied as dead:
            return _invalid(session, launches, f"launch {number}: {dead.problem}")
        problem = _problem(runs, policy, batch_size)
        if watched.telemetry is not None and watched.telemetry.problem is not None:
            problem = problem or f"launch {number}: {watched.telemetry.problem}"
        if problem is not None:
            return _invalid(session, launches, problem)
        launches.append(_launch(runs[-1]))
        on_launch(
            LaunchDone(session=session, launch=number, measured=launches[-1], measure_s=took_s)
        )
    return DuetSession(launches=tuple(launches))


def _invalid(session: int, launches: list[DuetLaunch], problem: str) -> DuetSession:
    where = "" if session == 1 else "confirming session, "
    return DuetSession(launches=tuple(launches), invalid=where + problem)


def _problem(
    runs: list[Mapping[str, ParticipantRun]], policy: DuetPolicy, batch_size: int
) -> str | None:
    return measure(
        runs,
        benchmark=CANDIDATE,
        variant=CANDIDATE,
        batch_size=batch_size,
        reference=BASELINE,
        min_requests=policy.pairs,
    ).invalid


def _launch(run: Mapping[str, ParticipantRun]) -> DuetLaunch:
    baseline, candidate = run[BASELINE], run[CANDIDATE]
    traced = (
        None
        if baseline.traced is None or candidate.traced is None
        else (
            profile(baseline.traced, baseline.traced),
            profile(candidate.traced, baseline.traced),
        )
    )
    return DuetLaunch(
        baseline_ns=tuple(baseline.records.latencies_ns.tolist()),
        candidate_ns=tuple(candidate.records.latencies_ns.tolist()),
        baseline_stages=None if traced is None else traced[0],
        candidate_stages=None if traced is None else traced[1],
    )
