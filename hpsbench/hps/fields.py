"""How JSON becomes a frozen dataclass: types, rules, and unknown fields.

A field's rule stands beside it, in the dataclass: `max_batch_size: int = at_least(1, 64)`.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from hpsbench.errors import HpsError

LOG = logging.getLogger("hpsbench.hps")
_T = TypeVar("_T")
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
_warned: set[tuple[str, str]] = set()


class Problem(HpsError):
    """A field breaks its rule: `field` (a path like models[0].gpucacheper) is `value`."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field} is {value}", hint=f"it must be {rule}")
        self.field, self.value, self.rule = field, value, rule

    def inside(self, outer: str) -> Problem:
        """Return the same problem, its field seen from outside."""
        return Problem(f"{outer}.{self.field}", self.value, self.rule)


def at_least(low: float, default: _T) -> _T:
    """Return a dataclass field that must be `low` or more."""
    return dataclasses.field(default=default, metadata={"low": low, "high": math.inf})


def within(low: float, high: float, default: _T) -> _T:
    """Return a dataclass field that must be from `low` to `high`, both included."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def one_of(choices: Sequence[str], default: str) -> str:
    """Return a dataclass field that must be one of `choices`."""
    return dataclasses.field(default=default, metadata={"choices": tuple(choices)})


def required(default: _T) -> _T:
    """Return a dataclass field that code may leave out, and JSON may not."""
    return dataclasses.field(default=default, metadata={"required": True})


def read_fields(cls: type[_T], values: object, source: str, where: str = "") -> _T:
    """Return the dataclass `cls` made of the JSON object `values`, which checks its fields' rules.

    `where` is the path of the object in the file `source`. Raises Problem, with field paths
    relative to the object.
    """
    if not isinstance(values, dict):
        raise Problem(where or "the file", _shown(values), "an object: { ... }")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            _warn_unknown(source, f"{where}.{name}".lstrip("."), name, list(known))
    arguments = {}
    for name, field in known.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], name, source, where)
        elif field.default is dataclasses.MISSING or field.metadata.get("required"):
            raise Problem(name, "missing", f"there; it is {_type_name(hints[name])}")
    return cls(**arguments)


def check_rules(instance: Any) -> None:
    """Raise Problem for the first field of a dataclass's instance whose value breaks its rule."""
    for field in dataclasses.fields(instance):
        _check(field, getattr(instance, field.name))


def _warn_unknown(source: str, path: str, name: str, known: list[str]) -> None:
    if (source, path) in _warned:
        return
    _warned.add((source, path))
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    LOG.warning(
        "configuration %s: unknown field %s is ignored%s",
        source, path, f"; did you mean {nearest[0]}?" if nearest else "",
    )  # fmt: skip


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise Problem(field.name, _shown(value), "one of " + ", ".join(choices))
    if "low" in field.metadata:
        low, high = field.metadata["low"], field.metadata["high"]
        if not low <= value <= high:
            rule = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise Problem(field.name, _shown(value), rule)


def _convert(wanted: Any, value: Any, name: str, source: str, where: str) -> Any:
    if isinstance(wanted, types.UnionType):  # a section or None
        wanted = typing.get_args(wanted)[0]
    path = f"{where}.{name}".lstrip(".")
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, dict):
            raise Problem(name, _shown(value), "an object: { ... }")
        try:
            return read_fields(wanted, value, source, path)  # type: ignore[arg-type]
        except Problem as problem:
            raise problem.inside(name) from None
    if typing.get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise Problem(name, _shown(value), _type_name(wanted))
        item_type = typing.get_args(wanted)[0]
        return tuple(
            _convert(item_type, item, f"{name}[{i}]", source, where) for i, item in enumerate(value)
        )
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise Problem(name, _shown(value), _type_name(wanted))
    return value


def _type_name(wanted: Any) -> str:
    if typing.get_origin(wanted) is tuple:
        item = typing.get_args(wanted)[0]
        return f"a list, each item {_type_name(item)}"
    return _TYPE_NAMES.get(wanted, "an object: { ... }")


def _shown(value: object) -> str:
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    return text or ("null" if value is None else repr(value))
