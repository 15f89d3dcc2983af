"""Measure a model under open-loop load: one rate, or a sweep up to where it saturates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hpsbench import stats
from hpsbench.config import Suite
from hpsbench.errors import ConfigError, RequestError
from hpsbench.load.arrivals import Arrivals, read_intervals
from hpsbench.load.client import Client
from hpsbench.load.closed_loop import ClosedLoop
from hpsbench.load.open_loop import OpenLoop
from hpsbench.load.records import Records
from hpsbench.load_curve import LoadCurve, LoadPoint, knee_of, next_rate, point_of

#: More closed-loop clients are tried until they get this little more.
_WORTH_MORE_CLIENTS = 1.05
_MAX_CLIENTS = 64


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """How to load a model; `rates_hz` are requests per second, none of them for a sweep.

    Requests due in the first `warmup_s` of each rate do not count. `capacity_s` is the time for
    each number of closed-loop clients. Raises ValueError for what measures nothing.
    """

    rates_hz: tuple[float, ...] = ()
    arrivals: Arrivals = field(default_factory=Arrivals)
    duration_s: float = 10.0
    warmup_s: float = 1.0
    capacity_s: float = 1.0
    slo_ns: int | None = None
    connections: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(rate > 0 for rate in self.rates_hz) or self.duration_s <= 0:
            raise ValueError("rates and durations must be positive")
        if self.warmup_s < 0 or self.connections < 1:
            raise ValueError("a load needs a connection, and no negative warm-up")


def plan_of(suite: Suite) -> LoadPlan:
    """Return how the open-loop benchmark loads each variant. Raises ConfigError for a bad file."""
    wanted = suite.open_loop
    intervals = read_intervals(Path(wanted.intervals)) if wanted.intervals else ()
    arrivals = Arrivals(kind=wanted.arrivals, intervals_ns=intervals)
    recorded_hz = arrivals.recorded_rate_hz
    return LoadPlan(
        rates_hz=wanted.rates or (() if recorded_hz is None else (recorded_hz,)),
        arrivals=arrivals,
        duration_s=wanted.duration_s,
        warmup_s=wanted.warmup_s,
        slo_ns=round(wanted.slo_ms * 1e6) or None,
        connections=wanted.connections,
        seed=suite.load.seed,
    )


def measure_load(
    plan: LoadPlan,
    connect: Callable[[], Client],
    check_alive: Callable[[], None] = lambda: None,
    on_point: Callable[[LoadPoint], None] = lambda _: None,
) -> LoadCurve:
    """Return the curve over the plan's rates, or over those of a sweep.

    Raises RequestError where not even one client alone is answered, ConfigError where no request is
    due at a rate, and whatever `check_alive` raises once the server is dead.
    """
    unloaded_ns = _unloaded_ns(plan, connect, check_alive)
    points: list[LoadPoint] = []

    def measure(rate_hz: float) -> None:
        points.append(_measure_rate(plan, rate_hz, len(points), connect, check_alive))
        on_point(points[-1])

    capacity_hz = None
    if plan.rates_hz:
        for rate_hz in plan.rates_hz:
            measure(rate_hz)
    else:
        capacity_hz = capacity(plan, connect, check_alive)
        while (
            rate := next_rate(
                points, capacity_hz=capacity_hz, unloaded_ns=unloaded_ns, slo_ns=plan.slo_ns
            )
        ) is not None:
            measure(rate)
    return LoadCurve(
        arrivals=plan.arrivals.kind,
        unloaded_ns=unloaded_ns,
        capacity_hz=capacity_hz,
        slo_ns=plan.slo_ns,
        points=tuple(sorted(points, key=lambda p: p.asked_hz)),
        knee=knee_of(points, unloaded_ns=unloaded_ns, slo_ns=plan.slo_ns)
        if len(points) > 1
        else None,
    )


def capacity(
    plan: LoadPlan, connect: Callable[[], Client], check_alive: Callable[[], None]
) -> float:
    """Return the answers per second that closed loops get, of as many clients as it takes.

    Raises RequestError where nothing is answered.
    """
    best_hz, clients = 0.0, 1
    while clients <= min(_MAX_CLIENTS, plan.connections):
        loop = ClosedLoop(concurrency=clients, measure_s=plan.capacity_s)
        records = loop.run(connect, check_alive)
        rate_hz = (len(records) - records.failed) * 1e9 / max(1, records.duration_ns)
        if rate_hz < _WORTH_MORE_CLIENTS * best_hz:
            break
        best_hz, clients = rate_hz, 2 * clients
    if not best_hz:
        raise _unanswered(records)
    return best_hz


def _unloaded_ns(
    plan: LoadPlan, connect: Callable[[], Client], check_alive: Callable[[], None]
) -> int:
    records = ClosedLoop(measure_s=plan.capacity_s).run(connect, check_alive)
    if not len(records.latencies_ns):
        raise _unanswered(records)
    return stats.percentile_ns(records.latencies_ns, 50)


def _unanswered(records: Records) -> RequestError:
    return RequestError(
        f"no request was answered: {records.messages[0]}",
        hint="see that the model takes these inputs; read the server's log",
    )


def _measure_rate(
    plan: LoadPlan,
    rate_hz: float,
    number: int,
    connect: Callable[[], Client],
    check_alive: Callable[[], None],
) -> LoadPoint:
    arrivals_ns = plan.arrivals.times(
        rate_hz, plan.warmup_s + plan.duration_s, seed=plan.seed * 1000 + number
    )
    warmup_ns = round(plan.warmup_s * 1e9)
    if not (arrivals_ns >= warmup_ns).any():
        raise ConfigError(
            f"at {rate_hz:g} requests/s none is due in the {plan.duration_s:g} s that count",
            hint="measure for longer, or at a higher rate",
        )
    loop = OpenLoop(arrivals_ns=arrivals_ns, warmup_ns=warmup_ns, connections=plan.connections)
    run = loop.run(connect, check_alive)
    return point_of(run, asked_hz=rate_hz, duration_s=plan.duration_s, slo_ns=plan.slo_ns)
