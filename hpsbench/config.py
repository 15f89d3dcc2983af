"""What a run is, in frozen sections with their rules: a `Suite`; and what the environment says.

This file alone reads the environment (`environment()`). `hpsbench.presets` makes a `Suite`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from hpsbench.errors import ConfigError

KEY_STREAMS = ("repeated", "uniform", "zipf", "hot")
PROTOCOLS = ("http", "grpc")
#: How requests of an open loop arrive.
ARRIVALS = ("poisson", "constant", "spike", "recorded")
_USUAL_NVCC = "/usr/local/cuda/bin/nvcc"


def _require(condition: bool, field_name: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(
            f"{field_name} is {value!r}, and must be {rule}",
            hint=f"set it in the preset file, or pass --set {field_name}=VALUE",
        )


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """The one embedding table of DLRM's slots: `num_embeddings` rows of `embedding_dim` float32.

    With a `FusionConfig`, each of its tables.
    """

    num_embeddings: int
    embedding_dim: int = 128
    seed: int = 20230329

    def __post_init__(self) -> None:
        _require(
            self.num_embeddings >= 1, "tables.num_embeddings", self.num_embeddings, "at least 1"
        )
        _require(self.embedding_dim >= 1, "tables.embedding_dim", self.embedding_dim, "at least 1")

    @property
    def num_bytes(self) -> int:
        """Bytes of one table's rows, once."""
        return self.num_embeddings * self.embedding_dim * 4


@dataclass(frozen=True, kw_only=True)
class DlrmConfig:
    """The dense part of DLRM; the bottom MLP ends in one more layer of `embedding_dim` units."""

    num_slots: int = 26
    num_numerical: int = 13
    bottom_mlp: tuple[int, ...] = (512, 256)
    top_mlp: tuple[int, ...] = (1024, 1024, 512, 256, 1)
    seed: int = 20230330

    def __post_init__(self) -> None:
        for name in ("num_slots", "num_numerical"):
            _require(getattr(self, name) >= 1, f"dlrm.{name}", getattr(self, name), "at least 1")
        for name in ("bottom_mlp", "top_mlp"):
            widths = getattr(self, name)
            _require(
                all(w >= 1 for w in widths), f"dlrm.{name}", widths, "a list of positive widths"
            )
        _require(self.top_mlp[-1:] == (1,), "dlrm.top_mlp", self.top_mlp, "a list that ends in 1")


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The model of `num_tables` tables in DLRM's place: `hotness` keys of each, one dense layer."""

    num_tables: int
    hotness: int = 26
    seed: int = 20230330

    def __post_init__(self) -> None:
        _require(self.num_tables >= 2, "fusion.num_tables", self.num_tables, "at least 2")
        _require(self.hotness >= 1, "fusion.hotness", self.hotness, "at least 1")


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How each variant is asked, and for how long; times are seconds, per variant and batch size.

    A launch is one fresh server. In each, every batch size is measured in `rounds` rounds, whose
    requests alternate between the variants, `in_a_row` at a time; `measure_s` bounds the time and
    `min_requests` the number from below. For `traced_s` more they are asked with the server's
    traces on.
    """

    batch_sizes: tuple[int, ...]
    keys: str = "repeated"
    also_keys: tuple[str, ...] = ()
    zipf_alpha: float = 1.05
    protocol: str = "http"
    concurrency: int = 1
    launches: int = 4
    rounds: int = 5
    in_a_row: int = 1
    warmup_requests: int = 5
    min_requests: int = 20
    measure_s: float = 2.0
    traced_s: float = 0.5
    seed: int = 20230331

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        _require(
            bool(sizes) and all(b >= 1 for b in sizes) and len(set(sizes)) == len(sizes),
            "load.batch_sizes", sizes, "a list of different positive sizes",
        )  # fmt: skip
        _require(
            self.keys in KEY_STREAMS, "load.keys", self.keys, "one of " + ", ".join(KEY_STREAMS)
        )
        _require(
            set(self.also_keys) <= set(KEY_STREAMS) - {self.keys},
            "load.also_keys", self.also_keys, f"others of {', '.join(KEY_STREAMS)} than load.keys",
        )  # fmt: skip
        _require(
            self.protocol in PROTOCOLS, "load.protocol", self.protocol,
            "one of " + ", ".join(PROTOCOLS),
        )  # fmt: skip
        for name in ("concurrency", "launches", "rounds", "in_a_row", "min_requests"):
            _require(getattr(self, name) >= 1, f"load.{name}", getattr(self, name), "at least 1")
        _require(
            self.warmup_requests >= 0, "load.warmup_requests", self.warmup_requests, "0 or more"
        )
        _require(self.traced_s >= 0, "load.traced_s", self.traced_s, "0 or more")
        for name in ("measure_s", "zipf_alpha"):
            _require(getattr(self, name) > 0, f"load.{name}", getattr(self, name), "positive")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Which Triton serves (`bundled`, `system` or the URL of a running one), and how.

    With `tensor_float_32`, TensorFlow's default, matrix products on a GPU keep 10 bits of mantissa:
    as fast as published, and too coarse to compare answers. With `xla`, XLA compiles the dense part
    of the variants that TensorFlow serves, once per batch size. With `cuda_graphs`, the ONNX
    variants capture their dense part once per bucket of batch sizes and replay it; with
    `fused_layers`, its layers are cuBLASLt's with bias and ReLU, not ONNX Runtime's; with
    `stage_times`, they measure their stages, one after another, which is slower. With `in_process`,
    they and the ensemble's lookup run in Triton's own process; a Triton at a URL lacks the backend.
    """

    triton: str = "bundled"
    tensor_float_32: bool = True
    xla: bool = False
    cuda_graphs: bool = True
    fused_layers: bool = True
    stage_times: bool = False
    in_process: bool = True
    startup_timeout_s: float = 120.0
    request_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        _require(
            self.triton in ("bundled", "system") or "://" in self.triton,
            "servers.triton", self.triton, "bundled, system or http://HOST:PORT",
        )  # fmt: skip
        for name in ("startup_timeout_s", "request_timeout_s"):
            _require(getattr(self, name) > 0, f"servers.{name}", getattr(self, name), "positive")


