"""The JSON file of the parameter server: read strictly, into frozen dataclasses, and written.

The fields are those of `hierarchical_parameter_server`; `fields.py` says how one field is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hpsbench.errors import HpsError
from hpsbench.hps.fields import (
    LOG,
    Problem,
    at_least,
    check_rules,
    one_of,
    read_fields,
    required,
    within,
)

_NAME = re.compile(r"[A-Za-z0-9_-]{1,120}")
_CACHE_TYPES = ("dynamic", "static", "uvm")
_HASH_MAPS = ("hash_map", "parallel_hash_map", "multi_process_hash_map")
_OVERFLOW_POLICIES = ("evict_random", "evict_least_used", "evict_oldest")
_UINT64_MAX = 2**64 - 1
_MAX_PARTITIONS = 1 << 16
_REDIS_PORT = 6379


@dataclass(frozen=True, kw_only=True)
class ModelConfiguration:
    """One entry of `models`: its tables, and how they are cached on a GPU."""

    model: str
    sparse_files: tuple[str, ...]
    embedding_vecsize_per_table: tuple[int, ...]
    maxnum_catfeature_query_per_table_per_sample: tuple[int, ...]
    default_value_for_each_table: tuple[float, ...]
    deployed_device_list: tuple[int, ...]
    embedding_table_names: tuple[str, ...] = ()
    max_batch_size: int = at_least(1, 64)
    gpucache: bool = True
    gpucacheper: float = within(0.0, 1.0, 0.2)
    hit_rate_threshold: float = at_least(0.0, 0.9)
    num_of_worker_buffer_in_pool: int = at_least(1, 1)
    num_of_refresher_buffer_in_pool: int = at_least(0, 1)
    cache_refresh_percentage_per_iteration: float = within(0.0, 1.0, 0.0)
    thread_pool_size: int = at_least(1, 16)
    embedding_cache_type: str = one_of(_CACHE_TYPES, "dynamic")
    use_static_table: bool = False
    use_context_stream: bool = True
    init_ec: bool = True
    fuse_embedding_table: bool = True
    enable_pagelock: bool = False
    fp8_quant: bool = False
    refresh_delay: float = at_least(0.0, 0.0)
    refresh_interval: float = at_least(0.0, 0.0)
    maxnum_des_feature_per_sample: int = at_least(0, 26)
    dense_file: str = ""
    network_file: str = ""
    label_dim: int = at_least(0, 1)
    slot_num: int = at_least(0, 1)

    def __post_init__(self) -> None:
        check_rules(self)
        tables = len(self.sparse_files)
        if not _NAME.fullmatch(self.model):
            raise Problem("model", repr(self.model), "letters, digits, _ and -, 1 to 120 of them")
        if tables == 0:
            raise Problem("sparse_files", "an empty list", "one folder per table")
        for name in (
            "embedding_vecsize_per_table",
            "maxnum_catfeature_query_per_table_per_sample",
        ):
            values = getattr(self, name)
            if len(values) != tables or min(values) < 1:
                raise Problem(
                    name, list(values), f"{tables} positive numbers, one for each of sparse_files"
                )
        if not self.deployed_device_list or min(self.deployed_device_list) < 0:
            raise Problem(
                "deployed_device_list",
                list(self.deployed_device_list),
                "a list of device numbers from 0",
            )
        self._settle_defaults(tables)
        self._settle_names(tables)
        if self.use_static_table:
            object.__setattr__(self, "embedding_cache_type", "static")
        if self.fp8_quant and self.embedding_cache_type != "static":
            raise Problem("fp8_quant", "true", 'false unless embedding_cache_type is "static"')

    def _settle_defaults(self, tables: int) -> None:
        values = self.default_value_for_each_table
        if len(values) > tables:
            raise Problem(
                "default_value_for_each_table",
                list(values),
                f"{tables} numbers, one for each of sparse_files",
            )
        if len(values) < tables:
            LOG.warning(
                "model %s: default_value_for_each_table has %d values for %d tables; "
                "the others default to 0.0", self.model, len(values), tables,
            )  # fmt: skip
            padded = values + (0.0,) * (tables - len(values))
            object.__setattr__(self, "default_value_for_each_table", padded)

    def _settle_names(self, tables: int) -> None:
        names = self.embedding_table_names or tuple(f"sparse_embedding{i}" for i in range(tables))
        object.__setattr__(self, "embedding_table_names", names)
        if len(names) != tables:
            raise Problem(
                "embedding_table_names",
                list(names),
                f"{tables} names, one for each of sparse_files",
            )
        for name in names:
            if not _NAME.fullmatch(name):
                raise Problem(
                    "embedding_table_names",
                    list(names),
                    "names of letters, digits, _ and -, 1 to 120 of them",
                )
            if names.count(name) > 1:
                raise Problem("embedding_table_names", list(names), "names that differ")


@dataclass(frozen=True, kw_only=True)
class VolatileDatabase:
    """`volatile_db`: the host tier, our host tables or Redis.

    A hash map of any kind, without a limit, is the mapped tables themselves.
    """

    type: str
    num_partitions: int = within(1, _MAX_PARTITIONS, 16)
    allocation_rate: int = within(1, _UINT64_MAX, 268435456)
    max_batch_size: int = at_least(1, 65536)
    overflow_margin: int = within(1, _UINT64_MAX, _UINT64_MAX)
    overflow_policy: str = one_of(_OVERFLOW_POLICIES, "evict_random")
    overflow_resolution_target: float = within(0.0, 1.0, 0.8)
    initial_cache_rate: float = within(0.0, 1.0, 1.0)
    cache_missed_embeddings: bool = False
    initialize_after_startup: bool = True
    update_filters: tuple[str, ...] = ("^hps_.+$",)
    shared_memory_size: int = at_least(1, 17179869184)
    shared_memory_name: str = "hctr_mp_hash_map_database"
    shared_memory_auto_remove: bool = True
    address: str = "127.0.0.1:7000"
    user_name: str = "default"
    password: str = ""
    num_node_connections: int = at_least(1, 5)
    enable_tls: bool = False
    tls_ca_certificate: str = "cacertbundle.crt"
    tls_client_certificate: str = "client_cert.pem"
    tls_client_key: str = "client_key.pem"
    tls_server_name_identification: str = "redis.localhost"

    near_cache: VolatileDatabase | None = None

    def __post_init__(self) -> None:
        check_rules(self)
        _supported(self.type, (*_HASH_MAPS, "redis_cluster", "disabled"))
        _check_filters(self.update_filters)
        _addresses(self.address)
        if self.near_cache is None:
            return
        if self.type != "redis_cluster":
            raise Problem("near_cache", "there", 'absent unless type is "redis_cluster"')
        if self.near_cache.type not in _HASH_MAPS:
            raise Problem(
                "near_cache.type", repr(self.near_cache.type), "one of " + ", ".join(_HASH_MAPS)
            )

    @property
    def bounded(self) -> bool:
        """Whether it is to hold less than all rows."""
        return self.initial_cache_rate < 1 or self.overflow_margin < _UINT64_MAX

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Return the hosts and ports in `address`."""
        return _addresses(self.address)


