"""The command line of a benchmark session: pytest's options, and the `Suite` they add up to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from hpsbench import runs
from hpsbench.config import Suite, environment
from hpsbench.errors import ConfigError
from hpsbench.machine import find_gpus
from hpsbench.models.variants import select_variants
from hpsbench.presets import load_suite, preset_names
from hpsbench.servers.attach import parse_url


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The command line, resolved; `variants` is None where the user chose none."""

    suite: Suite
    variants: tuple[str, ...] | None
    overrides: tuple[str, ...]
    baselines_dir: Path
    runs_dir: Path
    resume: bool = False

    @property
    def interrupted_dir(self) -> Path:
        """Where sessions keep what they have measured until their run is stored."""
        return self.runs_dir.parent / "interrupted"


def require_hps_module(suite: Suite) -> None:
    """Raise ConfigError where the parameter server under test is not installed."""
    module = suite.hps.module
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ConfigError(
            f"hps.module is {module}, and Python finds no such module",
            hint="install it, or leave out --hps-module for hpsbench.hps",
        )


def default_preset() -> str:
    """Return the preset of a session that names none: `criteo` with a GPU, else `laptop`."""
    return "criteo" if find_gpus() else "laptop"


def add_options(parser: pytest.Parser) -> None:
    """Register the options, with their help."""
    group = parser.getgroup("hpsbench", "DLRM inference benchmarks")
    group.addoption(
        "--preset",
        metavar="NAME",
        help=f"what to measure: {', '.join(preset_names())}, or the path of a TOML file "
        "(default: criteo with a GPU, else laptop)",
    )
    group.addoption(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        dest="hpsbench_set",
        action="append",
        default=[],
        help="change one field of the preset, for example load.launches=8; repeatable",
    )
    group.addoption(
        "--variants",
        metavar="NAMES",
        help="measure only these variants, separated by commas, for example native_tf,hps_tf "
        "(default: all that differ on this machine)",
    )
    group.addoption(
        "--triton",
        metavar="WHICH",
        help="bundled, system or the URL of a running Triton; short for --set servers.triton=WHICH "
        "(default: bundled)",
    )
    group.addoption(
        "--hps-module",
        metavar="MODULE",
        help="module of the parameter server under test; short for --set hps.module=MODULE "
        "(default: hpsbench.hps)",
    )
    group.addoption(
        "--baselines",
        metavar="DIR",
        help="folder of the stored baselines (default: baselines below the root folder)",
    )
    group.addoption(
        "--resume",
        action="store_true",
        dest="hpsbench_resume",
        help="go on with the newest interrupted session of the same options, code and machine",
    )
    group.addoption(
        "--strict-gate",
        action="store_true",
        default=None,
        dest="strict_gate",
        help="exit with status 10 when a benchmark got no verdict (default: where CI is set)",
    )
    group.addoption(
        "--no-strict-gate",
        action="store_false",
        dest="strict_gate",
        help="show benchmarks without a verdict, and do not fail for them (default: without CI)",
    )


def resolve_options(config: pytest.Config) -> BenchOptions:
    """Return what the command line asks for.

    Raises ConfigError (see `load_suite` and `select_variants`).
    """
    given = config.option
    overrides = list(given.hpsbench_set)
    if given.triton is not None:
        overrides.append(f"servers.triton={given.triton}")
    if given.hps_module is not None:
        overrides.append(f"hps.module={given.hps_module}")
    suite = load_suite(default_preset() if given.preset is None else given.preset, overrides)
    if "://" in suite.servers.triton:
        parse_url(suite.servers.triton)
    if given.baselines == "":
        raise ConfigError("--baselines '' names no folder", hint="leave it out for baselines")
    strict = suite.gate.strict or environment().ci
    strict = strict if given.strict_gate is None else given.strict_gate
    variants = None
    if given.variants is not None:
        variants = tuple(name.strip() for name in given.variants.split(",") if name.strip())
        if not variants:
            raise ConfigError(
                f"--variants {given.variants!r} names no variant", hint="for example hps_tf"
            )
        select_variants(variants, suite)
    invoked = config.invocation_params.dir
    return BenchOptions(
        suite=dataclasses.replace(suite, gate=dataclasses.replace(suite.gate, strict=strict)),
        variants=variants,
        overrides=tuple(overrides),
        baselines_dir=invoked / given.baselines
        if given.baselines
        else config.rootpath / "baselines",
        runs_dir=config.rootpath / runs.FOLDER,
        resume=given.hpsbench_resume,
    )
