"""Compiles native code on first use, and keeps the libraries in the cache folder.

A library's folder is named after all that its content depends on, so it is never outdated;
processes that need it at the same time wait for one build.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpsbench.config import environment
from hpsbench.errors import NativeBuildError

_LOG = logging.getLogger("hpsbench.hps")
_SHOWN_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A program that compiles and links, and what to do where it cannot."""

    program: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Code:
    """Files of one folder."""

    folder: Path
    sources: Sequence[str]
    headers: Sequence[str]


def cxx() -> Compiler:
    """Return the C++ compiler: `CXX`, or g++."""
    return Compiler(
        program=environment().cxx,
        hint="install or update the compiler (apt-get install g++), or name another in CXX",
    )


def shared_library(
    kind: str,
    file_name: str,
    code: Code,
    flags: Sequence[str],
    compiler: Compiler,
    *,
    depends_on: str = "",
) -> Path:
    """Return the path of the library, compiled if need be into a folder named after `kind`.

    `depends_on` is what its content depends on beyond code, flags and compiler. Raises
    NativeBuildError where there is no compiler or it fails.
    """
    digest = hashlib.sha256()
    for part in (_version(compiler), depends_on, *flags):
        digest.update(part.encode() + b"\0")
    for name in (*code.headers, *code.sources):
        digest.update((code.folder / name).read_bytes())
    folder = environment().cache_dir / "native" / f"{kind}-{digest.hexdigest()[:20]}"
    library = folder / file_name
    if library.exists():
        return library
    from filelock import FileLock  # not before: it takes longer than loading small tables

    # Libraries come after the sources that need them.
    command = [compiler.program, *(str(code.folder / name) for name in code.sources), *flags]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not library.exists():
                _compile(command, library, compiler.hint)
    except OSError as error:
        raise NativeBuildError(
            f"the native library cannot be kept in {folder}: {error.strerror}",
            hint="set HPSBENCH_CACHE_DIR to a folder that you can write",
        ) from error
    return library


def _compile(command: Sequence[str], library: Path, hint: str) -> None:
    _LOG.info("compiling %s; this happens once", library)
    started = time.monotonic()
    unfinished = library.with_name(f"{library.name}.{os.getpid()}")
    try:
        result = subprocess.run(
            [*command, "-o", str(unfinished)], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            last = "\n    ".join(result.stderr.strip().splitlines()[-_SHOWN_LINES:])
            raise NativeBuildError(
                f"{command[0]} could not compile {library.name}; its last lines:\n    {last}",
                hint=hint,
            )
        unfinished.replace(library)
    finally:
        unfinished.unlink(missing_ok=True)
    _LOG.info("compiled %s in %.1f s", library, time.monotonic() - started)


@functools.cache
def _version(compiler: Compiler) -> str:
    program = compiler.program
    try:
        result = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NativeBuildError(
            f"the native library needs a C++ compiler, and {program!r} does not run: {error}",
            hint="apt-get install g++, or name another compiler in CXX",
        ) from error
    return result.stdout or program
