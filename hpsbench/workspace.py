"""A folder for what one run writes (tables, models, logs), gone afterwards whatever happens.

A run that is killed cannot remove its folder: a small process does that waits for its end. Should
that one be killed too, the next run sees that nobody holds the folder's lock any more.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hpsbench.errors import TableError

_PREFIX = "run-"
_LOCK = "lock"
#: Waits until its standard input is closed, as it is when the process at the other end is gone.
_REMOVE_AT_END = """\
import shutil, sys
sys.stdin.read()
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Yield a new folder below `parent`, locked while in use and removed afterwards.

    Removes the folders of runs that were killed. Raises TableError where `parent` cannot be used.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        # Locked before it has the name that another run's sweep would look for.
        unlocked = Path(tempfile.mkdtemp(prefix="new-", dir=parent))
        lock = _lock(unlocked)
        folder = unlocked.rename(parent / unlocked.name.replace("new-", _PREFIX))
    except OSError as error:
        raise TableError(
            f"no working folder below {parent}: {error.strerror}",
            hint="set HPSBENCH_CACHE_DIR to a folder that you can write",
        ) from error
    assert lock is not None, "a folder that nobody knows cannot be locked"
    # Its own session: Ctrl-C at the terminal must not end it before this process.
    remover = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _REMOVE_AT_END, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield folder
    finally:
        assert remover.stdin is not None
        remover.stdin.close()
        remover.wait()
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
