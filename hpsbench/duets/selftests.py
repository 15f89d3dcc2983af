"""Stored self-tests: what this machine's comparisons were found to tell apart."""

from __future__ import annotations

from pathlib import Path

from hpsbench import storage
from hpsbench.duets.decision import DuetPolicy
from hpsbench.duets.resolution import SelfTest
from hpsbench.errors import BaselineError
from hpsbench.runs import FOLDER as RUNS

SCHEMA_VERSION = 2
FILE = RUNS.parent / "selftest.json"
NOISY_FILE = RUNS.parent / "selftest-noisy.json"


def store(file: Path, held: SelfTest) -> None:
    """Write a self-test in place of the one before. Raises BaselineError where it cannot be."""
    require_place(file)
    try:
        storage.write_atomically(file, storage.encode(held, schema_version=SCHEMA_VERSION))
    except OSError as error:
        raise _unwritable(file, error) from error


def require_place(file: Path) -> None:
    """Make the folder of `file`; raises BaselineError where no file can be."""
    try:
        storage.make_place(file)
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> BaselineError:
    return BaselineError(
        f"the self-test cannot be stored in {file}: {error.filename}: {error.strerror or error}",
        hint="name a file that can be written with --output FILE",
    )


def load(file: Path) -> SelfTest:
    """Return the self-test in a file. Raises BaselineError (see `storage.read`)."""
    return storage.read(SelfTest, file, schema_version=SCHEMA_VERSION, restore="run it again")


def stored(machine: str, file: Path = FILE, policy: DuetPolicy | None = None) -> SelfTest | None:
    """Return the self-test of this class of machine, and policy if given; None without one."""
    try:
        found = load(file)
    except BaselineError:
        return None
    alike = found.machine == machine and policy in (None, found.policy)
    return found if alike else None
