"""What is asked of a variant: the part of a `Suite` that two runs must share to be comparable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpsbench.config import KEY_STREAMS, ServerConfig, Suite

DEFAULT_KEYS = "repeated"
#: Baselines name these whatever they are, and say nothing of settings that came later.
_ALWAYS_TOLD = ("servers.triton", "servers.tensor_float_32")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Flat settings, by the names that `--set` takes (`load.concurrency`)."""

    settings: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, equal exactly when the settings are."""
        canonical = json.dumps(self.settings, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def row_of(variant: str, keys: str) -> str:
    """Return what a variant is called where it is asked with these keys beside the suite's own.

    `hps_tf-zipf`; without `keys` the variant's own name.
    """
    return f"{variant}-{keys}" if keys else variant


def split_row(row: str) -> tuple[str, str]:
    """Return a row's variant, and its keys: empty where they are the suite's own."""
    variant, _, keys = row.rpartition("-")
    return (variant, keys) if keys in KEY_STREAMS else (row, "")


def workload_of(suite: Suite, keys: str = "") -> Workload:
    """Return tables, model and load of a suite, with other `keys` than its own where given.

    How long is measured is left out: it makes figures steadier, not different. Requests in a row
    make them different, for caches and processors are warm. Settings of the parameter server are
    left out too, for they are under test (`subject_settings`).
    """
    keys = keys or suite.load.keys
    settings: dict[str, Any] = {
        "load.keys": keys,
        "load.protocol": suite.load.protocol,
        "load.concurrency": suite.load.concurrency,
    }
    if suite.load.in_a_row > 1:
        settings["load.in_a_row"] = suite.load.in_a_row
    if keys == "zipf":
        settings["load.zipf_alpha"] = suite.load.zipf_alpha
    return Workload(
        settings=_flat("tables", suite.tables)
        | _flat(suite.model, getattr(suite, suite.model))
        | settings,
    )


def subject_settings(suite: Suite) -> dict[str, str]:
    """Return the settings whose change a verdict shall judge, as text: the server and its HPS.

    How long servers are waited for is left out. Those that are not in `_ALWAYS_TOLD` are told where
    they are not the default.
    """
    servers, default = _flat("servers", suite.servers), _flat("servers", ServerConfig())
    settings = _flat("hps", suite.hps) | {
        name: value
        for name, value in servers.items()
        if not name.endswith("_timeout_s") and (name in _ALWAYS_TOLD or value != default[name])
    }
    return {name: str(value) for name, value in settings.items()}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what differs, readable and sorted: `load.concurrency 1 -> 4`."""
    names = sorted(before.keys() | after.keys())
    pairs = [(n, before.get(n, "none"), after.get(n, "none")) for n in names]
    return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]


def benchmark_id(suite: Suite, variant: str, batch_size: int) -> str:
    """Return a benchmark's stable name: `laptop-hps_tf-b256`, or `laptop-zipf-hps_tf-b256`.

    With keys beside the suite's own, `variant` is a row: `laptop-hps_tf-zipf-b256`.
    """
    keys = "" if suite.load.keys == DEFAULT_KEYS else f"{suite.load.keys}-"
    return f"{suite.preset}-{keys}{variant}-b{batch_size}"


def _flat(section: str, values: Any) -> dict[str, Any]:
    # Tuples become lists, as they come back from JSON.
    pairs = dataclasses.asdict(values).items()
    return {f"{section}.{k}": list(v) if isinstance(v, tuple) else v for k, v in pairs}
