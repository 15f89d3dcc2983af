"""A profile as text for a terminal: microseconds, million keys per second, hit rates."""

from __future__ import annotations

from collections.abc import Sequence

from hpsbench.profiling.result import Profile, StageResult, TierResult
from hpsbench.report.notation import DASH, ratio, significant

_NAME_WIDTH = 24
_TIMES = ("min", "mean", "median", "p95", "p99")


def lines(profile: Profile) -> list[str]:
    """Return what was asked, the times of each stage, their throughput, and the tiers."""
    stages = profile.stages
    return [
        *_asked(profile),
        "",
        *_table(("us", *_TIMES), [(stage.name, *_times(stage)) for stage in stages]),
        "",
        *_table(
            ("", "M keys/s", "rows GB/s", "to peer"),
            [(stage.name, *_throughput(stage)) for stage in stages],
        ),
        "",
        *_tiers(profile),
        "",
        *(f"{stage.name}: {stage.meaning}" for stage in profile.stages),
        *(f"note: {remark}" for remark in profile.remarks),
    ]


def _asked(profile: Profile) -> list[str]:
    threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}"
    return [
        f"model   {profile.model} of {profile.configuration}, on {profile.machine}",
        *(
            f"table   {table.name}: {table.num_keys:,} rows x {table.embedding_dim}, "
            f"{table.index_kind} index of {table.index_bytes:,} bytes"
            for table in profile.tables
        ),
        f"keys    {profile.key_stream}; seed {profile.seed}",
        f"calls   {profile.batch_size} x {profile.hotness} keys of each table; "
        f"{profile.iterations} on {threads}, after {profile.warm_up}",
    ]


def _times(stage: StageResult) -> list[str]:
    calls = stage.calls
    values = (calls.min_ns, calls.mean_ns, calls.median_ns, calls.p95_ns, calls.p99_ns)
    return [significant(value / 1e3) for value in values]


def _throughput(stage: StageResult) -> list[str]:
    return [
        significant(stage.keys_per_s / 1e6),
        significant(stage.bytes_per_s / 1e9),
        ratio(stage.of_peer),
    ]


def _tiers(profile: Profile) -> list[str]:
    several = len(profile.tables) > 1
    return _table(
        ("tiers, end to end", "keys", "hits", "hit rate", "ns/key"),
        [(_tier_name(tier, several), *_tier(tier)) for tier in profile.tiers],
        width=13,
    )


def _tier_name(tier: TierResult, several: bool) -> str:
    return f"{tier.table}: {tier.tier}" if several else tier.tier


def _tier(tier: TierResult) -> list[str]:
    rate = DASH if tier.hit_rate is None else f"{tier.hit_rate:.4f}"
    time = DASH if tier.ns_per_key is None else significant(tier.ns_per_key)
    return [f"{tier.keys:,}", f"{tier.hits:,}", rate, time]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int = 10) -> list[str]:
    name_width = max([_NAME_WIDTH, *(len(name) + 1 for name, *_ in rows)])
    return [
        f"{name:<{name_width}}" + "".join(f"{cell:>{width}}" for cell in cells)
        for name, *cells in (heads, *rows)
    ]
