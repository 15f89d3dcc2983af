"""What each tier answered: differences of the parameter server's own counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpsbench.profiling.result import TierResult

Counters = Mapping[tuple[str, ...], int]


def flat_counters(statistics: Mapping[Any, Any]) -> dict[tuple[str, ...], int]:
    """Return the whole numbers of nested `statistics` by their path, such as (table, "keys")."""
    found: dict[tuple[str, ...], int] = {}
    for name, value in statistics.items():
        if isinstance(value, Mapping):
            found |= {(str(name), *path): n for path, n in flat_counters(value).items()}
        elif isinstance(value, int):
            found[(str(name),)] = value
    return found


def tier_results(counted: Counters, tables: Sequence[str]) -> tuple[TierResult, ...]:
    """Return what every tier of `tables` was asked and had, from the top, by what was counted."""
    results = []
    for table in tables:
        of_table = {path[1:]: value for path, value in counted.items() if path[0] == table}
        gpus = sorted({path[1] for path in of_table if path[0] == "gpu_caches"}, key=int)
        for gpu in gpus:
            asked, hits = (of_table["gpu_caches", gpu, name] for name in ("keys", "hits"))
            results.append(_tier(table, f"GPU {gpu} cache", asked, hits))
            unique, found = (
                of_table["gpu_caches", gpu, name] for name in ("unique_keys", "unique_hits")
            )
            if unique:
                results.append(_tier(table, f"GPU {gpu} cache, unique keys", unique, found))
        for tier in [path[1] for path in of_table if path[0] == "tiers" and path[2] == "keys"]:
            keys, hits, ns = (of_table["tiers", tier, name] for name in ("keys", "hits", "ns"))
            results.append(_tier(table, tier, keys, hits, ns))
    return tuple(results)


def _tier(table: str, tier: str, keys: int, hits: int, ns: int | None = None) -> TierResult:
    return TierResult(
        table=table,
        tier=tier,
        keys=keys,
        hits=hits,
        hit_rate=hits / keys if keys else None,
        ns_per_key=None if ns is None or not keys else ns / keys,
    )
