"""What a profile says: plain figures, in nanoseconds, keys and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from hpsbench import stats


@dataclass(frozen=True, kw_only=True)
class CallTimes:
    """How long `n` calls took, in whole nanoseconds."""

    n: int
    min_ns: int
    mean_ns: int
    median_ns: int
    p95_ns: int
    p99_ns: int


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """One stage: its calls, and what all threads got through in a second of its own.

    `bytes_per_s` are of rows. `of_peer` is its median to that of the peer; None for the peer, and
    for a tier, which is asked for less: each key of a batch once.
    """

    name: str
    meaning: str
    calls: CallTimes
    keys_per_s: float
    bytes_per_s: float
    of_peer: float | None = None


@dataclass(frozen=True, kw_only=True)
class TierResult:
    """What one tier of one table was asked for end to end, and how much of it was there.

    `hit_rate` is None where it was not asked. `ns_per_key` is what threads spent in it, None where
    that is not counted.
    """

    table: str
    tier: str
    keys: int
    hits: int
    hit_rate: float | None
    ns_per_key: float | None = None


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """One of the tables that were asked."""

    name: str
    num_keys: int
    embedding_dim: int
    index_kind: str
    index_bytes: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A profile of one model's tables, `batch_size` x `hotness` keys of each in every call."""

    recorded_at: str
    machine: str
    configuration: str
    model: str
    tables: tuple[TableResult, ...]
    key_stream: str
    batch_size: int
    hotness: int
    threads: int
    iterations: int
    warm_up: int
    seed: int
    peer: str
    stages: tuple[StageResult, ...]
    tiers: tuple[TierResult, ...]
    remarks: tuple[str, ...] = ()


def call_times(times_ns: npt.NDArray[Any]) -> CallTimes:
    """Return what int64[n] times say; raises ValueError where there is none."""
    summary = stats.summarize(times_ns)
    return CallTimes(
        n=summary.n,
        min_ns=summary.min_ns,
        mean_ns=summary.mean_ns,
        median_ns=summary.p50_ns,
        p95_ns=stats.percentile_ns(times_ns, 95),
        p99_ns=summary.p99_ns,
    )
