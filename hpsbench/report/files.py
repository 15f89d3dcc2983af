"""Where reports go."""

from __future__ import annotations

from pathlib import Path

from hpsbench import storage
from hpsbench.errors import ReportError

#: The report of the newest session, beside the folder of runs.
HTML_NAME = "report.html"


def write(path: Path, text: str) -> None:
    """Write a report in place of the one before. Raises ReportError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            # /dev/stdout or a pipe, in whose place no file may be put.
            path.write_text(text, "utf-8")
        else:
            storage.write_atomically(path, text)
    except OSError as error:
        raise _refused(path, error) from error


def require_place(path: Path | None) -> None:
    """Raise ReportError now where no report could be written later; None is not asked for."""
    if path is None or (path.exists() and not path.is_dir()):
        return
    try:
        storage.make_place(path)
    except OSError as error:
        raise _refused(path, error) from error


def append(path: Path, text: str) -> None:
    """Add a report to what a file holds. Raises ReportError when it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> ReportError:
    return ReportError(
        f"cannot write the report {path}: {error.strerror or error}",
        hint="name a file in a folder that you can write",
    )
