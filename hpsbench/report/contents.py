"""What a report is made of: a run, and what stands beside it."""

from __future__ import annotations

import dataclasses
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
from hpsbench.verdict import Verdict

#: Runs that a history reaches back; a run's file holds every latency and takes its time to read.
MOST_EARLIER = 30
MOST_COMPARISONS = 6

#: What is left to do about a verdict whose run was stored as the baseline after it.
ACCEPTED_HINT = "accepted since: `hpsbench baseline update` stored this run as the baseline"


@dataclass(frozen=True, kw_only=True)
class Apart:
    """What was measured on a class of machine by commands, without a session's run."""

    comparisons: Sequence[StoredComparison] = ()
    selftests: Sequence[SelfTest] = ()
    loads: Sequence[LoadResult] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing of it was measured."""
        return not (self.comparisons or self.selftests or self.loads)


@dataclass(frozen=True, kw_only=True)
class Contents(Apart):
    """A run, the baselines of its benchmarks without itself, publications, and earlier runs.

    `accepted` are the benchmarks whose baseline the run became after it was judged. What else is
    in it was measured apart from the run, on its class of machine.
    """

    run: Run
    baselines: Mapping[str, Baseline]
    publications: Sequence[Publication]
    earlier: Sequence[Run]
    accepted: frozenset[str] = frozenset()

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The run's verdicts as they were given; of what was accepted since, the hint says so."""
        return tuple(
            dataclasses.replace(verdict, hint=ACCEPTED_HINT)
            if verdict.benchmark in self.accepted
            else verdict
            for verdict in self.run.verdicts
        )


def gather(
    run: Run, *, baselines_folder: Path, earlier: Sequence[Run], beside: Path | None = None
) -> Contents:
    """Return the contents of a run's report; `beside` is the folder of comparisons and self-tests.

    Raises BaselineError for a baseline or a publication that cannot be read.
    """
    apart = Apart() if beside is None else gather_apart(run.machine.cls, beside)
    stored = baselines.load(baselines_folder, run.machine.cls).here
    return Contents(
        run=run,
        baselines=_beside(run, stored),
        accepted=frozenset(
            name for name, b in stored.items() if run.run_id in (r.run_id for r in b.runs)
        ),
        publications=published.load(baselines_folder),
        earlier=earlier,
        **vars(apart),
    )


def gather_apart(machine: str, beside: Path) -> Apart:
    """Return what commands have stored below a folder for a class of machine."""
    return Apart(
        comparisons=comparisons.newest(beside / comparisons.FOLDER.name, machine, MOST_COMPARISONS),
        selftests=_selftests(beside, machine),
        loads=load_results.newest(beside / load_results.FOLDER.name, machine, MOST_COMPARISONS),
    )


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
