"""Presets, TOML files and `--set` options become one `Suite`; nothing reads a preset again."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hpsbench.config import Suite
from hpsbench.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = resources.files(__name__)


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package, sorted."""
    return sorted(p.name[: -len(".toml")] for p in _FOLDER.iterdir() if p.name.endswith(".toml"))


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
        text = (_FOLDER / f"{preset}.toml").read_text("utf-8")
    elif preset.endswith(".toml"):
        try:
            text = Path(preset).read_text("utf-8")
        except OSError as error:
            raise ConfigError(
                f"preset file {preset}: {error.strerror}",
                hint="give the path of a TOML file, or one of " + ", ".join(preset_names()),
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"preset file {preset} is no text: {error}", hint="write it as UTF-8"
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


#: No whole number beyond it needs to be a float, and some cannot.
_LARGEST_WHOLE = 1 << 63
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def _convert(path: str, wanted: Any, value: Any) -> Any:
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < _LARGEST_WHOLE else math.inf
    if wanted is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} is {value}", hint="write a finite number")
    if wanted == tuple[int, ...]:
        if isinstance(value, list) and all(type(v) is int for v in value):
            return tuple(value)
        raise ConfigError(f"{path} is {value!r}", hint="write a list of integers: [32, 256]")
    if wanted == tuple[str, ...]:
        if isinstance(value, list) and all(type(v) is str for v in value):
            return tuple(value)
        raise ConfigError(f"{path} is {value!r}", hint='write a list of strings: ["zipf"]')
    if type(value) is not wanted:
        raise ConfigError(f"{path} is {value!r}", hint=f"write {_KINDS[wanted]}")
    return value


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    types = get_type_hints(cls)
    return [(f, types[f.name]) for f in dataclasses.fields(cls)]


def _nearest(word: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {prefix}{close[0]}? Known: {', '.join(known)}"
    return f"known: {', '.join(known)}"
