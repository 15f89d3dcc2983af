"""Stored baselines: `<folder>/<machine class>/<benchmark id>.json`, pinned until updated by hand.

A baseline holds runs, and a run holds launches: ratios to the reference that ran interleaved in
the same session, which carry over between sessions where milliseconds do not.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import filelock

from hpsbench import storage
from hpsbench.errors import BaselineError
from hpsbench.stages import StageProfile
from hpsbench.workload import Workload

#: Runs begun closer to each other than this met the machine in one state.
SAME_OCCASION = timedelta(hours=1)
#: 2 added `stages`, 3 `hit_rates`, 4 `ratio_pairs`; files without are read as before.
SCHEMA_VERSION = 4
RESTORE_HINT = "restore the file from git, or delete it and run `hpsbench baseline update`"
LOCK_NAME = ".lock"
#: Holds what others published (`hpsbench.published`), and is no class of machine.
PUBLISHED_FOLDER = "published"
STAGING_PREFIX = ".staging-"


@dataclass(frozen=True, kw_only=True)
class BaselineLaunch:
    """One launch: client latency in nanoseconds, and as a ratio to the in-session reference.

    `ratio_pairs` is None in what was stored before it was measured.
    """

    p10_ns: int
    p50_ns: int
    ratio_p10: float
    ratio_p50: float
    ratio_pairs: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, and must be positive")


@dataclass(frozen=True, kw_only=True)
class BaselineRun:
    """One session; `under_test` names the versions and settings that produced the figures.

    `interleaved_with` are the participants that were asked in turn with the benchmark's variant,
    and `stages` the mean of the launches' traced requests, None where they were not traced.
    `hit_rates` are means too, hits over keys of each tier that was asked.
    """

    run_id: str
    recorded_at: str
    under_test: Mapping[str, str]
    fingerprint: Mapping[str, str]
    interleaved_with: tuple[str, ...]
    launches: tuple[BaselineLaunch, ...]
    stages: StageProfile | None = None
    hit_rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.launches:
            raise ValueError("a run without launches")
        _time(self.recorded_at)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What one benchmark took on one class of machine, measured by the pytest node `test`."""

    benchmark: str
    preset: str
    variant: str
    batch_size: int
    test: str
    machine: str
    reference: str
    workload: Workload
    runs: tuple[BaselineRun, ...]

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("a baseline without runs")

    @property
    def num_launches(self) -> int:
        return sum(len(run.launches) for run in self.runs)

    @property
    def occasions(self) -> list[list[BaselineRun]]:
        """The runs by when they were measured, those of `SAME_OCCASION` together, oldest first.

        A machine's neighbours, clock and temperature change over hours, not between one run and the
        next: many in a row tell no more of it than one.
        """
        occasions: list[list[BaselineRun]] = []
        for run in sorted(self.runs, key=lambda run: run.recorded_at):
            last = occasions[-1][-1].recorded_at if occasions else None
            if last and _time(run.recorded_at) - _time(last) < SAME_OCCASION:
                occasions[-1].append(run)
            else:
                occasions.append([run])
        return occasions

    @property
    def recorded_at(self) -> str:
        """When the newest run began, ISO 8601 in UTC."""
        return max(run.recorded_at for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What is stored for `machine`, and which benchmarks are stored for other machines alone."""

    machine: str
    here: Mapping[str, Baseline]
    elsewhere: Mapping[str, tuple[str, ...]]


def load(folder: Path, machine: str) -> Baselines:
    """Return every baseline of a machine class; a missing folder holds none.

    Raises BaselineError for a file that cannot be read or understood.
    """
    here = {b.benchmark: b for b in map(load_one, _files(folder / machine))}
    elsewhere: dict[str, tuple[str, ...]] = {}
    for other in sorted(p for p in _children(folder) if p.is_dir() and not p.name.startswith(".")):
        if other.name not in (machine, PUBLISHED_FOLDER):
            for path in _files(other):
                elsewhere[path.stem] = (*elsewhere.get(path.stem, ()), other.name)
    return Baselines(
        machine=machine,
        here=here,
        elsewhere={k: v for k, v in elsewhere.items() if k not in here},
    )


def load_every(folder: Path) -> list[Baseline]:
    """Return the baselines of every class of machine, by class and benchmark.

    Raises BaselineError for a file that cannot be read or understood.
    """
    classes = sorted(p for p in _children(folder) if p.is_dir() and not p.name.startswith("."))
    machines = [p for p in classes if p.name != PUBLISHED_FOLDER]
    return [load_one(path) for machine in machines for path in _files(machine)]


def load_one(path: Path) -> Baseline:
    """Return the baseline in `path`. Raises BaselineError (see `storage.read`)."""
    baseline = storage.read(Baseline, path, schema_version=SCHEMA_VERSION, restore=RESTORE_HINT)
    if baseline.benchmark != path.stem:
        raise BaselineError(
            f"{path} holds the baseline of {baseline.benchmark}", hint="name the file as its id"
        )
    return baseline


def path_of(folder: Path, baseline: Baseline) -> Path:
    """Return where a baseline is stored."""
    return folder / baseline.machine / f"{baseline.benchmark}.json"


def update(
    folder: Path, baselines: Sequence[Baseline], *, append: bool = False, lock_timeout_s: float = 10
) -> list[Path]:
    """Store baselines, replacing those of the same id, or with `append` adding their runs to them.

    Every file is written beside its place before the first is replaced, so that an interruption
    leaves each file old or new, and never half; what it leaves behind, the next update removes.
    Raises BaselineError when the folder cannot be written, another update holds the lock, or
    an appended run was measured otherwise than the stored ones.
    """
    with _locked(folder, lock_timeout_s), _explained(folder):
        for leftover in folder.glob(f"{STAGING_PREFIX}*"):
            shutil.rmtree(leftover)
        if append:
            baselines = [_appended(folder, b) for b in baselines]
        staging = folder / f"{STAGING_PREFIX}{secrets.token_hex(4)}"
        staging.mkdir()
        try:
            staged = [(_stage(staging, b), path_of(folder, b)) for b in baselines]
            for source, target in staged:
                target.parent.mkdir(exist_ok=True)
                os.replace(source, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return [target for _, target in staged]


def _appended(folder: Path, new: Baseline) -> Baseline:
    path = path_of(folder, new)
    if not path.exists():
        return new
    old = load_one(path)
    if (old.workload, old.reference) != (new.workload, new.reference):
        raise BaselineError(
            f"{path} was measured with another workload or reference",
            hint="replace it: `hpsbench baseline update` without --append",
        )
    known = {run.run_id for run in new.runs}
    kept = tuple(run for run in old.runs if run.run_id not in known)
    return Baseline(**{**vars(new), "runs": kept + new.runs})


def _stage(staging: Path, baseline: Baseline) -> Path:
    path = staging / f"{baseline.machine}--{baseline.benchmark}.json"
    storage.write_durably(path, storage.encode(baseline, schema_version=SCHEMA_VERSION))
    return path


@contextmanager
def _locked(folder: Path, timeout_s: float) -> Iterator[None]:
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK_NAME, timeout=timeout_s)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise BaselineError(
                f"{folder / LOCK_NAME} was still held after {timeout_s:g} s",
                hint="another update is running here; wait for it to end and try again",
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BaselineError(
            f"cannot write baselines in {folder}: {error.strerror or error}",
            hint="make the folder writable, or name another with --baselines DIR",
        ) from error


def _time(recorded_at: str) -> datetime:
    return datetime.strptime(recorded_at, "%Y-%m-%dT%H:%M:%SZ")


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in _children(folder) if p.suffix == ".json")


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BaselineError(
            f"cannot read baselines in {folder}: {error.strerror}",
            hint="name the folder of the baselines with --baselines DIR",
        ) from error
