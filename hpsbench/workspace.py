"""A folder for what one run writes (tables, models, logs), gone afterwards whatever happens.

A run that is killed cannot remove its folder; the next run does, for it sees that no process holds
the folder's lock any more.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hpsbench.errors import TableError

_PREFIX = "run-"
_LOCK = "lock"


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Yield a new folder below `parent`, locked while in use and removed afterwards.

    Removes the folders of runs that were killed. Raises TableError where `parent` cannot be used.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = _lock(folder)
    except OSError as error:
        raise TableError(
            f"no working folder below {parent}: {error.strerror}",
            hint="set HPSBENCH_CACHE_DIR to a folder that you can write",
        ) from error
    assert lock is not None, f"{folder} is new, and locked by another process"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def sweep(parent: Path) -> list[Path]:
    """Remove and return the folders below `parent` whose process has died."""
    removed = []
    for folder in parent.glob(f"{_PREFIX}*"):
        lock = _lock(folder)
        if lock is None:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()
        removed.append(folder)
    return removed


def _lock(folder: Path) -> IO[str] | None:
    # flock, not a process number in a file: the kernel drops it with the process, and a number
    # may belong to another process by now.
    try:
        lock = (folder / _LOCK).open("w")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