@dataclass(frozen=True, kw_only=True)
class PersistentDatabase:
    """`persistent_db`: the tier on disk."""

    type: str
    path: str = "/tmp/rocksdb"
    num_threads: int = at_least(1, 16)
    read_only: bool = False
    max_batch_size: int = at_least(1, 65536)
    initialize_after_startup: bool = True
    update_filters: tuple[str, ...] = ("^hps_.+$",)

    def __post_init__(self) -> None:
        check_rules(self)
        _supported(self.type, ("rocks_db", "disabled"))
        _check_filters(self.update_filters)


@dataclass(frozen=True, kw_only=True)
class UpdateSource:
    """`update_source`: where new rows come from while serving. Kafka is not supported yet."""

    type: str
    brokers: str = "127.0.0.1:9092"
    metadata_refresh_interval_ms: int = at_least(1, 30000)
    receive_buffer_size: int = at_least(1, 262144)
    poll_timeout_ms: int = at_least(1, 500)
    max_batch_size: int = at_least(1, 8192)
    failure_backoff_ms: int = at_least(1, 50)
    max_commit_interval: int = at_least(1, 32)

    def __post_init__(self) -> None:
        check_rules(self)
        _supported(self.type, ("disabled",), not_yet=("kafka_message_queue",))


def _check_filters(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise Problem(
                "update_filters", repr(pattern), f"a list of regular expressions ({error})"
            ) from None


def _addresses(text: str) -> tuple[tuple[str, int], ...]:
    addresses = []
    for part in filter(None, re.split(r"[,;\s]+", text)):
        host, separator, port = part.rpartition(":")
        host, port = (host, port) if separator else (part, str(_REDIS_PORT))
        if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise Problem("address", repr(text), "host:port, or several of them and commas between")
        addresses.append((host, int(port)))
    if not addresses:
        raise Problem("address", repr(text), "host:port, or several of them and commas between")
    return tuple(addresses)


def _supported(kind: str, known: Sequence[str], *, not_yet: Sequence[str] = ()) -> None:
    if kind in not_yet:
        raise Problem("type", repr(kind), "another type: this one is not supported yet")
    if kind not in known:
        raise Problem("type", repr(kind), "one of " + ", ".join((*known, *not_yet)))


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The whole file: its models, and the tiers behind them."""

    models: tuple[ModelConfiguration, ...]
    supportlonglong: bool = required(True)
    fuse_embedding_table: bool = False
    volatile_db: VolatileDatabase | None = None
    persistent_db: PersistentDatabase | None = None
    update_source: UpdateSource | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise Problem("models", "an empty list", "a list of models")
        names = [m.model for m in self.models]
        if len(set(names)) < len(names):
            raise Problem("models", names, "models whose names differ")

    def model(self, name: str) -> ModelConfiguration:
        """Return the model called `name`; raises HpsError where there is none."""
        for model in self.models:
            if model.model == name:
                return model
        raise HpsError(
            f"the configuration has no model {name!r}",
            hint="it has " + ", ".join(m.model for m in self.models),
        )

    def fuses(self, model: ModelConfiguration) -> bool:
        """Return whether tables of one vector size of `model` share an index."""
        return self.fuse_embedding_table and model.fuse_embedding_table


def read_configuration(path: Path | str) -> Configuration:
    """Return what the JSON file at `path` says.

    Relative `sparse_files` are relative to the working directory. Unknown fields are warned of,
    once for each file, with the nearest known one. Raises HpsError, which names file and field,
    for anything that is missing, of the wrong type or against its rule.
    """
    return parse_configuration(configuration_text(path), str(path))


def configuration_text(path: Path | str) -> str:
    """Return the file's text; raises HpsError where it cannot be read."""
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HpsError(
            f"configuration {path} cannot be read: {getattr(error, 'strerror', None) or error}",
            hint="give the path of the parameter server's JSON file (ps_config_file, --config)",
        ) from error


def parse_configuration(text: str, source: str) -> Configuration:
    """Return what the JSON `text` says; `source` names it in errors. See `read_configuration`."""
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise HpsError(
            f"configuration {source} is no JSON: {error}", hint="mend that place"
        ) from error
    try:
        return read_fields(Configuration, document, source)
    except Problem as problem:
        raise HpsError(f"configuration {source}: {problem.problem}", hint=problem.hint) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name!r} occurs twice")
        values[name] = value
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def write_configuration(path: Path | str, configuration: Configuration) -> Path:
    """Write the JSON file that `read_configuration` reads back as `configuration`."""
    path = Path(path)
    path.write_text(json.dumps(_document(configuration), indent=2) + "\n", "utf-8")
    return path


def _document(value: Any) -> Any:
    """Return what JSON holds of `value`: fields that differ from their default, or have none."""
    if isinstance(value, tuple):
        return [_document(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {
            f.name: _document(getattr(value, f.name))
            for f in fields(value)
            if f.metadata.get("required") or getattr(value, f.name) != f.default
        }
    return value
