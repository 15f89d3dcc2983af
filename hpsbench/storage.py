"""Frozen dataclasses as JSON files: written atomically, read with errors that name the field."""

from __future__ import annotations

import dataclasses
import enum
import errno
import json
import os
import secrets
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from hpsbench.errors import BaselineError

T = TypeVar("T")


class OfMachine(Protocol):
    """What is stored with the class of machine that it was measured on."""

    @property
    def machine(self) -> str: ...


M = TypeVar("M", bound=OfMachine)


class _MismatchError(Exception):
    """Where in a JSON value (`runs[0].launches`) and what is wrong there."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where.lstrip('.') or 'the whole'} {what}")


def make_place(file: Path) -> None:
    """Make the folder of a file that is to be written later. Raises OSError where none can be."""
    nearest = next(folder for folder in file.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 file that is, whenever interrupted, old or new, never half. Raises OSError."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.staged")
    try:
        write_durably(staged, text)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def write_durably(path: Path, text: str) -> None:
    """Write a UTF-8 file and wait until the disk has it. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def encode(value: object, *, schema_version: int, indent: int | None = 2) -> str:
    """Return a dataclass as JSON with its schema version first; enumerations by their values."""
    assert dataclasses.is_dataclass(value)
    assert not isinstance(value, type)
    fields = {"schema_version": schema_version, **dataclasses.asdict(value)}
    return json.dumps(fields, indent=indent, ensure_ascii=False, default=_value_of) + "\n"


def _value_of(member: object) -> Any:
    if isinstance(member, enum.Enum):
        return member.value
    raise TypeError(f"{member!r} cannot be stored as JSON")


def read(
    cls: type[T],
    path: Path,
    *,
    schema_version: int,
    restore: str,
    upgraded: Callable[[dict[str, Any], int], dict[str, Any]] = lambda fields, _: fields,
) -> T:
    """Return the `cls` that `encode` wrote to `path`; `restore` is the hint for a damaged file.

    `upgraded` is given what the file holds and its schema version, and returns it as of now.
    Raises BaselineError when the file cannot be read, is no JSON, was written by a newer hpsbench,
    or lacks or mistypes a field. What an older hpsbench did not write yet has its default.
    """
    try:
        fields = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BaselineError(f"{path}: {error.strerror}", hint="check the path") from error
    except (ValueError, RecursionError) as error:
        raise BaselineError(f"{path} is no JSON: {error}", hint=restore) from error
    if not isinstance(fields, dict) or type(fields.get("schema_version")) is not int:
        raise BaselineError(f"{path} has no schema_version", hint=restore)
    found = fields.pop("schema_version")
    if found > schema_version:
        raise BaselineError(
            f"{path} has schema version {found}, and this hpsbench reads up to {schema_version}",
            hint="upgrade hpsbench to the version that wrote it",
        )
    try:
        return _decode(cls, upgraded(fields, found), "")  # type: ignore[no-any-return]
    except _MismatchError as error:
        raise BaselineError(f"{path}: {error}", hint=restore) from error


def newest(load: Callable[[Path], M], folder: Path, machine: str, most: int) -> list[M]:
    """Return the newest files of a class of machine, newest first; their names begin with the time.

    A file for which `load` raises BaselineError is left out.
    """
    found: list[M] = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        if len(found) == most:
            break
        try:
            stored = load(path)
        except BaselineError:
            continue
        if stored.machine == machine:
            found.append(stored)
    return found


def _decode(wanted: Any, value: Any, where: str) -> Any:
    if wanted is Any:
        return value
    if dataclasses.is_dataclass(wanted):
        assert isinstance(wanted, type)
        return _decode_dataclass(wanted, value, where)
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _decode(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        items = _checked(list, value, where)
        # A run holds hundreds of thousands of latencies, and a history dozens of runs.
        if set(map(type, items)) == {arguments[0]} and arguments[0] in (int, float, str):
            return tuple(items)
        return tuple(_decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if origin is Mapping:
        items = _checked(dict, value, where)
        return {k: _decode(arguments[1], v, f"{where}.{k}") for k, v in items.items()}
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        if value not in [member.value for member in wanted]:
            raise _MismatchError(
                where, f"is {value!r}, not one of {', '.join(m.value for m in wanted)}"
            )
        return wanted(value)
    if wanted is float and type(value) is int:
        return float(value)
    return _checked(wanted, value, where)


def _decode_dataclass(cls: type, value: Any, where: str) -> Any:
    given = _checked(dict, value, where)
    types_of = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for unknown in sorted(given.keys() - fields.keys()):
        raise _MismatchError(f"{where}.{unknown}", "is no known field")
    for missing in (n for n, f in fields.items() if n not in given and _is_required(f)):
        raise _MismatchError(f"{where}.{missing}", "is missing")
    arguments = {n: _decode(types_of[n], given[n], f"{where}.{n}") for n in fields if n in given}
    try:
        return cls(**arguments)
    except ValueError as error:
        raise _MismatchError(where, f"cannot be: {error}") from error


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _checked(wanted: Any, value: Any, where: str) -> Any:
    if type(value) is not wanted:
        raise _MismatchError(where, f"is a {type(value).__name__}, not a {wanted.__name__}")
    return value
