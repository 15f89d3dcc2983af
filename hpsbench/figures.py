"""What was measured -> the figures that tables and charts show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean, median

from hpsbench import stats
from hpsbench.baselines import Baseline, BaselineRun
from hpsbench.measurements import Measurement
from hpsbench.published import COMPUTE_INFER, THROUGHPUT, PublishedTable
from hpsbench.ratios import LaunchLike, Statistic, ratios_alike
from hpsbench.runs import Result, Run
from hpsbench.session import NUMPY
from hpsbench.workload import Workload, split_row

#: The percentiles of a distribution's curve; what lies beyond them is too few requests to draw.
PERCENTILES = tuple(range(1, 100))


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Medians over the launches, nanoseconds; `ratio` is p10 to the reference's, a geometric mean.

    `samples_per_s` is what the closed loop's clients got while it was this variant's turn.
    """

    p10_ns: float
    p50_ns: float
    compute_infer_ns: float | None
    samples_per_s: float
    ratio: float


def figures(measurement: Measurement, *, concurrency: int) -> Figures | None:
    """Return a measurement's figures, or None when it has no launch to take them from."""
    launches = measurement.launches
    if not launches:
        return None
    infer = [launch.server.compute_infer_ns for launch in launches if launch.server is not None]
    mean_ns = fmean(launch.mean_ns for launch in launches)
    return Figures(
        p10_ns=median(launch.p10_ns for launch in launches),
        p50_ns=median(launch.p50_ns for launch in launches),
        compute_infer_ns=median(infer) if infer else None,
        samples_per_s=concurrency * measurement.batch_size * 1e9 / mean_ns,
        ratio=_ratio(measurement),
    )


def figures_of(run: Run) -> dict[tuple[str, int], Figures]:
    """Return the figures of everything that a run measured, by variant and batch size."""
    concurrency = run.workload.settings["load.concurrency"]
    cells = {
        (m.variant, m.batch_size): figures(m, concurrency=concurrency)
        for m in (r.measurement for r in run.results)
    }
    return {place: cell for place, cell in cells.items() if cell is not None}


def variants_of(run: Run) -> list[str]:
    """Return a run's variants as measured, the one that the others are divided by first."""
    variants = dict.fromkeys(r.measurement.variant for r in run.results)
    return in_order(variants, reference_of_run(run))


def reference_of_run(run: Run) -> str:
    """Return the variant that the others of a run are divided by; empty where there is none."""
    return reference_variant(result.measurement for result in run.results)


def reference_variant(measured: Iterable[Measurement | Baseline]) -> str:
    """Return the variant that the others are divided by: the one that is compared with NumPy."""
    for m in measured:
        return split_row(m.variant if m.reference == NUMPY else m.reference)[0]
    return ""


def in_order(rows: Iterable[str], reference: str) -> list[str]:
    """Return rows as given, those with the suite's own keys first, in each the reference first."""
    return sorted(rows, key=lambda row: (split_row(row)[1] != "", split_row(row)[0] != reference))


def batch_sizes_of(run: Run) -> list[int]:
    """Return a run's batch sizes, increasing."""
    return sorted({r.measurement.batch_size for r in run.results})


def _ratio(measurement: Measurement) -> float:
    if measurement.reference == NUMPY:
        return 1.0
    return typical_ratio([[launch.ratio_p10 for launch in measurement.launches]])


def typical_ratio(sessions: Sequence[Sequence[float]]) -> float:
    """Return the geometric mean of ratios of launches, every session counting the same."""
    return geometric_mean(map(geometric_mean, sessions))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The quantity of a published table, of one variant and batch size, as published and here.

    `published` is in nanoseconds or samples per second. Ratios divide by the publication's own
    native variant; only they compare between machines. None where it was not published;
    `own_ratio` also where it was not measured.
    """

    published: float | None
    published_ratio: float | None
    own_ratio: float | None


def compared(
    table: PublishedTable,
    cells: Mapping[tuple[str, int], Figures],
    variant: str,
    batch_size: int,
) -> Comparison:
    """Return a published table beside the figures `cells` of a run."""
    published = table.values_of(variant).get(batch_size)
    native = table.values_of(table.native).get(batch_size)
    own, own_native = (
        _measured(table.quantity, cells.get((v, batch_size))) for v in (variant, table.native)
    )
    return Comparison(
        published=published,
        published_ratio=published / native if published and native else None,
        own_ratio=own / own_native if published and own and own_native else None,
    )


def _measured(quantity: str, cell: Figures | None) -> float | None:
    if cell is None:
        return None
    return {COMPUTE_INFER: cell.compute_infer_ns, THROUGHPUT: cell.samples_per_s}[quantity]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Where the mean latency of a request went, nanoseconds; `client_ns` is outside Triton."""

    client_ns: float
    queue_ns: float
    compute_input_ns: float
    compute_infer_ns: float
    compute_output_ns: float

    @property
    def total_ns(self) -> float:
        return (
            self.client_ns
            + self.queue_ns
            + self.compute_input_ns
            + self.compute_infer_ns
            + self.compute_output_ns
        )


