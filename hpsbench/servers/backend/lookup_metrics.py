"""What a model's lookups asked of each tier and had there, told to clients as Triton's metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from hpsbench.servers.statistics import LOOKUP_HITS_METRIC, LOOKUP_KEYS_METRIC

#: Telling costs a request a fraction of a millisecond, so few of them pay.
INTERVAL_S = 0.5


class LookupMetrics:
    """`hpsbench_lookup_keys{model="hps_tf",table="t",tier="GPU 0 cache"} 3407872`, and hits.

    `statistics` returns each table's facts by its name, as `ModelTables.statistics` does.
    """

    def __init__(self, model: str, statistics: Callable[[], Mapping[str, Mapping[str, Any]]]):
        self._model, self._statistics = model, statistics
        self._families = {
            name: pb_utils.MetricFamily(
                name=name, description=description, kind=pb_utils.MetricFamily.GAUGE
            )
            for name, description in (
                (LOOKUP_KEYS_METRIC, "Keys that lookups asked of a tier since it was loaded"),
                (LOOKUP_HITS_METRIC, "Keys that a tier had"),
            )
        }
        self._metrics: dict[tuple[str, str, str], Any] = {}
        self._next_s = 0.0

    def update(self) -> None:
        """Tell the counters, unless that was done a moment ago; call it after each request."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + INTERVAL_S
        for table, facts in self._statistics().items():
            for tier, keys, hits in tier_counts(facts):
                self._set(LOOKUP_KEYS_METRIC, table, tier, keys)
                self._set(LOOKUP_HITS_METRIC, table, tier, hits)

    def _set(self, name: str, table: str, tier: str, value: int) -> None:
        place = name, table, tier
        if place not in self._metrics:
            labels = {"model": self._model, "table": table, "tier": tier}
            self._metrics[place] = self._families[name].Metric(labels=labels)
        self._metrics[place].set(value)


def tier_counts(facts: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield each tier of a table from the top: its name, keys asked of it, and keys it had."""
    for device, cache in sorted(facts.get("gpu_caches", {}).items()):
        yield f"GPU {device} cache", cache["keys"], cache["hits"]
    yield "host table", facts["keys"], facts["keys"] - facts["missing_keys"]
