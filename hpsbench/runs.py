"""The stored result of one session: `<folder>/<UTC timestamp>-<short id>.json`."""

from __future__ import annotations

import glob
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from hpsbench import storage
from hpsbench.baselines import Baseline, BaselineLaunch, BaselineRun
from hpsbench.config import Suite
from hpsbench.errors import BaselineError
from hpsbench.load_curve import LoadCurve
from hpsbench.machine import Machine
from hpsbench.measurements import Measurement
from hpsbench.verdict import Verdict
from hpsbench.workload import Workload, subject_settings, workload_of

#: 2 added `stages`, 3 `ratio_pairs`; files without are read as before.
SCHEMA_VERSION = 3
FOLDER = Path(".hpsbench") / "runs"
#: Ends the name of a commit whose files were changed.
DIRTY = "-dirty"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one test measured, and the verdict on it; `test` is the pytest node.

    `workload` is its own where its keys are not those of the run's.
    """

    test: str
    measurement: Measurement
    verdict: Verdict
    workload: Workload | None = None


@dataclass(frozen=True, kw_only=True)
class LoadMeasurement:
    """What one test measured under open-loop load, which no baseline judges."""

    test: str
    benchmark: str
    variant: str
    batch_size: int
    curve: LoadCurve


@dataclass(frozen=True, kw_only=True)
class Run:
    """One session. `under_test` names the versions and settings that produced the figures.

    `resumed` is when the interrupted session began that this one went on with, None of a whole one.
    """

    run_id: str
    recorded_at: str
    preset: str
    workload: Workload
    machine: Machine
    under_test: Mapping[str, str]
    results: tuple[Result, ...] = ()
    vanished: tuple[Verdict, ...] = ()
    loads: tuple[LoadMeasurement, ...] = ()
    resumed: str | None = None

    def workload_of(self, result: Result) -> Workload:
        """Return what a result was measured with: the run's workload, unless it has its own."""
        return result.workload or self.workload

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return (*(r.verdict for r in self.results), *self.vanished)


def new_run(suite: Suite, machine: Machine, *, commit: str | None = None) -> Run:
    """Return a run that starts now and has measured nothing, at a commit where one is known."""
    now = datetime.now(timezone.utc)
    return Run(
        # Milliseconds, so that two runs of one second still sort by their time.
        run_id=f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z-{secrets.token_hex(3)}",
        recorded_at=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        preset=suite.preset,
        workload=workload_of(suite),
        machine=machine,
        under_test={
            **({} if commit is None else {"commit": commit}),
            **machine.versions,
            **subject_settings(suite),
        },
    )


def commit_of(folder: Path) -> str | None:
    """Return the commit checked out in `folder`, `-dirty` where files differ; None without git."""
    command = ["git", "describe", "--always", f"--dirty={DIRTY}", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def prepare(folder: Path) -> None:
    """Create the folder of runs, out of git's sight, and prove that it takes files.

    Raises BaselineError if it does not: better before a run is measured than after.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_atomically(folder / ".gitignore", "*\n")
    except OSError as error:
        raise BaselineError(
            f"cannot store runs in {folder}: {error.strerror or error}",
            hint="make that folder writable",
        ) from error


def save(folder: Path, run: Run) -> Path:
    """Store a run and return its file. Raises BaselineError when it cannot be written."""
    prepare(folder)
    path = folder / f"{run.run_id}.json"
    try:
        storage.write_atomically(
            path, storage.encode(run, schema_version=SCHEMA_VERSION, indent=None)
        )
    except OSError as error:
        raise BaselineError(
            f"cannot store the run in {path}: {error.strerror or error}",
            hint="make room there, and measure again",
        ) from error
    return path


def load(path: Path) -> Run:
    """Return the run in `path`. Raises BaselineError (see `storage.read`)."""
    hint = "measure again; a run file is written by a benchmark session"
    return storage.read(Run, path, schema_version=SCHEMA_VERSION, restore=hint)


def latest(folder: Path) -> Path:
    """Return the newest run's file. Raises BaselineError when there is none."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise BaselineError(
            f"no runs in {folder}", hint="measure first, for example with `tox run -e bench`"
        )
    return paths[-1]


def find(folder: Path, name: str) -> Path:
    """Return the run's file that `name` is the path of, or the one in `folder` it is a prefix of.

    Raises BaselineError unless there is exactly one.
    """
    if Path(name).is_file():
        return Path(name)
    found = sorted(folder.glob(f"{glob.escape(name)}*.json"))
    if len(found) == 1:
        return found[0]
    if found:
        problem = f"{len(found)} runs in {folder} begin with {name}"
    else:
        problem = f"no run {name} in {folder}"
    raise BaselineError(problem, hint=f"give a file, or more of its name: see `ls {folder}`")


def baselines_of(run: Run) -> list[Baseline]:
    """Return what a run would store as baselines; invalid measurements are left out."""
    return [_baseline(run, r) for r in run.results if _counts(r.measurement)]


def _counts(measurement: Measurement) -> bool:
    return measurement.invalid is None and bool(measurement.launches)


def _baseline(run: Run, result: Result) -> Baseline:
    m = result.measurement
    launches = tuple(
        BaselineLaunch(
            p10_ns=launch.p10_ns,
            p50_ns=launch.p50_ns,
            ratio_p10=round(launch.ratio_p10, 6),
            ratio_p50=round(launch.ratio_p50, 6),
            ratio_pairs=launch.ratio_pairs,
        )
        for launch in m.launches
    )
    stored = BaselineRun(
        run_id=run.run_id,
        recorded_at=run.recorded_at,
        under_test={**run.under_test, **m.under_test},
        fingerprint=run.machine.fingerprint,
        interleaved_with=m.interleaved_with,
        launches=launches,
        stages=m.stages,
        hit_rates={tier: round(rate, 6) for tier, rate in m.hit_rates.items()},
    )
    return Baseline(
        benchmark=m.benchmark,
        preset=run.preset,
        variant=m.variant,
        batch_size=m.batch_size,
        test=result.test,
        machine=run.machine.cls,
        reference=m.reference,
        workload=run.workload_of(result),
        runs=(stored,),
    )


def combined(runs: Sequence[Run]) -> list[Baseline]:
    """Return the baselines of several runs, those of one benchmark joined, oldest run first.

    Raises BaselineError when two runs measured a benchmark in different ways.
    """
    joined: dict[tuple[str, str], Baseline] = {}
    for baseline in (b for run in runs for b in baselines_of(run)):
        key = (baseline.machine, baseline.benchmark)
        first = joined.setdefault(key, baseline)
        if first is baseline:
            continue
        if (first.workload, first.reference) != (baseline.workload, baseline.reference):
            raise BaselineError(
                f"the runs measured {baseline.benchmark} with different workloads",
                hint="give runs of one workload at a time",
            )
        joined[key] = Baseline(**{**vars(first), "runs": first.runs + baseline.runs})
    return list(joined.values())