def stages(measurement: Measurement) -> Stages | None:
    """Return the mean over the launches; None where no server counted.

    Requests that overlap in the server can add up to more than the client waited: the client's
    part is then 0.
    """
    counted = [(c.mean_ns, c.server) for c in measurement.launches if c.server is not None]
    if not counted:
        return None
    return Stages(
        client_ns=fmean(max(0, mean_ns - server.total_ns) for mean_ns, server in counted),
        queue_ns=fmean(server.queue_ns for _, server in counted),
        compute_input_ns=fmean(server.compute_input_ns for _, server in counted),
        compute_infer_ns=fmean(server.compute_infer_ns for _, server in counted),
        compute_output_ns=fmean(server.compute_output_ns for _, server in counted),
    )


def distribution(measurement: Measurement) -> tuple[float, ...]:
    """Return the latencies at `PERCENTILES`, nanoseconds, over all launches; empty without any."""
    latencies_ns = [ns for launch in measurement.launches for ns in launch.latencies_ns]
    return stats.percentiles_ns(latencies_ns, PERCENTILES) if latencies_ns else ()


@dataclass(frozen=True, kw_only=True)
class LaunchRatios:
    """Ratios of single launches, as changes (0.03 is 3% slower) from `center`.

    They are of the `statistic` that was judged. `center` is the baseline's typical ratio, or
    without a baseline (`stored` is empty) the run's own. `limit` is the verdict's, None where there
    is nothing to set it off from.
    """

    statistic: Statistic
    center: float
    own: tuple[float, ...]
    stored: tuple[float, ...]
    limit: float | None


def launch_ratios(result: Result, baseline: Baseline | None) -> LaunchRatios | None:
    """Return the launches of a result beside its baseline's; None when it has no launch."""
    launches = result.measurement.launches
    if not launches:
        return None
    statistic, (own, *sessions) = ratios_alike(
        [launches, *(run.launches for run in _runs_of(baseline))],
        Statistic(result.verdict.statistic),
    )
    center = typical_ratio(sessions or [own])
    return LaunchRatios(
        statistic=statistic,
        center=center,
        own=tuple(ratio / center - 1 for ratio in own),
        stored=tuple(ratio / center - 1 for session in sessions for ratio in session),
        limit=result.verdict.limit if sessions else None,
    )


@dataclass(frozen=True, kw_only=True)
class HistoryPoint:
    """One session of a benchmark; `change` is its ratio against the median of all shown.

    The `statistic` is what was judged of the newest, or p10 where not all have it.
    """

    run_id: str
    recorded_at: str
    commit: str | None
    statistic: Statistic
    ratio: float
    change: float
    stored: bool


@dataclass(frozen=True, kw_only=True)
class _Session:
    """What a history's point is made of."""

    run_id: str
    recorded_at: str
    commit: str | None
    launches: Sequence[LaunchLike]
    stored: bool


def history(
    run: Run, earlier: Iterable[Run], baselines: Mapping[str, Baseline]
) -> dict[str, tuple[HistoryPoint, ...]]:
    """Return the sessions of each of a run's benchmarks, oldest first, the run itself included.

    They come from the baselines (`stored`) and from those `earlier` runs that were measured on
    the same class of machine, with the same workload and reference.
    """
    alike = [other for other in (*earlier, run) if other.machine.cls == run.machine.cls]
    sessions: dict[str, dict[str, _Session]] = {}
    measured_as: dict[str, tuple[str, Workload]] = {}
    for result in run.results:
        name = result.measurement.benchmark
        measured_as[name] = result.measurement.reference, run.workload_of(result)
        sessions[name] = {
            session.run_id: _Session(
                run_id=session.run_id,
                recorded_at=session.recorded_at,
                commit=session.under_test.get("commit"),
                launches=session.launches,
                stored=True,
            )
            for session in _runs_of(baselines.get(name))
        }
    for other in alike:
        for result in other.results:
            m = result.measurement
            known = sessions.get(m.benchmark)
            if known is None or not m.launches:
                continue
            if (m.reference, other.workload_of(result)) != measured_as[m.benchmark]:
                continue
            known.setdefault(
                other.run_id,
                _Session(
                    run_id=other.run_id,
                    recorded_at=other.recorded_at,
                    commit=other.under_test.get("commit"),
                    launches=m.launches,
                    stored=False,
                ),
            )
    judged = {r.measurement.benchmark: Statistic(r.verdict.statistic) for r in run.results}
    return {name: _points(of.values(), judged[name]) for name, of in sessions.items() if of}


def _points(sessions: Iterable[_Session], judged: Statistic) -> tuple[HistoryPoint, ...]:
    ordered = sorted(sessions, key=lambda session: (session.recorded_at, session.run_id))
    statistic, ratios = ratios_alike([session.launches for session in ordered], judged)
    typical = [typical_ratio([of_session]) for of_session in ratios]
    center = median(typical)
    return tuple(
        HistoryPoint(
            run_id=session.run_id,
            recorded_at=session.recorded_at,
            commit=session.commit,
            statistic=statistic,
            ratio=ratio,
            change=ratio / center - 1,
            stored=session.stored,
        )
        for session, ratio in zip(ordered, typical, strict=True)
    )


def _runs_of(baseline: Baseline | None) -> Sequence[BaselineRun]:
    return baseline.runs if baseline else ()
