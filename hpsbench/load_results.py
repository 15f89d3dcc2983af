"""Stored results of `hpsbench load`: `<folder>/<UTC timestamp>-<short id>.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpsbench import storage
from hpsbench.errors import BaselineError
from hpsbench.load_curve import LoadCurve
from hpsbench.runs import FOLDER as RUNS

SCHEMA_VERSION = 1
FOLDER = RUNS.parent / "load"


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """One curve, and what it is of."""

    recorded_at: str
    machine: str
    source: str
    model: str
    protocol: str
    batch_size: int
    curve: LoadCurve


def save(file: Path, result: LoadResult) -> None:
    """Write a result to a file. Raises BaselineError when it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomically(file, storage.encode(result, schema_version=SCHEMA_VERSION))
    except OSError as error:
        raise BaselineError(
            f"cannot write {file}: {error.strerror or error}", hint="make that folder writable"
        ) from error


def load(file: Path) -> LoadResult:
    """Return the result in a file. Raises BaselineError (see `storage.read`)."""
    return storage.read(LoadResult, file, schema_version=SCHEMA_VERSION, restore="measure it again")


def newest(folder: Path, machine: str, most: int) -> list[LoadResult]:
    """Return the newest results of a class of machine, newest first.

    A file that cannot be read is left out.
    """
    return storage.newest(load, folder, machine, most)
