"""What a report is made of: a run, and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpsbench import baselines, load_results, published, runs
from hpsbench.baselines import Baseline
from hpsbench.duets import comparisons, selftests
from hpsbench.duets.comparisons import StoredComparison
from hpsbench.duets.resolution import SelfTest
from hpsbench.errors import BaselineError
from hpsbench.load_results import LoadResult
from hpsbench.published import Publication
from hpsbench.runs import Run

#: Runs that a history reaches back; a run's file holds every latency and takes its time to read.
MOST_EARLIER = 30
MOST_COMPARISONS = 6


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A run, the baselines of its benchmarks without itself, publications, and earlier runs.

    `comparisons`, `selftests` and `loads` are what else was measured on this class of machine.
    """

    run: Run
    baselines: Mapping[str, Baseline]
    publications: Sequence[Publication]
    earlier: Sequence[Run]
    comparisons: Sequence[StoredComparison] = ()
    selftests: Sequence[SelfTest] = ()
    loads: Sequence[LoadResult] = ()


def gather(
    run: Run, *, baselines_folder: Path, earlier: Sequence[Run], beside: Path | None = None
) -> Contents:
    """Return the contents of a run's report; `beside` is the folder of comparisons and self-tests.

    Raises BaselineError for a baseline or a publication that cannot be read.
    """
    return Contents(
        run=run,
        baselines=_beside(run, baselines.load(baselines_folder, run.machine.cls).here),
        publications=published.load(baselines_folder),
        earlier=earlier,
        comparisons=() if beside is None else _comparisons(beside, run.machine.cls),
        selftests=() if beside is None else _selftests(beside, run.machine.cls),
        loads=() if beside is None else _loads(beside, run.machine.cls),
    )


def _loads(beside: Path, machine: str) -> list[LoadResult]:
    return load_results.newest(beside / load_results.FOLDER.name, machine, MOST_COMPARISONS)


def _comparisons(beside: Path, machine: str) -> list[StoredComparison]:
    return comparisons.newest(beside / comparisons.FOLDER.name, machine, MOST_COMPARISONS)


def _selftests(beside: Path, machine: str) -> list[SelfTest]:
    files = (beside / selftests.FILE.name, beside / selftests.NOISY_FILE.name)
    found = (selftests.stored(machine, file) for file in files)
    return [selftest for selftest in found if selftest is not None]


def earlier_runs(folder: Path, run: Run) -> list[Run]:
    """Return the newest `MOST_EARLIER` runs in a folder that are older than `run`, oldest first.

    A file that cannot be read is left out: it must not cost the report of another run.
    """
    found = []
    older = [p for p in sorted(folder.glob("*.json")) if p.stem < run.run_id]
    for path in older[-MOST_EARLIER:]:
        try:
            found.append(runs.load(path))
        except BaselineError:
            continue
    return found


def _beside(run: Run, stored: Mapping[str, Baseline]) -> dict[str, Baseline]:
    measured_as = {
        r.measurement.benchmark: (run.workload_of(r), r.measurement.reference) for r in run.results
    }
    found = {}
    for name, baseline in stored.items():
        alike = (baseline.workload, baseline.reference) == measured_as.get(name)
        others = tuple(r for r in baseline.runs if r.run_id != run.run_id)
        if alike and others:
            found[name] = Baseline(**{**vars(baseline), "runs": others})
    return found
