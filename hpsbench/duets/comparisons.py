"""Stored results of `hpsbench compare`: `<folder>/<UTC timestamp>-<short id>.json`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from hpsbench import stats, storage
from hpsbench.duets.decision import DuetPolicy, DuetSession
from hpsbench.errors import BaselineError
from hpsbench.runs import FOLDER as RUNS
from hpsbench.verdict import Verdict

SCHEMA_VERSION = 1
FOLDER = RUNS.parent / "comparisons"


@dataclass(frozen=True, kw_only=True)
class ComparedLaunch:
    """One fresh pair of servers: the candidate's percentiles over the baseline's, and both p10."""

    session: int
    ratio_p10: float
    ratio_p50: float
    baseline_p10_ns: int
    candidate_p10_ns: int


@dataclass(frozen=True, kw_only=True)
class StoredComparison:
    """One duet: what was compared, every launch, and the verdict; sides as the user named them.

    `answers` is what was found of both sides' answers, None where they were not compared.
    """

    comparison_id: str
    recorded_at: str
    machine: str
    model: str
    baseline: str
    candidate: str
    policy: DuetPolicy
    launches: tuple[ComparedLaunch, ...]
    verdict: Verdict
    answers: str | None = None


def compared_launches(sessions: list[DuetSession]) -> tuple[ComparedLaunch, ...]:
    """Return the launches of one or two sessions in order."""
    return tuple(
        ComparedLaunch(
            session=number,
            ratio_p10=round(launch.ratio(10), 6),
            ratio_p50=round(launch.ratio(50), 6),
            baseline_p10_ns=stats.percentile_ns(launch.baseline_ns, 10),
            candidate_p10_ns=stats.percentile_ns(launch.candidate_ns, 10),
        )
        for number, session in enumerate(sessions, start=1)
        for launch in session.launches
    )


def new_id() -> tuple[str, str]:
    """Return a new comparison's id, and the time that it holds, ISO 8601 in UTC."""
    now = datetime.now(timezone.utc)
    stamp = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z"
    return f"{stamp}-{secrets.token_hex(3)}", f"{now:%Y-%m-%dT%H:%M:%SZ}"


def save(folder: Path, comparison: StoredComparison) -> Path:
    """Store a comparison and return its file. Raises BaselineError when it cannot be written."""
    path = folder / f"{comparison.comparison_id}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_atomically(folder / ".gitignore", "*\n")
        storage.write_atomically(path, storage.encode(comparison, schema_version=SCHEMA_VERSION))
    except OSError as error:
        raise BaselineError(
            f"cannot store the comparison in {path}: {error.strerror or error}",
            hint="make that folder writable",
        ) from error
    return path


def newest(folder: Path, machine: str, most: int) -> list[StoredComparison]:
    """Return the newest comparisons of a class of machine, newest first.

    A file that cannot be read is left out.
    """
    return storage.newest(StoredComparison, folder, machine, most, schema_version=SCHEMA_VERSION)
