"""Where Triton is on this machine, and what it takes to start it.

`bundled` is the `tritonserver` inside the nvidia-pytriton wheel: only its binary, its Python
backend and the backend's stub are used, and the wheel's own Python package is never imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpsbench.errors import ServerError
from hpsbench.models.repository import IN_PROCESS
from hpsbench.servers.in_process.library import backend_library_of
from hpsbench.servers.process import SCRATCH

SYSTEM_BINARY = Path("/opt/tritonserver/bin/tritonserver")
_STUB = "triton_python_backend_stub"
_INSTALL_HINT = (
    "pip install 'nvidia-pytriton==0.7.0' 'numpy<2', or pass --triton system or --triton URL"
)


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A Triton that can be started: see `process.Command` for `prepend` and `links`."""

    binary: Path
    arguments: Sequence[str] = ()
    prepend: Mapping[str, Sequence[str]] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


def find_triton(
    which: str, python: Path | None = None, *, in_process: bool = False
) -> Installation:
    """Return the installation called `bundled` or `system`.

    Its Python models run in the environment of `python`, which must be of the same version as the
    Python that runs now, the default; with `in_process`, it has the backend that runs them in
    Triton's own process. Raises ServerError when something is missing, or cannot run it, and
    NativeBuildError where the backend cannot be compiled.
    """
    found = _bundled() if which == "bundled" else _system()
    if in_process:
        found = _with_backend(found, backend_library_of(python))
    if python is None:
        return found
    return replace(found, prepend={**found.prepend, "PATH": [str(python.parent)]})


def _with_backend(installation: Installation, library: Path) -> Installation:
    folder = f"backends/{IN_PROCESS}"
    added = {
        f"{folder}/{library.name}": str(library),
        f"{folder}/libpython.so": str(find_libpython()),
    }
    return replace(installation, links={**installation.links, **added})


def _system() -> Installation:
    on_path = shutil.which("tritonserver")
    binary = Path(on_path) if on_path else SYSTEM_BINARY
    if not binary.is_file():
        raise ServerError(
            f"no tritonserver on PATH, nor at {SYSTEM_BINARY}",
            hint="run inside an NGC Triton image, or pass --triton bundled or --triton URL",
        )
    backends = binary.resolve().parent.parent / "backends"
    # Links, so that a backend of ours can stand beside them.
    links = {
        f"backends/{folder.name}": str(folder)
        for folder in (sorted(backends.iterdir()) if backends.is_dir() else ())
        if folder.is_dir()
    }
    return Installation(
        binary=binary,
        arguments=[f"--backend-directory={SCRATCH}/backends"] if links else [],
        prepend={"PATH": [_python_bin()]},
        links=links,
    )


def _bundled() -> Installation:
    spec = importlib.util.find_spec("pytriton")
    package = Path(spec.origin).parent if spec is not None and spec.origin else None
    root = package / "tritonserver" if package is not None else None
    if package is None or root is None or not (root / "bin" / "tritonserver").is_file():
        raise ServerError("no bundled Triton: nvidia-pytriton is missing", hint=_INSTALL_HINT)
    require_numpy_1(importlib.metadata.version("numpy"))
    backend = root / "backends" / "python"
    stub = find_stub(root / "python_backend_stubs", sys.version_info[:2])
    links = {f"backends/python/{p.name}": p for p in backend.iterdir() if p.is_file()}
    # The stub must lie beside libtriton_python.so. Links in a folder of this run, rather than a
    # copy into site-packages: other runs may use another Python, and site-packages be read-only.
    links[f"backends/python/{_STUB}"] = stub
    return Installation(
        binary=root / "bin" / "tritonserver",
        arguments=[f"--backend-directory={SCRATCH}/backends"],
        prepend={
            # Without Python's own folder the stub loads the system's libpython, and dies.
            "LD_LIBRARY_PATH": [
                str(package.parent / "nvidia_pytriton.libs"),
                str(find_libpython().parent),
            ],
            # The stub ignores PYTHONPATH: it takes the environment of the first python on PATH.
            "PATH": [_python_bin()],
        },
        links={name: str(target) for name, target in links.items()},
    )


def find_stub(stubs: Path, version: tuple[int, ...]) -> Path:
    """Return the stub for a Python version. Raises ServerError naming the versions there are."""
    wanted = ".".join(str(part) for part in version)
    stub = stubs / wanted / _STUB
    if not stub.is_file():
        known = sorted((p.parent.name for p in stubs.glob(f"*/{_STUB}")), key=_version_key)
        raise ServerError(
            f"the bundled Triton runs Python {', '.join(known) or 'of no version'}, not {wanted}",
            hint="make the virtual environment with one of these, or pass --triton system",
        )
    return stub


def find_libpython(
    config: Mapping[str, object] | None = None, base_prefix: str = sys.base_prefix
) -> Path:
    """Return the shared library of the running Python, which Triton's stub needs.

    `config` is what `sysconfig.get_config_vars()` says. Raises ServerError for a static Python.
    """
    variables = sysconfig.get_config_vars() if config is None else config
    name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    libdir = Path(str(variables.get("LIBDIR") or "/nonexistent"))
    # A relocated Python (uv, conda) keeps the LIBDIR of the machine that built it.
    folders = [libdir, libdir / str(variables.get("MULTIARCH") or ""), Path(base_prefix) / "lib"]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ServerError(
        f"{sys.executable} has no shared {name}, which the bundled Triton needs",
        hint=f"Debian, Ubuntu: apt-get install libpython{sys.version_info[0]}."
        f"{sys.version_info[1]}; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install; "
        "uv and conda bring it",
    )


def require_numpy_1(version: str) -> None:
    """Raise ServerError unless a NumPy version is one that the bundled stub understands."""
    if int(version.split(".")[0]) >= 2:
        raise ServerError(
            f"NumPy {version} is installed: the bundled Triton would answer with empty outputs",
            hint="pip install 'numpy>=1.26,<2'",
        )


def _python_bin() -> str:
    return str(Path(sys.executable).parent)


def _version_key(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