@dataclass(frozen=True, kw_only=True)
class HpsConfig:
    """The parameter server under test and the fields of its JSON file that change its speed.

    With a `hit_rate_threshold` below 1 a GPU cache answers some missing keys with defaults and
    fetches them later: fast, and not what the other variants answer.
    """

    module: str = "hpsbench.hps"
    gpucache: bool = True
    gpucacheper: float = 0.2
    hit_rate_threshold: float = 1.0

    def __post_init__(self) -> None:
        _require(
            all(part.isidentifier() for part in self.module.split(".")),
            "hps.module", self.module, "the name of a Python module",
        )  # fmt: skip
        for name in ("gpucacheper", "hit_rate_threshold"):
            _require(getattr(self, name) >= 0, f"hps.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """When a change counts: see `hpsbench.verdict`. Thresholds are fractions (0.03 is 3%)."""

    noise_threshold: float = 0.03
    confidence: float = 0.99
    widest_limit: float = 0.20
    min_launches: int = 2
    strict: bool = False

    def __post_init__(self) -> None:
        _require(
            0 < self.noise_threshold < 1, "gate.noise_threshold", self.noise_threshold, "in (0, 1)"
        )
        _require(0.5 <= self.confidence < 1, "gate.confidence", self.confidence, "in [0.5, 1)")
        _require(self.widest_limit > 0, "gate.widest_limit", self.widest_limit, "positive")
        _require(self.min_launches >= 1, "gate.min_launches", self.min_launches, "at least 1")


@dataclass(frozen=True, kw_only=True)
class OpenLoopConfig:
    """How each variant is loaded, for the open-loop benchmark; times are seconds of each rate.

    `rates` are requests per second, none of them for a sweep up to saturation; `intervals` is the
    file of `recorded` arrivals. An `slo_ms` of 0 is none.
    """

    rates: tuple[int, ...] = ()
    arrivals: str = "poisson"
    intervals: str = ""
    duration_s: float = 10.0
    warmup_s: float = 1.0
    slo_ms: float = 0.0
    connections: int = 64

    def __post_init__(self) -> None:
        _require(all(r >= 1 for r in self.rates), "open_loop.rates", self.rates, "positive rates")
        _require(
            self.arrivals in ARRIVALS, "open_loop.arrivals", self.arrivals,
            "one of " + ", ".join(ARRIVALS),
        )  # fmt: skip
        _require(
            bool(self.intervals) == (self.arrivals == "recorded"),
            "open_loop.intervals", self.intervals, "a file where arrivals are recorded, else empty",
        )  # fmt: skip
        _require(self.duration_s > 0, "open_loop.duration_s", self.duration_s, "positive")
        for name in ("warmup_s", "slo_ms"):
            _require(
                getattr(self, name) >= 0, f"open_loop.{name}", getattr(self, name), "0 or more"
            )
        _require(self.connections >= 1, "open_loop.connections", self.connections, "at least 1")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One run, wholly described: what is served, how it is asked, and how it is judged."""

    preset: str
    tables: TableConfig
    load: LoadConfig
    dlrm: DlrmConfig = field(default_factory=DlrmConfig)
    fusion: FusionConfig | None = None
    servers: ServerConfig = field(default_factory=ServerConfig)
    hps: HpsConfig = field(default_factory=HpsConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    open_loop: OpenLoopConfig = field(default_factory=OpenLoopConfig)

    @property
    def model(self) -> str:
        """The section that describes the model which is served: `fusion` if given, else `dlrm`."""
        return "dlrm" if self.fusion is None else "fusion"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The environment variables that the package heeds, read once."""

    ci: bool
    cache_dir: Path
    cxx: str
    nvcc: str | None
    cuda_architectures: tuple[str, ...]
    step_summary: Path | None


def environment() -> Environment:
    """Return what the variables say: docs/configuration.md lists them."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    cache_home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Environment(
        ci=os.environ.get("CI", "").lower() not in ("", "0", "false"),
        cache_dir=Path(os.environ.get("HPSBENCH_CACHE_DIR") or Path(cache_home) / "hpsbench"),
        cxx=os.environ.get("CXX") or "g++",
        nvcc=os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which(_USUAL_NVCC),
        cuda_architectures=tuple(sorted(filter(None, os.environ.get("CUDAARCHS", "").split(";")))),
        step_summary=Path(summary) if summary else None,
    )
