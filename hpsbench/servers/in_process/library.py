"""The backend's library, compiled on first use: `hpsbench` to Triton, by the name of its folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hpsbench.compiler import Code, cxx, shared_library
from hpsbench.errors import ServerError
from hpsbench.models.repository import IN_PROCESS

_SOURCES = ("backend.cc", "inputs.cc", "outputs.cc", "python.cc")
_HEADERS = ("inputs.h", "outputs.h", "python.h", "triton.h")
#: Triton has what is left undefined.
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-ldl")
_PRINT_PATH = f"from {__name__} import backend_library; print(backend_library())"


def backend_library() -> Path:
    """Return the library's path, compiled if need be; it needs Triton's backend interface 1.

    Raises NativeBuildError where there is no compiler or it fails.
    """
    code = Code(folder=Path(__file__).parent, sources=_SOURCES, headers=_HEADERS)
    return shared_library("backend", f"libtriton_{IN_PROCESS}.so", code, _FLAGS, cxx())


def backend_library_of(python: Path | None) -> Path:
    """Return the library that fits the hpsbench in the environment of the interpreter `python`.

    None is this one. Raises ServerError in that environment's words.
    """
    if python is None:
        return backend_library()
    result = subprocess.run(
        [str(python), "-c", _PRINT_PATH], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        words = result.stderr.strip().splitlines()
        raise ServerError(
            f"{python} has no backend to serve models in Triton's process: "
            f"{words[-1] if words else 'no words'}",
            hint="use the hpsbench of that environment to build its model repository",
        )
    return Path(result.stdout.strip().splitlines()[-1])


def is_used(repository: Path) -> bool:
    """Return whether some model of the repository asks for this backend."""
    return any(
        f'backend: "{IN_PROCESS}"' in config.read_text("utf-8", errors="replace")
        for config in repository.glob("*/config.pbtxt")
    )
