"""Triton's per-model statistics, as counters that can be subtracted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hpsbench.errors import ServerError
from hpsbench.servers import http

#: The metric by which our models tell what runs them.
ENGINE_METRIC = "hpsbench_engine"
#: The metric by which they tell where their time goes, where asked to (`servers.stage_times`).
STAGE_METRIC = "hpsbench_stage_ns"
_ENGINE = re.compile(rf'{ENGINE_METRIC}\{{(?=.*model="([^"]*)").*engine="([^"]*)"')
_STAGE = re.compile(rf'{STAGE_METRIC}\{{(?=.*model="([^"]*)").*stage="([^"]*)"')

#: The metrics by which our models tell what their lookups asked of each tier, and had there.
LOOKUP_KEYS_METRIC, LOOKUP_HITS_METRIC = "hpsbench_lookup_keys", "hpsbench_lookup_hits"
_LOOKUP = re.compile(
    rf'({LOOKUP_KEYS_METRIC}|{LOOKUP_HITS_METRIC})\{{(?=.*model="([^"]*)").*tier="([^"]*)"'
)


@dataclass(frozen=True, kw_only=True)
class LookupCount:
    """Keys asked of one tier of a parameter server since it was loaded, and those it had."""

    keys: int = 0
    hits: int = 0

    def __sub__(self, earlier: LookupCount) -> LookupCount:
        return LookupCount(keys=self.keys - earlier.keys, hits=self.hits - earlier.hits)

    def __add__(self, other: LookupCount) -> LookupCount:
        return LookupCount(keys=self.keys + other.keys, hits=self.hits + other.hits)


@dataclass(frozen=True, kw_only=True)
class ModelStatistics:
    """Cumulative counters of one model since the server started; times are total nanoseconds.

    `compute_infer_ns` and its siblings have Triton's meaning: per *request*, summed.
    Subtract an earlier reading from a later one to get an interval.
    """

    success_count: int
    fail_count: int
    execution_count: int
    inference_count: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int

    def __sub__(self, earlier: ModelStatistics) -> ModelStatistics:
        names = self.__dataclass_fields__
        return ModelStatistics(**{n: getattr(self, n) - getattr(earlier, n) for n in names})

    def __add__(self, other: ModelStatistics) -> ModelStatistics:
        names = self.__dataclass_fields__
        return ModelStatistics(**{n: getattr(self, n) + getattr(other, n) for n in names})


def read_statistics(http_address: str, model: str) -> ModelStatistics:
    """Return the counters of a model, its versions added up, from Triton at `host:port`.

    Successful requests alone count in the times. Triton counts a request some time after it has
    answered it, so a reading may lag behind the answers by some milliseconds. Raises ServerError
    when Triton gives no answer or has no such model.
    """
    status, body = http.ask(http_address, f"/v2/models/{quote(model, safe='')}/stats")
    if status != 200:
        raise ServerError(
            f"triton at {http_address} has no statistics of model {model!r}: {http.reason(body)}",
            hint="load the model first, under exactly this name",
        )
    return parse_statistics(json.loads(body))


def parse_statistics(answer: Mapping[str, Any]) -> ModelStatistics:
    """Return the counters in the JSON object of Triton's statistics extension."""
    total = ModelStatistics(**dict.fromkeys(ModelStatistics.__dataclass_fields__, 0))
    for version in answer["model_stats"]:
        stages = version["inference_stats"]
        total += ModelStatistics(
            success_count=stages["success"].get("count", 0),
            fail_count=stages["fail"].get("count", 0),
            execution_count=version.get("execution_count", 0),
            inference_count=version.get("inference_count", 0),
            queue_ns=stages["queue"].get("ns", 0),
            compute_input_ns=stages["compute_input"].get("ns", 0),
            compute_infer_ns=stages["compute_infer"].get("ns", 0),
            compute_output_ns=stages["compute_output"].get("ns", 0),
        )
    return total


def read_metrics(metrics_address: str) -> dict[str, float]:
    """Return the server's metrics by name and labels, as `nv_gpu_utilization{gpu_uuid="GPU-1"}`.

    Among them `nv_cpu_utilization` (0 to 1), `nv_cpu_memory_used_bytes` and, with a GPU,
    `nv_gpu_utilization` and `nv_gpu_memory_used_bytes`. Raises ServerError without an answer.
    """
    status, body = http.ask(metrics_address, "/metrics")
    if status != 200:
        raise ServerError(
            f"no metrics at {metrics_address}: HTTP status {status}",
            hint="start triton with --allow-metrics=true",
        )
    return parse_metrics(body.decode())


def engines(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return what runs each model, by its name, of those that tell."""
    found = (_ENGINE.match(name) for name in metrics)
    return {match[1]: match[2] for match in found if match}


def stage_ns(metrics: Mapping[str, float], model: str) -> dict[str, float]:
    """Return the nanoseconds that requests spent in each stage of a model, summed; in no order."""
    found = {_STAGE.match(name): value for name, value in metrics.items()}
    return {match[2]: value for match, value in found.items() if match and match[1] == model}


def parse_metrics(text: str) -> dict[str, float]:
    """Return the samples of a Prometheus text exposition, comments left out."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    # Label values may hold blanks; the number is what follows the last one.
    samples = (line.rpartition(" ") for line in lines)
    return {name: float(value) for name, _, value in samples}


def lookup_counts(metrics: Mapping[str, float]) -> dict[str, dict[str, LookupCount]]:
    """Return what each model's lookups counted, by model and tier, its tables added up."""
    found: dict[str, dict[str, LookupCount]] = {}
    for name, value in metrics.items():
        told = _LOOKUP.match(name)
        if told is not None:
            kind, model, tier = told.groups()
            tiers = found.setdefault(model, {})
            field = "keys" if kind == LOOKUP_KEYS_METRIC else "hits"
            tiers[tier] = tiers.get(tier, LookupCount()) + LookupCount(**{field: int(value)})
    return found
