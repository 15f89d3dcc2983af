"""What a run is: presets, TOML files and `--set` options become one frozen `Suite`.

This file alone reads the environment (`environment()`), and nothing after it reads a preset again.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hpsbench.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    requests alternate between the variants; `measure_s` bounds the time and `min_requests` the
    number from below. For `traced_s` more they are asked with the server's traces on.
    """

    batch_sizes: tuple[int, ...]
    keys: str = "repeated"
    also_keys: tuple[str, ...] = ()
    zipf_alpha: float = 1.05
    protocol: str = "http"
    concurrency: int = 1
    launches: int = 4
    rounds: int = 5
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
        for name in ("concurrency", "launches", "rounds", "min_requests"):
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
    of the variants that TensorFlow serves, once per batch size. With `cuda_graphs`, ONNX Runtime
    captures its work once per bucket of batch sizes and replays it; with `stage_times`, the ONNX
    variants measure their stages, one after another, which is slower.
    """

    triton: str = "bundled"
    tensor_float_32: bool = True
    xla: bool = False
    cuda_graphs: bool = True
    stage_times: bool = False
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


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package, sorted."""
    folder = resources.files("hpsbench") / "presets"
    return sorted(p.name[: -len(".toml")] for p in folder.iterdir() if p.name.endswith(".toml"))


def load_suite(preset: str, overrides: Sequence[str] = ()) -> Suite:
    """Return the `Suite` of a preset's name or TOML path, with `section.field=value` overrides.

    Values are TOML; a bare word is a string. Raises ConfigError for an unknown preset, section,
    field or a value of the wrong type, naming the nearest known one.
    """
    settings = _read_preset(preset)
    for override in overrides:
        section, name, value = _parse_override(override)
        settings.setdefault(section, {})[name] = value
    return _suite(preset, settings)


def _read_preset(preset: str) -> dict[str, dict[str, Any]]:
    if preset in preset_names():
        text = (resources.files("hpsbench") / "presets" / f"{preset}.toml").read_text("utf-8")
    elif preset.endswith(".toml"):
        try:
            text = Path(preset).read_text("utf-8")
        except OSError as error:
            raise ConfigError(
                f"preset file {preset}: {error.strerror}",
                hint="give the path of a TOML file, or one of " + ", ".join(preset_names()),
            ) from error
    else:
        raise ConfigError(
            f"unknown preset {preset!r}",
            hint=f"{_nearest(preset, preset_names())}; a path that ends in .toml works too",
        )
    try:
        settings: dict[str, dict[str, Any]] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"preset {preset} is no TOML: {error}", hint="mend that line") from error
    return settings


def _parse_override(override: str) -> tuple[str, str, Any]:
    path, equals, text = override.partition("=")
    section, dot, name = path.strip().partition(".")
    if not (equals and dot and section and name):
        raise ConfigError(
            f"--set {override!r} is not SECTION.FIELD=VALUE",
            hint="for example --set load.batch_sizes='[32, 256]'",
        )
    try:
        return section, name, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return section, name, text.strip()


def _suite(preset: str, settings: Mapping[str, Any]) -> Suite:
    # `FusionConfig | None` is a section that may be left out.
    named: dict[str, Any] = {f.name: (get_args(t) or (t,))[0] for f, t in _fields(Suite)}
    sections = {
        n: t for n, t in named.items() if dataclasses.is_dataclass(t) and isinstance(t, type)
    }
    unknown = [name for name in settings if name not in sections]
    if unknown:
        raise ConfigError(
            f"preset {preset}: unknown section {unknown[0]!r}",
            hint=_nearest(unknown[0], list(sections)),
        )
    if {"dlrm", "fusion"} <= settings.keys():
        raise ConfigError(
            f"preset {preset} describes two models, [dlrm] and [fusion]",
            hint="leave one of them out: what it says would not be served",
        )
    required = {f.name for f, _ in _fields(Suite) if f.default is not None}
    built = {
        n: _section(preset, n, t, settings.get(n, {}))
        for n, t in sections.items()
        if n in required or n in settings
    }
    return Suite(preset=Path(preset).stem, **built)


def _section(preset: str, section: str, cls: type, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"preset {preset}: {section} is {values!r}", hint=f"write [{section}]")
    known = {f.name: (f, t) for f, t in _fields(cls)}
    arguments = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"preset {preset}: unknown field {section}.{name}",
                hint=_nearest(name, list(known), prefix=f"{section}."),
            )
        arguments[name] = _convert(f"{section}.{name}", known[name][1], value)
    for name, (fld, _) in known.items():
        required = fld.default is dataclasses.MISSING and fld.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise ConfigError(
                f"preset {preset}: {section}.{name} is missing",
                hint=f"add it below [{section}], or pass --set {section}.{name}=VALUE",
            )
    return cls(**arguments)


def _convert(path: str, wanted: Any, value: Any) -> Any:
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted == tuple[int, ...]:
        if isinstance(value, list) and all(type(v) is int for v in value):
            return tuple(value)
        raise ConfigError(f"{path} is {value!r}", hint="write a list of integers: [32, 256]")
    if wanted == tuple[str, ...]:
        if isinstance(value, list) and all(type(v) is str for v in value):
            return tuple(value)
        raise ConfigError(f"{path} is {value!r}", hint='write a list of strings: ["zipf"]')
    if type(value) is not wanted:
        raise ConfigError(
            f"{path} is {value!r}, a {type(value).__name__}", hint=f"write a {wanted.__name__}"
        )
    return value


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    types = get_type_hints(cls)
    return [(f, types[f.name]) for f in dataclasses.fields(cls)]


def _nearest(word: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {prefix}{close[0]}? Known: {', '.join(known)}"
    return f"known: {', '.join(known)}"
