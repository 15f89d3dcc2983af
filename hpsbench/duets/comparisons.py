"""Stored results of `hpsbench compare`: `<folder>/<UTC timestamp>-<short id>.json`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hpsbench import stats, storage
from hpsbench.duets.decision import DuetPolicy
from hpsbench.duets.launches import DuetSession
from hpsbench.errors import BaselineError
from hpsbench.ratios import Statistic
from hpsbench.runs import FOLDER as RUNS
from hpsbench.verdict import Verdict

#: The first held the one benchmark's fields as its own; the second judged p10 alone.
SCHEMA_VERSION = 3
FOLDER = RUNS.parent / "comparisons"


@dataclass(frozen=True, kw_only=True)
class ComparedLaunch:
    """One fresh pair of servers: the candidate over the baseline, and both p10.

    `ratio_pairs` is None where an older hpsbench did not store it.
    """

    session: int
    ratio_p10: float
    ratio_pairs: float | None = None
    ratio_p50: float
    baseline_p10_ns: int
    candidate_p10_ns: int


@dataclass(frozen=True, kw_only=True)
class ComparedBenchmark:
    """One benchmark of a comparison: every launch, and the verdict, which has its name.

    `answers` is what was found of both sides' answers, None where they were not compared.
    `measure_s` is the seconds that asking took, and like `batch_size` None where an older hpsbench
    did not store it.
    """

    model: str
    batch_size: int | None = None
    launches: tuple[ComparedLaunch, ...]
    verdict: Verdict
    answers: str | None = None
    measure_s: float | None = None

    @property
    def name(self) -> str:
        """What the verdict calls it."""
        return self.verdict.benchmark


@dataclass(frozen=True, kw_only=True)
class StoredComparison:
    """What was compared, sides as the user named them, and every benchmark, worst first.

    Raises ValueError without a benchmark.
    """

    comparison_id: str
    recorded_at: str
    machine: str
    baseline: str
    candidate: str
    policy: DuetPolicy
    benchmarks: tuple[ComparedBenchmark, ...]

    def __post_init__(self) -> None:
        if not self.benchmarks:
            raise ValueError("a comparison needs a benchmark")

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts of all benchmarks."""
        return [compared.verdict for compared in self.benchmarks]

    @property
    def title(self) -> str:
        """The benchmark's name, or how many there are."""
        count = len(self.benchmarks)
        return self.benchmarks[0].name if count == 1 else f"{count} benchmarks"


def compared_launches(sessions: Sequence[DuetSession]) -> tuple[ComparedLaunch, ...]:
    """Return the launches of one or two sessions in order."""
    return tuple(
        ComparedLaunch(
            session=number,
            ratio_p10=round(launch.ratio(Statistic.P10), 6),
            ratio_pairs=round(launch.ratio(Statistic.PAIRS), 6),
            ratio_p50=round(launch.ratio(Statistic.P50), 6),
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


def load(path: Path) -> StoredComparison:
    """Return the comparison in a file, of older versions too; raises BaselineError."""
    return storage.read(
        StoredComparison,
        path,
        schema_version=SCHEMA_VERSION,
        restore="compare again",
        upgraded=_upgraded,
    )


def _upgraded(fields: dict[str, Any], version: int) -> dict[str, Any]:
    if version > 2:
        return fields
    if isinstance(policy := fields.get("policy"), dict) and "limit_p10" in policy:
        policy["limit"] = policy.pop("limit_p10")
    if version == 2:
        return fields
    of_benchmark = ("model", "launches", "verdict", "answers")
    alone = {name: fields.pop(name) for name in of_benchmark if name in fields}
    return {**fields, "benchmarks": [alone]}


def newest(folder: Path, machine: str, most: int) -> list[StoredComparison]:
    """Return the newest comparisons of a class of machine, newest first.

    A file that cannot be read is left out.
    """
    return storage.newest(load, folder, machine, most)
